"""Stages on tiny models: their losses against eager definitions, and the laws of the loop."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from rto_fast.config import CriticConfig, DPOConfig, OptimConfig, RewardConfig, RTOConfig, SFTConfig
from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.model.load import load_scalar_model
from rto_fast.model.logprobs import last_token_scores
from rto_fast.model.scalar import ScalarModel, critic_from
from rto_fast.packing import pack
from rto_fast.rl.collect import Collector
from rto_fast.rl.score import Models
from rto_fast.stages.dpo import DPO
from rto_fast.stages.rto import RTO
from rto_fast.stages.sft import SFT
from rto_fast.training import loop
from tests.tiny import language_model, sequences

CPU = torch.device("cpu")
LIMITS = dict(seed=0, microbatch_rows=4096, workspace_mb=16, device=CPU)
LENGTHS = [(3, 4), (2, 9), (5, 2), (4, 4), (2, 1), (6, 7), (3, 12), (1, 5)]
OPTIM = OptimConfig(lr=1e-3, schedule="constant", warmup=0.0)


def pairs() -> list[EncodedPair]:
    prompts, chosen = sequences(LENGTHS)
    _, rejected = sequences(LENGTHS[::-1], seed=1)
    return [EncodedPair(*row) for row in zip(prompts, chosen, rejected, strict=True)]


def demonstrations() -> list[EncodedDemonstration]:
    return [EncodedDemonstration(p, r) for p, r in zip(*sequences(LENGTHS), strict=True)]


def eager_logprob(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """() log-prob of a response by the model's own padded-free forward, without any of our operators."""
    model.hf.set_attn_implementation("sdpa")
    tokens = torch.tensor([prompt + response])
    logprobs = model.hf(tokens, use_cache=False).logits[0, :-1].log_softmax(-1)
    model.hf.set_attn_implementation("rto_packed")
    return logprobs.gather(1, tokens[0, 1:, None])[len(prompt) - 1 :].sum()


def gradients(model) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters()]


def fresh(model) -> loop.TrainState:
    return loop.make_state(OPTIM, {"policy": model})


def one_step(stage) -> torch.Tensor:
    """Gradient of the first step's loss; the modules keep it."""
    step = next(iter(stage.steps()))
    total = sum(loss for batch in step.batches for loss, _ in stage.losses(batch, step.total))
    total.backward()
    return total.detach()


