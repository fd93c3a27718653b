"""The decoder against plain forwards without a cache, against generate, and against the laws of its sampler."""

import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rto_fast.rollout import Sampling, rollout
from rto_fast.rollout.sampling import draw, uniform_streams

V = 97
small = dict(vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
small |= dict(max_position_embeddings=128, initializer_range=0.3)
gqa = small | dict(num_key_value_heads=2)
CONFIGS = {
    "llama": LlamaConfig(**gqa),
    "neox": GPTNeoXConfig(**small),
    "qwen2": Qwen2Config(**gqa),
    "qwen3": Qwen3Config(**gqa, head_dim=16),
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3),
    "mistral_window": MistralConfig(**gqa, sliding_window=5),
    "gemma2_window": Gemma2Config(**gqa, head_dim=8, sliding_window=5),
    "gemma3_window": Gemma3TextConfig(
        **gqa, head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    ),
}
GREEDY = Sampling(temperature=0, max_new_tokens=12)


def build(name, attention="sdpa"):
    torch.manual_seed(0)
    attention = "eager" if name.startswith("gemma2") else attention  # its soft-cap is not in sdpa
    return AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()


def ragged(num=9, low=1, high=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (num,), generator=generator).tolist()
    return [torch.randint(3, V, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def forward_logprobs(model, prompt, response, sampling=None):
    """Log-probs of the response's tokens from one forward without a cache."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].float()
    if sampling is not None and sampling.temperature > 0:
        logits = logits / sampling.temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0], logits


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_a_forward_without_cache(name, attention):
    model, prompts = build(name, attention), ragged()
    for answer in rollout(model, prompts, GREEDY, (), seed=0, max_batch=4):
        logprobs, logits = forward_logprobs(model, answer.prompt, answer.response)
        assert answer.response == logits.argmax(-1).tolist()
        torch.testing.assert_close(torch.tensor(answer.logprobs), logprobs, atol=1e-4, rtol=0)
        assert answer.finish == "length" and len(answer.response) == 12


@pytest.mark.parametrize("name", ["llama", "neox", "gpt2", "gemma3_window"])
def test_batch_size_does_not_change_samples(name):
    model, prompts, sampling = build(name), ragged(20), Sampling(temperature=0.8, max_new_tokens=12)
    eos = tuple(range(3, 12))
    runs = [rollout(model, prompts, sampling, eos, seed=5, max_batch=b) for b in (1, 7, 64)]
    assert [a.response for a in runs[0]] == [a.response for a in runs[1]] == [a.response for a in runs[2]]
    assert [a.prompt for a in runs[0]] == prompts
    assert len({len(a.response) for a in runs[0]}) > 3
    for one, many in zip(runs[0], runs[2], strict=True):
        assert one.finish == many.finish
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(many.logprobs), atol=1e-4, rtol=0)
        logprobs, _ = forward_logprobs(model, one.prompt, one.response, sampling)
        torch.testing.assert_close(torch.tensor(one.logprobs), logprobs, atol=1e-4, rtol=0)


def test_streams_belong_to_places_in_the_list():
    model, prompts, sampling = build("llama"), ragged(8), Sampling(max_new_tokens=10)
    full = rollout(model, prompts, sampling, (3,), seed=2)
    assert [a.response for a in rollout(model, prompts[:5], sampling, (3,), seed=2)] == [a.response for a in full[:5]]
    longer = rollout(model, prompts, Sampling(max_new_tokens=15), (3,), seed=2)
    assert [a.response[:10] for a in longer] == [a.response for a in full]
    greedy = rollout(model, prompts, GREEDY, (3,), seed=2)
    back = rollout(model, prompts[::-1], GREEDY, (3,), seed=3)
    assert [a.response for a in greedy] == [a.response for a in back[::-1]]
    same = rollout(model, [prompts[0]] * 8, sampling, (3,), seed=2)
    assert len({tuple(a.response) for a in same}) == 8


def test_seeds_reproduce_and_differ():
    model, prompts = build("llama"), ragged()
    first, again, other = (rollout(model, prompts, Sampling(max_new_tokens=8), (), seed=s) for s in (1, 1, 2))
    assert first == again
    assert [a.response for a in first] != [a.response for a in other]


def test_any_eos_ends_an_answer_and_is_an_action():
    model, prompts = build("llama"), ragged(40)
    eos = (5, 17, 60, 61, 62)
    finishes = set()
    for answer in rollout(model, prompts, Sampling(max_new_tokens=20), eos, seed=0, max_batch=16):
        assert not set(answer.response[:-1]) & set(eos)
        assert len(answer.logprobs) == len(answer.response) <= 20
        assert (answer.finish == "eos") == (answer.response[-1] in eos)
        assert answer.finish == "eos" or len(answer.response) == 20
        finishes.add(answer.finish)
    assert finishes == {"eos", "length"}


def test_an_answer_that_ends_at_the_limit_has_ended():
    model = build("llama")
    every = tuple(range(V))
    for answer in rollout(model, [[3], [4, 5]], Sampling(max_new_tokens=1), every, seed=0):
        assert answer.finish == "eos" and len(answer.response) == 1


def test_cache_grows_past_its_first_capacity():
    model, prompts = build("llama"), ragged(3, 1, 4)
    for answer in rollout(model, prompts, Sampling(max_new_tokens=120), (), seed=0):
        logprobs, _ = forward_logprobs(model, answer.prompt, answer.response)
        torch.testing.assert_close(torch.tensor(answer.logprobs), logprobs, atol=1e-4, rtol=0)


def test_bfloat16_and_modes():
    model = build("llama").bfloat16().train()
    model.lm_head.eval()
    model.config.use_cache = False
    (answer,) = rollout(model, [[3, 4]], Sampling(max_new_tokens=4), (), seed=0)
    assert len(answer.response) == 4
    assert model.training and model.model.training and not model.lm_head.training
    model(input_ids=torch.tensor([answer.prompt + answer.response]), use_cache=False).logits.sum().backward()


def test_a_model_that_was_sampled_from_can_still_be_trained():
    # dynamic rope rewrites its buffers during the forward: they must not be lost to autograd
    rope = dict(rope_type="dynamic", factor=4.0, rope_theta=10000.0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**gqa | dict(max_position_embeddings=32), rope_parameters=rope)
    )
    model.config.max_position_embeddings = 128
    rollout(model, [[3] * 40, [4] * 3], Sampling(max_new_tokens=4), (), seed=0)
    for length in (50, 8):
        model(input_ids=torch.full((1, length), 5), use_cache=False).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_progress_counts_answers():
    seen = []
    rollout(build("llama"), ragged(20), Sampling(max_new_tokens=6), tuple(range(30)), seed=0, progress=seen.append)
    assert sum(seen) == 20
    assert rollout(build("llama"), [], Sampling(), (), seed=0) == []


def test_errors_name_the_field():
    model = build("llama")
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        rollout(model, [[3], []], GREEDY, (), seed=0)
    with pytest.raises(ValueError, match="max_position_embeddings=128; shorten the prompt to 116"):
        rollout(model, [[3] * 117], GREEDY, (), seed=0)
    with pytest.raises(ValueError, match="max_context=20"):
        rollout(model, [[3] * 10], GREEDY, (), seed=0, max_context=20)
    with pytest.raises(ValueError, match="=128; lower max_new_tokens"):
        rollout(model, [[3]], Sampling(max_new_tokens=128), (), seed=0)
    with pytest.raises(ValueError, match="max_batch"):
        rollout(model, [[3]], GREEDY, (), seed=0, max_batch=0)
    torch.nn.init.constant_(model.train().lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="prompt 0 after 0 new tokens are not finite"):
        rollout(model, [[3]], Sampling(max_new_tokens=9), (), seed=0)
    assert model.training
    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(ValueError, match="MambaForCausalLM"):
        rollout(mamba, [[3, 4]], GREEDY, (), seed=0)
    for bad in (dict(temperature=-1), dict(top_k=0), dict(top_p=0), dict(top_p=1.5), dict(max_new_tokens=0)):
        with pytest.raises(ValueError, match=f"Sampling.{next(iter(bad))}"):
            Sampling(**bad)


def reference_distribution(logits, sampling):
    """Sequential temperature, top-k, top-p on one row, in float64."""
    probs = (logits.double() / sampling.temperature).softmax(-1)
    order = probs.argsort(descending=True)
    keep = order[: sampling.top_k or len(probs)]
    mass = probs[keep] / probs[keep].sum()
    keep = keep[mass.cumsum(-1) - mass < sampling.top_p]
    out = torch.zeros_like(probs)
    out[keep] = probs[keep] / probs[keep].sum()
    return out


@pytest.mark.parametrize("vocab", [1, 7, 256, 257, 1000])
@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.7), dict(top_k=5), dict(top_p=0.8), dict(top_k=9, top_p=0.6)]
)
def test_draw_follows_the_distribution(vocab, options):
    sampling, num = Sampling(**options), 20_000
    logits = 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    # stratified uniforms: counts then equal the probabilities up to one stratum at each border
    uniforms = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens, logprobs = draw(logits.expand(num, vocab), uniforms, sampling)
    expected = reference_distribution(logits, sampling)
    counts = tokens.bincount(minlength=vocab)
    assert (counts - num * expected).abs().max() <= 1.5
    assert not (expected[tokens] == 0).any()
    torch.testing.assert_close(logprobs.double(), expected[tokens].log(), atol=1e-5, rtol=0)


def test_draw_extremes():
    wide = torch.full((3, 1000), -math.inf)
    wide[:, 700] = -130.0
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for options in ({}, dict(top_k=4), dict(top_p=0.9), dict(temperature=0)):
        tokens, logprobs = draw(wide, uniforms, Sampling(**options))
        assert tokens.tolist() == [700] * 3 and logprobs.tolist() == [0.0] * 3
    flat = torch.zeros(3, 50257)
    for top_p in (1.0, 0.999):
        tokens, logprobs = draw(flat, uniforms, Sampling(top_p=top_p))
        torch.testing.assert_close(logprobs, torch.full((3,), -math.log(50257 * top_p)), atol=1e-4, rtol=0)
        assert 0 <= tokens.min() and tokens.max() < 50257
    broken = torch.zeros(3, 10)
    broken[1, 2] = math.nan
    for options in ({}, dict(top_k=4), dict(top_p=0.9), dict(temperature=0)):
        assert (draw(broken, uniforms, Sampling(**options))[0] == -1).tolist() == [False, True, False]


def test_sampled_frequencies_pass_a_chi_square_test():
    model = build("llama")
    num, sampling = 4000, Sampling(temperature=1.3, top_k=12, max_new_tokens=1)
    answers = rollout(model, [[5, 6, 7]] * num, sampling, (), seed=11, max_batch=2000)
    counts = torch.tensor([a.response[0] for a in answers]).bincount(minlength=V)
    with torch.no_grad():
        expected = num * reference_distribution(model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1], sampling)
    kept = expected > 0
    assert kept.sum() == 12 and counts[~kept].sum() == 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 31.3  # 11 degrees of freedom, p = 0.001


def test_uniform_streams_keep_their_beginning():
    full = uniform_streams(3, 10, 20)
    assert torch.equal(uniform_streams(3, 4, 7), full[:4, :7])
    assert not torch.equal(uniform_streams(4, 10, 20), full)
    assert 0 <= full.min() and full.max() < 1 and full.unique().numel() == 200


def test_stories260k_greedy_equals_generate():
    path = Path(__file__).parents[2] / "../shared/data/models/stories260K"
    if not path.exists():
        pytest.skip(f"needs the real model at {path}")
    model = AutoModelForCausalLM.from_pretrained(path)
    prompts = [[1, 403, 407], [1, 261], [1, 346, 411, 298, 300, 266]]
    for answer in rollout(model, prompts, Sampling(temperature=0, max_new_tokens=40), (2,), seed=0):
        ids = torch.tensor([answer.prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=2, pad_token_id=0
        )
        assert out[0, ids.shape[1] :].tolist() == answer.response
