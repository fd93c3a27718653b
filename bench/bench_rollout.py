"""rollout against transformers' generate: ragged prompts, ragged answers, batches of 64, tokens/s that count.

A token counts when it belongs to an answer: generate's padding after EOS does not. Rounds run generate, then rollout,
so that a busy machine slows both, and each round samples other answers: how long a batch's answers happen to be weighs
as much as anything. Speeds are all rounds' tokens over all rounds' time. Both have the same weights; each has the
attention that it comes with, transformers' "sdpa" and the trainer's.
"""

import time
from itertools import count

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench import machine
from rto_fast.model import attention
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
    "vocab, num_prompts, length, rounds", [(512, 64, 128, 12), (512, 192, 128, 5), (50304, 64, 64, 4)]
)
def test_rollout(benchmark, vocab, num_prompts, length, rounds):
    (model, theirs), prompts = build(vocab), ragged_prompts(vocab, num_prompts)
    # answers are nearly uniform noise that would end after length / 2 tokens on average
    eos = tuple(range(vocab // (length // 2)))
    greedy = Sampling(temperature=0, max_new_tokens=12)
    ours = [a.response for a in rollout(model, prompts[:24], greedy, eos, seed=0)]
    assert ours == generate(theirs, prompts[:24], greedy, eos)

    sampling, seen, seeds = Sampling(max_new_tokens=length), {"generate": [], "rollout": []}, count()

    def timed(name, function, model, *args, **kwargs):
        start = time.perf_counter()
        answers = function(model, prompts, sampling, eos, *args, **kwargs)
        took = time.perf_counter() - start
        seen[name].append((sum(len(getattr(a, "response", a)) for a in answers), took))

    benchmark.pedantic(
        lambda: timed("rollout", rollout, model, seed=next(seeds), max_batch=BATCH),
        setup=lambda: timed("generate", generate, theirs),
        rounds=rounds,
        warmup_rounds=1,
    )
    totals = {name: [sum(x) for x in zip(*of_rounds[1:], strict=True)] for name, of_rounds in seen.items()}
    tokens_per_s = {name: tokens / took for name, (tokens, took) in totals.items()}
    speedup = tokens_per_s["rollout"] / tokens_per_s["generate"]
    benchmark.extra_info.update(
        rival="rto_fast, over model.generate",
        shape=f"V={vocab}, {num_prompts} ragged prompts, batch {BATCH}",
        device="cpu",
        tokens_per_s=tokens_per_s["rollout"],
        tokens_per_s_of_generate=tokens_per_s["generate"],
        speedup=speedup,
        machine=machine.describe(),
    )
    speeds = ", ".join(f"{name} {rate:,.0f}" for name, rate in tokens_per_s.items())
    print(f"V={vocab}, {num_prompts} prompts: {speeds} tokens/s, {speedup:.2f} x")