@pytest.mark.parametrize("loss, smoothing", [("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0)])
def test_dpo_equals_its_eager_definition_in_float64(loss, smoothing):
    model, beta = language_model("llama").double(), 0.3
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    rows = pairs()

    def eager(m):
        terms = []
        for row in rows:
            with torch.no_grad():
                ref = eager_logprob(model, row.prompt, row.chosen) - eager_logprob(model, row.prompt, row.rejected)
            margin = eager_logprob(m, row.prompt, row.chosen) - eager_logprob(m, row.prompt, row.rejected) - ref
            if loss == "ipo":
                terms.append((margin - 1 / (2 * beta)) ** 2)
            else:
                terms.append(-(1 - smoothing) * F.logsigmoid(beta * margin) - smoothing * F.logsigmoid(-beta * margin))
        return sum(terms) / len(terms)

    expected = eager(trained)
    expected.backward()
    wanted = gradients(trained)
    trained.zero_grad()
    config = DPOConfig(beta=beta, loss=loss, label_smoothing=smoothing, batch_size=8)
    stage = DPO(model, rows, config, fresh(model), **LIMITS)
    stage.state.tensors["ref_logprobs"] = stage._reference_logprobs()
    stage.model = trained
    # the reference sums are kept in float32: a few 1e-7 of 30 nats
    torch.testing.assert_close(one_step(stage), expected.detach(), rtol=1e-5, atol=1e-6, check_dtype=False)
    for got, want in zip(gradients(trained), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("average", ["token", "sequence"])
def test_sft_is_the_mean_negative_log_likelihood(average):
    model = language_model("gpt_neox").double()
    rows = demonstrations()
    stage = SFT(model, rows, SFTConfig(batch_size=8, average=average), fresh(model), **LIMITS)
    each = [-eager_logprob(model, d.prompt, d.response) for d in rows]
    if average == "token":
        expected = sum(each) / sum(len(d.response) for d in rows)
    else:
        expected = sum(x / len(d.response) for x, d in zip(each, rows, strict=True)) / len(rows)
    torch.testing.assert_close(one_step(stage), expected.detach(), rtol=1e-6, atol=0)


def make_rto(config: RTOConfig, *, dpo_seed: int | None = 1, double: bool = False, **options):
    """An RTO stage on tiny models; the DPO model is the reference when dpo_seed is 0."""
    policy = language_model("llama", 0)
    dpo = None if dpo_seed is None else language_model("llama", dpo_seed)
    reference = copy.deepcopy(policy)
    critic = critic_from(reference) if config.critic.kind == "separate" else None
    if config.critic.kind == "shared":
        policy.add_value_head()
    state = loop.make_state(OPTIM, {"policy": policy, "critic": critic})
    if double:
        for m in (policy, reference, dpo, critic):
            m.double()
    prompts = sequences([(n, 1) for n in (1, 3, 4, 7, 2)])[0]
    options = {"eos_token_ids": (2, 5), "max_new_tokens": 12, **LIMITS, **options}
    collector = Collector(models=Models(policy, reference, dpo, critic), prompts=prompts, config=config, **options)
    return RTO(collector, state), state


def learned(stage, answers=None):
    """The experience of an iteration's answers, and its metrics."""
    answers = stage.collector.answer(0) if answers is None else answers
    return stage.collector.experience(answers, stage.state.progress["beta_2"])


def scores_of(stage, answers, sentence_scores=None):
    """Every model's scores of answers."""
    packed = pack([a.prompt for a in answers], [a.response for a in answers], stage.config.average)
    truncated = torch.tensor([a.finish == "length" for a in answers])
    beta_2 = 0.0 if stage.collector.grouped else stage.state.progress["beta_2"]
    return stage.collector.score(packed, beta_2, sentence_scores, truncated)


CONFIG = RTOConfig(RewardConfig(0.1, 0.03, clip=0.2), iterations=2, rollouts=16, minibatch=8)


def run(stage, state, logs=None):
    record = (lambda step, metrics: logs.append(metrics)) if logs is not None else (lambda *_: None)
    loop.train(stage, state, record)
    return stage


@pytest.mark.parametrize("which", ["sft", "dpo", "rto"])
def test_gradients_do_not_depend_on_micro_batching(which):
    def at(rows: int):
        limits = {**LIMITS, "microbatch_rows": rows}
        if which == "rto":
            stage, _ = make_rto(CONFIG, microbatch_rows=rows)
            stage.policy.zero_grad()
        else:
            model = language_model("llama").double()
            stage = (
                SFT(model, demonstrations(), SFTConfig(batch_size=8), fresh(model), **limits)
                if which == "sft"
                else DPO(model, pairs(), DPOConfig(batch_size=8), fresh(model), **limits)
            )
        step = next(iter(stage.steps()))
        for loss, _ in (part for batch in step.batches for part in stage.losses(batch, step.total)):
            loss.backward()
        return len(step.batches), gradients(stage.policy if which == "rto" else stage.model)

    (few, whole), (many, parts) = at(4096), at(40)
    assert few == 1 and many > 1
    tolerance = dict(rtol=2e-3, atol=2e-6) if which == "rto" else dict(rtol=1e-9, atol=1e-12)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_the_first_ratio_is_one_and_the_first_kl_is_zero():
    logs = []
    run(*make_rto(CONFIG), logs)
    assert logs[0]["ratio_gap"] < 1e-5
    assert abs(logs[0]["kl/per_answer"]) < 1e-4 and abs(logs[0]["kl/k3"]) < 1e-6
    assert logs[0]["sampler_gap/max"] < 1e-4
    assert logs[2]["ratio_gap"] > 1e-4  # the second epoch has moved


def test_a_dpo_model_that_is_the_reference_pays_nothing():
    logs = []
    run(*make_rto(replace(CONFIG, iterations=1), dpo_seed=0), logs)
    assert logs[0]["reward/dense_abs"] == 0.0 and abs(logs[0]["reward/implicit_per_answer"]) < 1e-4


def test_beta_1_of_zero_needs_no_dpo_model_and_equals_ppo():
    config = replace(CONFIG, reward=RewardConfig(0.0, 0.03))
    without, with_one = run(*make_rto(config, dpo_seed=None)), run(*make_rto(config, dpo_seed=1))
    for a, b in zip(without.policy.parameters(), with_one.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="beta_1 = 0.1 needs a DPO model"):
        make_rto(CONFIG, dpo_seed=None)


def test_a_seed_reproduces_every_bit():
    first, second = run(*make_rto(CONFIG)), run(*make_rto(CONFIG))
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    other = run(*make_rto(CONFIG, seed=1))
    assert not all(torch.equal(a, b) for a, b in zip(first.policy.parameters(), other.policy.parameters(), strict=True))


def test_every_prompt_is_answered_once_before_any_is_answered_again():
    stage, _ = make_rto(replace(CONFIG, rollouts=4, iterations=5))
    seen = [a.prompt for i in range(5) for a in stage.collector.answer(i)]
    for p in range(4):
        assert sorted(seen[5 * p : 5 * p + 5]) == sorted(stage.collector.prompts)


def test_a_shared_trunk_trains_policy_and_value_head():
    stage, state = make_rto(replace(CONFIG, critic=CriticConfig(kind="shared")))
    before = copy.deepcopy(stage.policy)
    run(stage, state)
    assert stage.policy.value_head.weight.abs().max() > 0
    assert not torch.equal(before.hf.lm_head.weight, stage.policy.hf.lm_head.weight)


def test_critic_warm_up_leaves_the_policy_alone():
    config = replace(CONFIG, critic=CriticConfig(warmup_iterations=2))
    stage, state = make_rto(config)
    before = copy.deepcopy(stage.policy)
    run(stage, state)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), stage.policy.parameters(), strict=True))
    assert stage.critic.head.weight.abs().max() > 0


def test_early_stopping_ends_an_iterations_passes():
    logs = []
    run(*make_rto(replace(CONFIG, stop_kl=1e-12, ppo_epochs=4)), logs)
    assert len(logs) == 2 * 2  # one pass of two mini-batches for each of two iterations


def test_adaptive_kl_moves_beta_2_towards_its_target():
    reward = RewardConfig(0.1, 0.03, adaptive_kl_target=50.0, adaptive_kl_horizon=16)
    stage, state = make_rto(replace(CONFIG, reward=reward))
    run(stage, state)
    assert state.progress["beta_2"] == pytest.approx(0.03 * 0.8**2)


def test_masked_truncated_answers_do_not_train():
    config = replace(CONFIG, reward=replace(CONFIG.reward, truncated="mask"))
    stage, state = make_rto(config, eos_token_ids=())
    before = copy.deepcopy(stage.policy)
    run(stage, state)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), stage.policy.parameters(), strict=True))


