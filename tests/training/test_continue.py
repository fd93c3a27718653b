"""A stage that goes on from what it saved, without a run around it; and what else a stage must keep to."""

import copy
from dataclasses import replace

import pytest
import torch

from rto_fast.config import DPOConfig, RMConfig, RTOConfig, SFTConfig, member
from rto_fast.model.scalar import critic_from
from rto_fast.rl.experience import PACKED, from_tensors
from rto_fast.stages.dpo import DPO
from rto_fast.stages.rm import RewardModel
from rto_fast.stages.sft import SFT
from rto_fast.training import loop
from tests.rl.test_family import GRPO, RM_LIMITS, length_score, state_of
from tests.stages.test_stages import CONFIG, CPU, LIMITS, OPTIM, demonstrations, fresh, learned, make_rto, pairs
from tests.tiny import language_model

ADAPTIVE = replace(CONFIG, reward=replace(CONFIG.reward, adaptive_kl_target=0.5, adaptive_kl_horizon=100))
SCHEDULE = replace(OPTIM, schedule="linear", warmup=0.3)


def made(kind: str):
    if kind == "rto":
        return make_rto(ADAPTIVE)[0]
    model = language_model("llama")
    if kind == "sft":
        return SFT(model, demonstrations(), SFTConfig(batch_size=3, epochs=3), fresh(model), **LIMITS)
    if kind == "dpo":
        return DPO(model, pairs(), DPOConfig(batch_size=3, epochs=3), fresh(model), **LIMITS)
    critic = critic_from(model, bias=False)
    return RewardModel(critic, pairs(), RMConfig(batch_size=3, epochs=3), state_of(critic), **RM_LIMITS)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("kind, at", [("sft", 3), ("dpo", 3), ("rm", 3), ("rto", 3), ("rto", 5), ("rto", 7)])
def test_a_stage_goes_on_from_any_step_as_if_nothing_had_happened(kind, at):
    whole, logs = made(kind), {}
    saved = []

    def keep(state):
        if state.step == at:
            saved.append(copy.deepcopy((state.step, *state.save())))

    whole.state.optim = SCHEDULE
    loop.train(whole, whole.state, logs.__setitem__, after_step=keep)
    again = made(kind)
    again.state.optim = SCHEDULE
    again.state.restore(*saved[0])
    torch.rand(9)  # the global stream is nobody's
    after = {}
    loop.train(again, again.state, after.__setitem__)
    ours, theirs = (x.state.save()[0]["weights"] for x in (again, whole))
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)
    assert list(after) == [step for step in logs if step > at]
    clock = ("tokens_per_second", "time/", "memory/")
    for step, metrics in after.items():
        same = {n: v for n, v in logs[step].items() if not n.startswith(clock)}
        assert {n: v for n, v in metrics.items() if not n.startswith(clock)} == same


def test_a_checkpoint_of_older_names_is_refused():
    """Under them pi_ref's log-probs would not be found, and be computed of the model as it is by then."""
    stage = made("dpo")
    next(iter(stage.steps()))
    parts, facts = copy.deepcopy(stage.state.save())
    parts["stage"]["reference"] = parts["stage"].pop("ref_logprobs")
    with pytest.raises(ValueError, match="checkpoint: an older rto_fast wrote it"):
        stage.state.restore(1, parts, facts)


def test_experience_comes_back_as_it_was():
    stage, _ = make_rto(replace(CONFIG, rollouts=16, reward=replace(CONFIG.reward, truncated="mask")))
    answers = stage.collector.answer(0)
    answers[1] = replace(answers[1], finish="eos")
    answers[2] = replace(answers[2], finish="length")
    experience, _ = learned(stage, answers)
    again = from_tensors(experience.tensors(), CPU)
    assert again.packed.max_seqlen == experience.packed.max_seqlen
    assert experience.kept.tolist() == [a.finish == "eos" for a in answers]
    for name in ("kept", "old_logprobs", "ref_logprobs", "values", "advantages", "returns"):
        assert torch.equal(getattr(again, name), getattr(experience, name))
    for name in PACKED:
        assert torch.equal(getattr(again.packed, name), getattr(experience.packed, name))


