"""rollout against transformers' generate: ragged prompts, ragged answers, batches of 64, tokens/s that count.

A token counts when it belongs to an answer: generate's padding after EOS does not. Each round runs generate, then
rollout, and the ratio is taken within rounds, so that a busy machine slows both. Both have the same weights; each has
the attention that it comes with, transformers' "sdpa" and the trainer's.
"""

import statistics
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench import machine
from rto_fast import attention
from rto_fast.rollout import Sampling, rollout

BATCH = 64


def build(vocab):
    """The model as the trainer loads it, and as transformers does."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    models = []
    for implementation in (attention.register(), "sdpa"):
        torch.manual_seed(0)
        models.append(AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval())
    return models


def ragged_prompts(vocab, num):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(16, 129, (num,), generator=generator).tolist()
    return [torch.randint(vocab // 2, vocab, (n,), generator=generator).tolist() for n in lengths]


def generate(model, prompts, sampling, eos):
    """Answers of model.generate, cut after their EOS."""
    answers = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=sampling.temperature > 0,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=list(eos) or None,
            pad_token_id=0,
        )
        for row in out[:, width:].tolist():
            stop = next((i for i, token in enumerate(row) if token in eos), len(row) - 1)
            answers.append(row[: stop + 1])
    return answers


@pytest.mark.parametrize(
    "vocab, num_prompts, length, rounds", [(512, 64, 128, 3), (512, 192, 128, 1), (50304, 64, 64, 1)]
)
def test_rollout(benchmark, vocab, num_prompts, length, rounds):
    (model, theirs), prompts = build(vocab), ragged_prompts(vocab, num_prompts)
    # answers are nearly uniform noise that would end after length / 2 tokens on average
    eos = tuple(range(vocab // (length // 2)))
    greedy = Sampling(temperature=0, max_new_tokens=12)
    ours = [a.response for a in rollout(model, prompts[:24], greedy, eos, seed=0)]
    assert ours == generate(theirs, prompts[:24], greedy, eos)

    sampling, seen = Sampling(max_new_tokens=length), {"generate": [], "rollout": []}

    def timed(name, function, model, *args, **kwargs):
        start = time.perf_counter()
        answers = function(model, prompts, sampling, eos, *args, **kwargs)
        tokens = sum(len(getattr(a, "response", a)) for a in answers)
        seen[name].append(tokens / (time.perf_counter() - start))

    benchmark.pedantic(
        lambda: timed("rollout", rollout, model, seed=0, max_batch=BATCH),
        setup=lambda: timed("generate", generate, theirs),
        rounds=rounds,
    )
    speedup = statistics.median(b / a for a, b in zip(*seen.values(), strict=True))
    tokens_per_s = {name: round(statistics.median(rates)) for name, rates in seen.items()}
    benchmark.extra_info.update(
        rival="rto_fast, over model.generate",
        shape=f"V={vocab}, {num_prompts} ragged prompts, batch {BATCH}",
        device="cpu",
        tokens_per_s=tokens_per_s["rollout"],
        tokens_per_s_of_generate=tokens_per_s["generate"],
        speedup=speedup,
        machine=machine.describe(),
    )
    print(f"V={vocab}, {num_prompts} prompts: {tokens_per_s} tokens/s, {speedup:.2f} x")