def test_a_missing_eos_is_paid_for_at_the_last_token():
    stage, _ = make_rto(replace(CONFIG, reward=RewardConfig(0.1, 0.03, missing_eos_penalty=5.0)), eos_token_ids=())
    plain, _ = make_rto(replace(CONFIG, reward=RewardConfig(0.1, 0.03)), eos_token_ids=())
    paid, free = (learned(s)[1]["reward/per_answer"] for s in (stage, plain))
    assert float(paid - free) == pytest.approx(-5.0, abs=1e-4)


@pytest.mark.parametrize("granularity", ["sentence", "response"])
def test_every_granularity_pays_the_same_sum(granularity):
    coarse, fine = (
        make_rto(
            replace(CONFIG, reward=RewardConfig(0.1, 0.03, granularity=g)), sentence_end_ids=frozenset(range(10, 20))
        )[0]
        for g in (granularity, "token")
    )
    (later, paid_later), (now, paid_now) = (learned(s) for s in (coarse, fine))
    assert float(paid_later["reward/per_answer"]) == pytest.approx(float(paid_now["reward/per_answer"]), abs=1e-5)
    assert not torch.allclose(later.returns, now.returns)


def test_scores_of_whole_texts_are_those_of_their_last_token():
    backbone = critic_from(language_model("llama", 3))
    torch.nn.init.normal_(backbone.head.weight)
    scorer = ScalarModel(backbone.backbone, backbone.head, mean=0.5, std=2.0)
    texts = [p + r for p, r in zip(*sequences([(1, 1), (4, 9), (7, 3), (2, 2), (5, 6)]), strict=True)]
    got = last_token_scores(scorer, texts, microbatch_rows=16)
    for text, score in zip(texts, got, strict=True):
        hidden = scorer.backbone(torch.tensor([text]), use_cache=False).last_hidden_state
        expected = (scorer.head(hidden[0, -1]) - 0.5) / 2.0
        torch.testing.assert_close(score, expected[0], rtol=1e-4, atol=1e-5)


