"""Every member of the family with the return's own KL reaches the one best policy of a token tree."""

from dataclasses import replace

import pytest

from rto_fast.theory.experiment import Experiment, run, settings

TREE = Experiment(vocab=4, depth=3, iterations=12, every=12, lr=5e-4)


@pytest.mark.parametrize("name", ["rto", "sparse_dpo", "semi_rto", "ppo", "rs_ppo"])
def test_a_member_approaches_the_optimum(name):
    regrets = run(TREE, name)
    assert regrets["0"] > 1.5 and regrets["12"] < 0.03, regrets


def test_adapters_of_full_rank_approach_it_too():
    regrets = run(replace(TREE, rank=64, lr=1e-3, head=2.0), "rto")
    assert regrets["0"] > 1.5 and regrets["12"] < 0.02, regrets


def test_the_members_differ_in_where_they_are_paid_alone():
    reward = {name: settings(TREE, name, 0.1).reward for name in ("rto", "sparse_dpo", "semi_rto", "ppo", "rs_ppo")}
    assert {r.beta_2 for r in reward.values()} == {TREE.beta_2}
    assert [reward[name].granularity for name in ("rto", "sparse_dpo", "semi_rto")] == ["token", "response", "sentence"]
    assert (reward["ppo"].beta_1, reward["ppo"].beta_3) == (0.0, TREE.beta_1)
    assert reward["rs_ppo"].shaping_only and reward["rs_ppo"].beta_3 == TREE.beta_1
    assert settings(TREE, "grpo", 0.5).reward.beta_2 == TREE.beta_2 / 0.5