@pytest.mark.parametrize("kind", ["sft", "dpo", "rm", "rto"])
def test_no_micro_batch_is_larger_than_its_budget(kind):
    stage = made(kind)
    (stage.collector if kind == "rto" else stage).microbatch_rows = 40
    stage.num_steps = 1
    if kind != "rto":
        stage.epochs.batch_size = 8
    for step, _ in zip(stage.steps(), range(2), strict=False):
        assert len(step.batches) > 1 and all(b.packed.num_rows <= 40 for b in step.batches)


@pytest.mark.parametrize("kind", ["sft", "dpo", "rm"])
def test_each_epoch_has_its_own_order_and_sees_every_row_once(kind):
    stage = made(kind)
    stage.epochs.batch_size, stage.num_steps = 4, 6
    tokens = lambda batch: batch.packed.input_ids.tolist()  # noqa: E731
    seen = [sorted(x for batch in step.batches for x in [tuple(tokens(batch))]) for step in stage.steps()]
    epochs = [seen[i : i + 2] for i in (0, 2, 4)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    counts = [sorted(t for step in epoch for x in step for t in x) for epoch in epochs]
    assert counts[0] == counts[1] == counts[2]


def test_a_second_calibration_changes_nothing_that_is_scored():
    stage = made("rm")
    torch.nn.init.normal_(stage.model.head.weight)
    stage.calibrate()
    mean, std = stage.model.mean, stage.model.std
    stage.calibrate()
    assert (stage.model.mean, stage.model.std) == (pytest.approx(mean, abs=1e-5), pytest.approx(std, rel=1e-5))


def test_grpo_goes_as_often_over_the_prompts_as_it_is_told():
    config = member(replace(GRPO, iterations=None, epochs=3.0, rollouts=8, group=4), "grpo")
    stage, _ = make_rto(config, dpo_seed=None, scorer=length_score)
    assert len(stage.collector.prompts) == 5 and stage.collector.num_prompts == 2
    assert stage.iterations == 8  # 3 x 5 prompts, two in an iteration


def test_members_that_have_no_critic_ask_for_no_critics_model():
    config = replace(RTOConfig(), critic=replace(RTOConfig().critic, model="rm"))
    assert member(config, "grpo").critic.model is None and member(config, "ppo").critic.model == "rm"


def test_early_stopping_looks_at_the_last_pass_alone():
    stage, state = make_rto(replace(CONFIG, stop_kl=1e9, ppo_epochs=3, iterations=1))
    plain, weights = stage._mean_k3, []

    def looked() -> float:
        weights.append(float(state.tensors["moved"][1]))
        return plain()

    stage._mean_k3 = looked
    loop.train(stage, state, lambda *_: None)
    assert weights == [pytest.approx(16, rel=1e-5)] * 3  # 16 answers of weight 1 in each pass


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_a_sampler_that_is_off_either_way_is_seen(shift):
    stage, _ = make_rto(CONFIG)
    answers = stage.collector.answer(0)
    off = [replace(a, logprobs=[p + shift for p in a.logprobs]) for a in answers]
    _, said = learned(stage, off)
    assert float(said["sampler_gap/mean"]) == pytest.approx(1, abs=1e-3)
    assert float(said["sampler_gap/max"]) == pytest.approx(1, abs=1e-2)


def test_fewer_answers_than_rollouts_are_all_learned_from():
    """A bench, or whoever gives the answers, may have fewer."""
    stage, _ = make_rto(CONFIG)
    answers = stage.collector.answer(0)[:10]
    stage.collector.answer = lambda iteration, note: answers
    steps = [next(steps) for steps in [stage.steps()] for _ in range(2)]
    assert [sum(len(batch.packed.lengths) for batch in step.batches) for step in steps] == [8, 2]