def test_a_sentence_score_is_paid_at_the_last_token_and_nowhere_else():
    config = replace(CONFIG, reward=RewardConfig(0.0, 0.0, beta_3=2.0), lam=1.0)
    asked = []

    def scorer(answers):
        asked.append(len(answers))
        return [0.5 * len(a.response) for a in answers]

    stage, _ = make_rto(config, dpo_seed=None, scorer=scorer, watch=scorer)
    answers = stage.collector.answer(0)
    experience, metrics = learned(stage, answers)
    lengths = torch.tensor([float(len(a.response)) for a in answers])
    # the critic starts at 0, so the return to go is the score, on every row
    torch.testing.assert_close(experience.returns, lengths.repeat_interleave(lengths.long()).clamp_max(20.0))
    assert asked == [len(answers)] and metrics["judge/return"] == pytest.approx(float(lengths.mean()) / 2)
    with pytest.raises(ValueError, match="beta_3 = 2.0 needs a sentence score"):
        make_rto(config, dpo_seed=None)


def test_a_nan_in_a_reward_names_its_source_and_updates_nothing():
    stage, state = make_rto(CONFIG)
    with torch.no_grad():
        stage.collector.models.dpo.hf.lm_head.weight[7] = math.nan
    before = copy.deepcopy(stage.policy)
    with pytest.raises(ValueError, match="rto.reward: a reward is not finite, from the DPO model's log-probs"):
        run(stage, state)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), stage.policy.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer():
    model = language_model("llama")
    state = fresh(model)
    stage = SFT(model, demonstrations(), SFTConfig(batch_size=8), state, **LIMITS)
    before = copy.deepcopy(model)
    broken = stage.losses
    stage.losses = lambda *given: ((loss * math.nan, {}) for loss, _ in broken(*given))
    with pytest.raises(FloatingPointError, match="step 1: the gradient is not finite"):
        loop.train(stage, state, lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))


def test_the_policys_graph_is_gone_before_the_critics_is_made():
    """Else the activations of both would be there at once."""
    stage, state = make_rto(CONFIG)
    policy, critic, learned = list(stage.policy.parameters()), list(stage.critic.parameters()), []

    def look(*_):
        if torch.is_grad_enabled():
            learned.append(all(p.grad is not None for p in policy))

    stage.critic.backbone.register_forward_pre_hook(look)
    loop.train(stage, state, lambda *_: None)
    assert learned and all(learned)
    step = next(iter(make_rto(CONFIG)[0].steps()))
    parts = stage.losses(step.batches[0], step.total)
    next(parts)[0].backward()
    assert all(p.grad is not None for p in policy) and all(p.grad is None for p in critic)
    next(parts)[0].backward()
    assert all(p.grad is not None for p in critic) and next(parts, None) is None


