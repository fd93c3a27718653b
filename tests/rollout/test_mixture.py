"""Realignment at decoding time against its definition (eq. 14) and its limits."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from rto_fast.rollout import Mixture, Sampling, realign, rollout

V = 97
EOS = tuple(range(3, 9))


def llama(seed, vocab=V, hidden=32, layers=2):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def gpt2(seed):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=V, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3)
    return AutoModelForCausalLM.from_config(config).eval()


def ragged(num=12):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 20, (num,), generator=generator).tolist()
    return [torch.randint(3, V, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def logprobs(model, prompt, response):
    """(n, V) float64 log-probs of every step of an answer, from one forward without a cache."""
    ids = torch.tensor([prompt + response])
    return model(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].double().log_softmax(-1)


def test_strength_zero_is_the_base_bit_for_bit():
    base, proxy, reference = llama(0), llama(1), llama(2)
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=10)
    mixed = rollout(realign(base, proxy, reference, 0.0), ragged(), sampling, EOS, seed=3, max_batch=5)
    assert mixed == rollout(base, ragged(), sampling, EOS, seed=3, max_batch=5)


def test_from_the_reference_strength_one_is_the_proxy_bit_for_bit():
    proxy, reference = llama(1), llama(2)
    mixed = rollout(realign(reference, proxy, reference, 1.0), ragged(), Sampling(max_new_tokens=10), EOS, seed=3)
    assert mixed == rollout(proxy, ragged(), Sampling(max_new_tokens=10), EOS, seed=3)


def test_a_copy_of_the_reference_gives_the_proxys_distribution():
    # the same limit without the shortcut: three models run, and the powers cancel in the arithmetic
    proxy, reference, base = llama(1), llama(2), llama(2)
    for answer in rollout(realign(base, proxy, reference, 1.0), ragged(), Sampling(max_new_tokens=10), EOS, seed=3):
        expected = logprobs(proxy, answer.prompt, answer.response).gather(1, torch.tensor(answer.response)[:, None])
        torch.testing.assert_close(torch.tensor(answer.logprobs).double(), expected[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("strength", [-0.5, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("kinds", [(llama, llama, llama), (gpt2, llama, llama)])
def test_sampled_from_the_product_of_powers(strength, kinds):
    models = [kind(seed) for seed, kind in enumerate(kinds)]
    answers = rollout(realign(*models, strength), ragged(), Sampling(max_new_tokens=10), EOS, seed=3, max_batch=5)
    for answer in answers:
        base, proxy, reference = (logprobs(m, answer.prompt, answer.response) for m in models)
        expected = (base + strength * (proxy - reference)).log_softmax(-1)
        expected = expected.gather(1, torch.tensor(answer.response)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer.logprobs).double(), expected, atol=2e-4, rtol=0)
    greedy = rollout(realign(*models, strength), ragged(), Sampling(temperature=0, max_new_tokens=10), (), seed=0)
    for answer in greedy:
        base, proxy, reference = (logprobs(m, answer.prompt, answer.response) for m in models)
        assert (base + strength * (proxy - reference)).argmax(-1).tolist() == answer.response


def test_the_same_answers_whatever_decodes_beside_them():
    mixed = realign(llama(0), llama(1, hidden=64, layers=1), llama(2), 0.5)
    sampling = Sampling(max_new_tokens=30)
    one, many = (rollout(mixed, ragged(), sampling, EOS, seed=3, max_batch=b) for b in (1, 5))
    assert [a.response for a in one] == [a.response for a in many]


def test_mix_keeps_what_is_ruled_out():
    inf = float("inf")
    base, proxy, reference = llama(0), llama(1), llama(2)
    z = [
        torch.tensor([[0.0, 1.0, -inf, -inf]]),
        torch.tensor([[1.0, -inf, 2.0, -inf]]),
        torch.tensor([[2.0, 1, 1, -inf]]),
    ]
    out = realign(base, proxy, reference, 2.0).mix(z)
    assert out.tolist() == [[-2.0, -inf, -inf, -inf]]
    assert realign(base, proxy, reference, 0.0).mix(z[:1]) is z[0]


def test_only_models_that_count_run():
    base, proxy, reference = llama(0), llama(1), llama(2)
    assert realign(base, proxy, base, 1.0) == Mixture((proxy,), (1.0,))
    assert realign(base, proxy, base, 0.25) == Mixture((base, proxy), (0.75, 0.25))
    assert realign(base, proxy, proxy, 3.0) == Mixture((base,), (1.0,))
    assert realign(base, base, reference, 1.0) == Mixture((base, reference), (2.0, -1.0))


def test_errors_name_the_field():
    base, proxy, reference = llama(0), llama(1), llama(2, vocab=50)
    for strength in (0.0, 1.0):
        with pytest.raises(ValueError, match="one vocabulary, got 97 and 97 and 50 tokens"):
            realign(base, proxy, reference, strength)
    with pytest.raises(ValueError, match="strength must be finite"):
        realign(base, proxy, base, float("nan"))
    for weights in ((), (1.0, 2.0), (0.0,), (float("inf"),)):
        with pytest.raises(ValueError, match="Mixture: weights"):
            Mixture((base,), weights)
    short = GPT2Config(vocab_size=V, n_embd=32, n_layer=1, n_head=4, n_positions=16)
    with pytest.raises(ValueError, match="max_position_embeddings=16"):
        mixed = realign(base, AutoModelForCausalLM.from_config(short), base, 1.5)
        rollout(mixed, [[3] * 10], Sampling(max_new_tokens=10), (), seed=0)
