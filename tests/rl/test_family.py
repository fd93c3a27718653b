"""The reward model and the members of the RTO family: what sets each apart, and that it is nothing else."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rto_fast.config import CriticConfig, RewardConfig, RMConfig, RTOConfig, member
from rto_fast.data.encode import EncodedPair
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import critic_from
from rto_fast.packing import cumulative
from rto_fast.rl.groups import group_relative
from rto_fast.stages.rm import RewardModel
from rto_fast.stages.rto import RTO
from rto_fast.training import loop
from tests.stages.test_stages import CONFIG, LIMITS, OPTIM, learned, make_rto, one_step, pairs, run, scores_of
from tests.tiny import language_model

RM_LIMITS = {k: v for k, v in LIMITS.items() if k != "workspace_mb"}


def reward_model(seed: int = 3):
    model = critic_from(language_model("llama", seed), bias=False)
    torch.nn.init.normal_(model.head.weight)
    return model.double()


def state_of(model) -> loop.TrainState:
    return loop.make_state(OPTIM, {"policy": model})


def eager_score(model, tokens: list[int]) -> torch.Tensor:
    hidden = model.backbone(torch.tensor([tokens]), use_cache=False).last_hidden_state[0, -1]
    return (model.head.weight[0] * hidden).sum()


def test_the_reward_models_loss_is_bradley_terry():
    model = reward_model()
    expected = -sum(
        F.logsigmoid(eager_score(model, p.prompt + p.chosen) - eager_score(model, p.prompt + p.rejected))
        for p in pairs()
    ) / len(pairs())
    expected.backward()
    wanted = [p.grad.clone() for p in model.backbone.parameters()]
    model.zero_grad()
    stage = RewardModel(model, pairs(), RMConfig(batch_size=8), state_of(model), **RM_LIMITS)
    torch.testing.assert_close(one_step(stage), expected.detach(), rtol=1e-9, atol=1e-12)
    for got, want in zip(model.backbone.parameters(), wanted, strict=True):
        torch.testing.assert_close(got.grad, want, rtol=1e-6, atol=1e-9)


def test_a_reward_model_learns_and_is_calibrated():
    model = critic_from(language_model("llama", 3), bias=False)
    # token 7 is good, token 9 is bad
    rows = [EncodedPair([3 + i % 5], [4 + i % 3, 7, 2], [4 + i % 3, 9, 2]) for i in range(64)]
    stage = RewardModel(model, rows, RMConfig(batch_size=16, epochs=4), state_of(model), **RM_LIMITS)
    logs = []
    loop.train(stage, stage.state, lambda step, metrics: logs.append(metrics))
    assert logs[-1]["accuracy"] == 1.0 and logs[-1]["loss"] < 0.5 * logs[0]["loss"]
    stage.calibrate()
    texts = [p.prompt + answer for p in rows for answer in (p.chosen, p.rejected)]
    scores = last_token_scores(model, texts, 4096)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    blank = RewardModel(
        critic_from(language_model("llama", 3), bias=False), rows, RMConfig(), state_of(model), **RM_LIMITS
    )
    with pytest.raises(ValueError, match="rm: all scores are 0; nothing was learned"):
        blank.calibrate()


def test_gradients_of_the_reward_model_do_not_depend_on_micro_batching():
    def at(rows: int):
        model = reward_model()
        stage = RewardModel(
            model, pairs(), RMConfig(batch_size=8), state_of(model), **{**RM_LIMITS, "microbatch_rows": rows}
        )
        step = next(iter(stage.steps()))
        for loss, _ in (part for batch in step.batches for part in stage.losses(batch, step.total)):
            loss.backward()
        return len(step.batches), [p.grad for p in model.backbone.parameters()]

    (few, whole), (many, parts) = at(4096), at(40)
    assert few == 1 and many > 1
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def length_score(answers) -> list[float]:
    return [float(len(a.response)) for a in answers]


def stage_of(name: str, config: RTOConfig = CONFIG, **options) -> RTO:
    settings = member(config, name)
    return make_rto(settings, dpo_seed=1 if settings.reward.beta_1 else None, scorer=length_score, **options)[0]


def rewards_of(name: str, **options):
    """One rollout's answers and the rewards that a member pays for them."""
    stage = stage_of(name, **options)
    answers = stage.collector.answer(0)
    scores = torch.tensor(length_score(answers)) if stage.config.reward.beta_3 else None
    return answers, scores_of(stage, answers, scores).rewards