def test_the_heads_gradient_is_one_tensor_that_every_micro_batch_adds_to():
    model = language_model("llama")
    weight = model.hf.lm_head.weight
    stage = SFT(model, demonstrations(), SFTConfig(batch_size=8), fresh(model), **{**LIMITS, "microbatch_rows": 40})
    step, places = next(iter(stage.steps())), set()
    for batch in step.batches:
        for loss, _ in stage.losses(batch, step.total):
            loss.backward()
        places.add(weight.grad.data_ptr())
    assert len(step.batches) > 1 and len(places) == 1
    with torch.no_grad():
        assert model.head_gradient() is None
    weight.requires_grad_(False)
    assert model.head_gradient() is None


def test_the_norm_of_no_gradients_lies_where_the_network_does():
    """A policy has none while its critic warms up; a norm on the CPU would end such a run on a GPU."""
    norm = loop._clip([torch.nn.Parameter(torch.empty(3, device="meta"))], 1.0)
    assert norm.device.type == "meta" and norm.shape == ()


def test_gradients_are_clipped_for_each_network_apart():
    logs = []
    stage, state = make_rto(CONFIG)
    run(stage, state, logs)
    assert {"grad_norm/policy", "grad_norm/critic"} <= set(logs[0])


@pytest.mark.parametrize("schedule, last", [("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)])
def test_the_learning_rate_rises_and_falls(schedule, last):
    config = OptimConfig(lr=1.0, warmup=0.1, schedule=schedule, min_lr=0.1)
    factors = [loop.lr_factor(s, 100, config) for s in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0)
    assert factors[99] == pytest.approx(last, abs=0.02)


@pytest.mark.parametrize("name", ["score", "value_head"])
def test_reward_models_of_others_load_with_head_and_calibration(name, tmp_path):
    source = language_model("llama", 4)
    source.hf.config.mean, source.hf.config.std = 0.25, 4.0
    source.hf.save_pretrained(tmp_path)
    head = torch.randn(1, 48)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file({**weights, f"{name}.weight": head}, tmp_path / "model.safetensors", {"format": "pt"})
    scorer = load_scalar_model(str(tmp_path))
    batch = pack([[3, 4]], [[5, 6]])
    hidden = source(batch, lambda hidden, _: batch.responses(hidden))
    torch.testing.assert_close(scorer(batch), ((hidden @ head.T)[:, 0] - 0.25) / 4.0, rtol=1e-5, atol=1e-6)


def test_a_reward_model_without_a_head_is_named(tmp_path):
    language_model("llama").hf.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"rm.model: .* holds no score.weight or value_head.weight"):
        load_scalar_model(str(tmp_path))


def test_autocast_keeps_rewards_and_values_in_float32():
    """What a GPU runs by default, float32 weights and bfloat16 arithmetic, tried on the CPU."""
    stage, state = make_rto(CONFIG)
    answers = stage.collector.answer(0)
    exact = scores_of(stage, answers)
    with torch.autocast("cpu", torch.bfloat16):
        same = scores_of(stage, answers)
    for name in ("old_logprobs", "ref_logprobs", "dpo_logprobs", "values", "rewards", "advantages"):
        assert getattr(same, name).dtype == torch.float32
    for name in ("old_logprobs", "ref_logprobs", "dpo_logprobs"):  # every model runs in bfloat16
        assert not torch.equal(getattr(same, name), getattr(exact, name))
    assert 0 < (same.old_logprobs - exact.old_logprobs).abs().max() < 0.3
    logs = []
    loop.train(stage, state, lambda step, metrics: logs.append(metrics), autocast=torch.bfloat16)
    assert logs[0]["ratio_gap"] < 1e-5 and abs(logs[0]["kl/per_answer"]) < 1e-4
    assert all(math.isfinite(value) for metrics in logs for value in metrics.values())
