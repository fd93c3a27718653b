"""Whole runs of every stage against their derivation from the papers, for every setting that there is.

The product works in float32 from packed rows, the derivation in float64 from padded texts. Their `distance`, one
thousandth of the way that a weight goes or one part in 10,000 of a metric, is .01 to .04 for the same run; a setting
moves the numbers by 50 or more (70 measured, for the shape of SFT's schedule).
"""

import copy

import pytest

from rto_fast.model.language import LanguageModel
from rto_fast.runs.open import Context
from rto_fast.training.metrics import SHOWN
from rto_fast.training.seeds import derive
from tests.derivation.cases import BASE, CASES, every_field
from tests.derivation.place import Place, distance, made_up, worth

LOADED: dict[str, LanguageModel] = {}
MEMBERS = ["rto", "ppo", "sparse_dpo", "semi_rto", "rs_ppo", "grpo"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place.at(tmp_path_factory.mktemp("derivation"))


@pytest.fixture(autouse=True)
def answers_and_scores(monkeypatch):
    """Who answers and who scores is replaced; what they are asked is not. A model is read once and copied."""

    def rollout(model, prompts, sampling, eos_token_ids, *, seed, max_batch, progress, places):
        return made_up(prompts, sampling, eos_token_ids, seed, max_batch)

    def scorer(source):
        return lambda answers: worth(source, [(a.prompt, a.response, a.finished, a.reference) for a in answers])

    def server(url, *, timeout, retries, batch):
        return scorer((url, timeout, retries, batch))

    plain = Context.load

    def load(context, path, field="model.path", trained=False, device=None):  # all the same in float32
        if path not in LOADED:
            LOADED[path] = plain(context, path, field, trained)
        return copy.deepcopy(LOADED[path])

    monkeypatch.setattr(Context, "load", load)
    monkeypatch.setattr("rto_fast.rl.collect.rollout", rollout)
    monkeypatch.setattr("rto_fast.judges.rules.rule_scorer", scorer)
    monkeypatch.setattr("rto_fast.judges.server.server_scorer", server)


def same(place: Place, stage: str, settings: dict[str, object]) -> None:
    ours, theirs = place.product(stage, settings), place.derived(stage, settings)
    assert [sorted(x) for x in ours.steps] == [sorted(x) for x in theirs.steps]
    gap = distance(ours, theirs)
    assert gap < 0.2


@pytest.mark.parametrize("stage", ["sft", "dpo", "rm", *MEMBERS])
def test_a_stage_equals_its_derivation(place, stage):
    same(place, stage, {})


@pytest.mark.parametrize(
    "stage, given, field, value",
    [(stage, given, field, value) for field, cases in CASES.items() for stage, given, value in cases],
    ids=lambda x: "+".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else None,
)
def test_a_setting_changes_a_stage_and_its_derivation_alike(place, stage, given, field, value):
    changed = {**given, field: value}
    same(place, stage, changed)
    gap = distance(place.derived(stage, given), place.derived(stage, changed))
    assert gap > 50


def test_every_setting_is_covered():
    """A new setting comes with a case: a value that changes the numbers, in the product and in the derivation."""
    wanted = [name for part, config in BASE.items() for name in every_field(config, part)]
    assert sorted(wanted) == sorted(CASES)


def test_what_the_progress_bar_shows_is_derived(place):
    """Its other numbers are the machine's."""
    derived = {name for stage in ("sft", "dpo", "rm", "rto") for x in place.derived(stage, {}).steps for name in x}
    assert set(SHOWN) - derived == {"tokens_per_second"}


@pytest.mark.parametrize("stage", ["sft", "dpo", "rm", "rto", "grpo"])
def test_a_run_is_its_seeds_own_and_no_micro_batchs(place, stage):
    same(place, stage, {"seed": 1})
    gap = distance(place.derived(stage, {"seed": 1}), place.derived(stage, {}))
    assert gap > 50
    same(place, stage, {"microbatch_rows": 40})


def test_the_reward_model_looks_on_where_nothing_is_paid_by_it(place):
    settings = {"rto.reward.beta_3": 0.0, "stages": ("sft", "dpo", "rm", "rto")}
    same(place, "rto", settings)
    assert all(("judge/return" in step) == ("iteration" in step) for step in place.derived("rto", settings).steps)


def test_no_two_iterations_share_their_random_numbers(place):
    """Nor does an iteration's rollout share them with a pass over prompts or answers."""
    where = [("rollout", k) for k in range(4)] + [("prompts", p) for p in range(4)] + [("rto", 0, 0), ("rto", 0, 1)]
    assert len({derive(0, *w) for w in where}) == len(where)