def per_answer(answers, x: torch.Tensor) -> list[torch.Tensor]:
    return list(x.split([len(a.response) for a in answers]))


def test_what_each_member_pays():
    ends = frozenset(range(10, 30))
    answers, rto = rewards_of("rto")
    paid = {name: rewards_of(name, sentence_end_ids=ends)[1] for name in ("ppo", "sparse_dpo", "semi_rto", "rs_ppo")}
    assert torch.equal(rewards_of("dppo")[1], paid["sparse_dpo"])
    # the policy is still the reference: no KL, so every member's rewards are what its formula says
    for i, answer in enumerate(answers):
        token, sparse, semi, sentence, shaped = (
            per_answer(answers, x)[i] for x in (rto, *(paid[n] for n in ("sparse_dpo", "semi_rto", "ppo", "rs_ppo")))
        )
        total, score = token.sum(), float(len(answer.response))
        torch.testing.assert_close(sparse.sum(), total, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(semi.sum(), total, rtol=1e-4, atol=1e-5)
        assert sparse[:-1].abs().max() < 1e-5 if len(sparse) > 1 else True
        quiet = [t for t, token_id in enumerate(answer.response[:-1]) if token_id not in ends]
        assert all(abs(float(semi[t])) < 1e-5 for t in quiet)
        # shaping moves credit to earlier tokens and takes it back: the return is the sentence score
        torch.testing.assert_close(shaped.sum(), torch.tensor(min(score, 10.0)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shaped[:-1], token[:-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sentence.sum(), torch.tensor(min(score, 10.0)), rtol=1e-4, atol=1e-4)


def test_ppo_never_needs_a_dpo_model_and_rto_never_a_score():
    config = RTOConfig()
    assert member(config, "ppo").reward == replace(config.reward, beta_1=0.0, beta_3=config.score_weight)
    assert member(config, "rto") is config and config.reward.beta_3 == 0
    given = replace(config, reward=RewardConfig(beta_3=0.5))
    assert member(given, "ppo").reward.beta_3 == member(given, "rs_ppo").reward.beta_3 == 0.5


OFFSETS = cumulative([3, 1, 2, 5])


def test_group_relative_advantages_of_outcomes():
    rewards = torch.tensor([0.0, 0.0, 1.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    got = group_relative(rewards, OFFSETS, 2, per_token=False)
    # answers' sums are 1 and 3, then 2 and 2: one group of mean 2 and deviation 1, one that says nothing
    torch.testing.assert_close(got, torch.tensor([-1.0] * 3 + [1.0] + [0.0] * 7), rtol=1e-5, atol=1e-6)


def test_group_relative_advantages_of_tokens():
    rewards = torch.randn(11, generator=torch.Generator().manual_seed(0))
    got = group_relative(rewards, OFFSETS, 2, per_token=True)
    bounds = OFFSETS.tolist()
    for k in range(4):
        first = k - k % 2
        all_tokens = rewards[bounds[first] : bounds[first + 2]].double()
        z = (rewards.double() - all_tokens.mean()) / (all_tokens.std(correction=0) + 1e-6)
        for t in range(bounds[k], bounds[k + 1]):
            assert float(got[t]) == pytest.approx(float(z[t : bounds[k + 1]].sum()), abs=1e-5)


GRPO = replace(CONFIG, critic=CriticConfig(kind="group"), group=4)


@pytest.mark.parametrize("token_rewards", [False, True])
def test_grpo_trains_without_a_critic_on_groups_of_one_prompt(token_rewards):
    stage, state = make_rto(
        GRPO if token_rewards else member(GRPO, "grpo"), dpo_seed=1 if token_rewards else None, scorer=length_score
    )

    assert stage.critic is None

    answers = stage.collector.answer(0)
    assert len(answers) == 16
    for g in range(0, 16, 4):
        assert len({tuple(a.prompt) for a in answers[g : g + 4]}) == 1
    assert len({tuple(a.response) for a in answers[:4]}) > 1
    experience, metrics = learned(stage, answers)
    assert experience.values.abs().max() == 0
    before = copy.deepcopy(stage.policy.hf)
    logs = []
    run(stage, state, logs)
    assert "value_loss" not in logs[0] and logs[0]["answers/total"] == 16
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), stage.policy.hf.parameters(), strict=True))


def test_grpo_without_a_signal_is_pulled_to_the_reference_alone():
    """All answers score alike: the advantages are 0, and only the KL of the loss is left."""
    settings = member(replace(GRPO, reward=RewardConfig(0.0, 0.5)), "grpo")
    stage, _ = make_rto(settings, dpo_seed=None, scorer=lambda answers: [1.0] * len(answers))

    with torch.no_grad():
        for p in stage.policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    answers = stage.collector.answer(0)
    experience, _ = learned(stage, answers)
    assert experience.advantages.abs().max() < 1e-4
    stage.state.progress["iteration"] = 0
    step = stage._step(experience, list(range(16)), {})
    loss = sum(loss for batch in step.batches for loss, _ in stage.losses(batch, 1.0))
    gap = experience.ref_logprobs - experience.old_logprobs
    per_answer_mean = [x.mean() for x in per_answer(answers, 0.5 * (gap.expm1() - gap))]
    torch.testing.assert_close(loss.detach(), sum(per_answer_mean), rtol=1e-3, atol=1e-3)


def test_one_beta_2_weighs_an_iteration_in_its_loss_and_in_its_log():
    """The controller's answer to a rollout's KL is the next iteration's beta_2."""
    reward = RewardConfig(0.0, 0.5, adaptive_kl_target=50.0, adaptive_kl_horizon=16)
    settings = member(replace(GRPO, reward=reward, ppo_epochs=1, minibatch=16, average="token"), "grpo")
    logs, sums = [], []
    stage, state = make_rto(settings, dpo_seed=None, scorer=lambda answers: [1.0] * len(answers))
    with torch.no_grad():
        for p in stage.policy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    plain = stage._step

    def step(experience, *rest):
        gap = experience.ref_logprobs - experience.old_logprobs  # all answers score alike: the loss is the KL's alone
        sums.append(float((gap.expm1() - gap).mean()))
        return plain(experience, *rest)

    stage._step = step
    run(stage, state, logs)
    assert [m["beta_2"] for m in logs] == pytest.approx([0.5, 0.5 * 0.8])
    assert [m["loss"] for m in logs] == pytest.approx([m["beta_2"] * kl for m, kl in zip(logs, sums, strict=True)])
    assert state.progress["beta_2"] == pytest.approx(0.5 * 0.8**2)


def test_an_iteration_that_goes_on_elsewhere_adapts_beta_2_by_its_own_kl():
    """What the rollout's KL was is in the state, for the controller answers it when the last step is done."""
    reward = RewardConfig(0.0, 0.5, adaptive_kl_target=30.0, adaptive_kl_horizon=16)

    def moved():
        stage, state = make_rto(
            member(replace(GRPO, reward=reward), "grpo"), dpo_seed=None, scorer=lambda answers: [1.0] * len(answers)
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for p in stage.policy.parameters():
                p.add_(0.05 * torch.randn_like(p))
        return stage, state

    stage, state = moved()
    logs, saved = [], []

    def save(state):
        if state.step == 2:  # the iteration has four
            saved.extend(copy.deepcopy(state.save()))

    loop.train(stage, state, lambda step, metrics: logs.append(metrics), after_step=save)
    assert 0.8 < logs[0]["kl/per_answer"] / 30.0 < 1.2  # not so far off that any KL would do
    other, again = moved()
    again.restore(2, *saved)
    run(other, again)
    assert again.progress["beta_2"] == state.progress["beta_2"] != 0.5
    assert all(torch.equal(a, b) for a, b in zip(stage.policy.parameters(), other.policy.parameters(), strict=True))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"rto.group must be at least 2 \(one answer has none to be compared with\)"):
        replace(GRPO, group=1)
    with pytest.raises(ValueError, match="rto.rollouts must be a multiple of group = 5, got 16"):
        replace(GRPO, group=5)
