"""Decoding: attention of one query per row beside torch's and flash-attn's, and whole steps, recorded and not.

B rows of ragged lengths on a cache of C positions; N heads on N_kv of keys and values, D numbers each.
"""

import importlib.util
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bench import timing
from bench.gpu.log import Log
from bench.gpu.speed import OURS, Run
from rto_fast.kernels.decode_attention import decode_attention, decode_attention_reference
from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.precision import cast_matrices
from rto_fast.packing import pack
from rto_fast.rollout import Sampling, lane, rollout

NATS = 0.25
"""How far a log-prob in bfloat16 may lie from that of a forward without a cache."""


class Cache(NamedTuple):
    name: str
    rows: int
    heads: int
    kv_heads: int
    dim: int
    positions: int


REAL = (Cache("Llama-3-8B", 64, 32, 8, 128, 4096), Cache("Pythia-2.8B", 256, 32, 32, 80, 512))
TINY = (Cache("tiny", 3, 4, 2, 16, 40),)


def operator(log: Log, cache: Cache, device: str, *, rounds: int) -> None:
    """decode_attention against float64, then beside its peers; rows are between an eighth and all of C long."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.bfloat16, generator=generator)

    query = normal(cache.rows, cache.heads, cache.dim)
    keys, values = (normal(cache.rows, cache.kv_heads, cache.positions, cache.dim) for _ in range(2))
    lengths = torch.linspace(cache.positions // 8, cache.positions, cache.rows, device=device).long()
    scale = cache.dim**-0.5
    hidden = torch.arange(cache.positions, device=device) >= lengths[:, None]
    mask = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, float("-inf"))[:, None, None]

    def torchs() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            query[:, :, None], keys, values, attn_mask=mask, scale=scale, enable_gqa=cache.heads != cache.kv_heads
        )[:, :, 0]

    runs: dict[str, Run] = {
        OURS: lambda: decode_attention(query, keys, values, lengths, scale),
        "torch, with a mask": torchs,
    }
    if device == "cuda" and importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_with_kvcache

        theirs = [x.transpose(1, 2).contiguous() for x in (keys, values)]  # (B, C, N_kv, D)
        short = lengths.int()
        runs["flash-attn"] = lambda: flash_attn_with_kvcache(
            query[:, None], *theirs, cache_seqlens=short, softmax_scale=scale, causal=True
        )[:, 0]
    wanted = decode_attention_reference(query.double(), keys.double(), values.double(), lengths, scale)
    errors = {name: (run().double() - wanted).abs().max().item() for name, run in runs.items()}
    label = f"{cache.name} B={cache.rows} N={cache.heads}/{cache.kv_heads} D={cache.dim} C={cache.positions}"
    bound = 2 * errors["torch, with a mask"] + 2**-8 * wanted.abs().max().item()
    log.check(f"decode_attention, {label}", errors[OURS] <= bound, f"error {errors[OURS]:.2e}, bound {bound:.2e}")
    read = 2 * 2 * int(lengths.sum()) * cache.kv_heads * cache.dim
    cold = timing.interleave(runs, device, rounds=rounds, cold=True)
    hot = timing.interleave(runs, device, rounds=rounds, cold=False)
    for name, run in runs.items():
        log.row(
            "decode_attention",
            shape=label,
            rival=name,
            us_cold=1e3 * cold[name].median,
            us_hot=1e3 * hot[name].median,
            gb_per_s_cold=read / cold[name].median / 1e6,
            of_ours_cold=cold[name].median / cold[OURS].median,
            launches=timing.on_device(run, device).launches,
            error=errors[name],
        )


def steps(log: Log, device: str, smoke: bool) -> None:
    """A rollout of a network as large as Llama-3.2-1B, its steps recorded and launched one by one."""
    sizes: dict[str, Any] = dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    if smoke:
        sizes |= dict(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        sizes |= dict(num_key_value_heads=2)
    rows, prompt, new = (3, 5, 6) if smoke else (64, 128, 256)
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(LlamaConfig(**sizes), attn_implementation=attention.register())
    cast_matrices(hf.requires_grad_(False), torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, sizes["vocab_size"], (rows, prompt), generator=generator).tolist()
    recorded, model = lane.DEVICES, LanguageModel(hf)
    for name, where in (("recorded", recorded), ("launched one by one", set())):
        lane.DEVICES = where
        try:
            with torch.autocast(device, torch.bfloat16), torch.no_grad():
                run = lambda: rollout(hf, prompts, Sampling(max_new_tokens=new), (), seed=0, max_batch=rows)  # noqa: E731
                run()
                began = time.perf_counter()
                answers = run()
                seconds = time.perf_counter() - began
                batch = pack(prompts, [answer.response for answer in answers]).to(torch.device(device))
                found = response_logprobs(model, batch, None)
        finally:
            lane.DEVICES = recorded
        ours = torch.tensor(sum((answer.logprobs for answer in answers), []), device=device)
        error = (ours - found).abs().max().item()
        log.check(f"answers, steps {name}", error <= NATS, f"{error:.2e} nat from a forward without a cache")
        weights = 2 * sum(p.numel() for p in hf.parameters())
        log.row(
            "decoding",
            steps=name,
            answers=rows,
            new_tokens=new,
            ms_per_step=1e3 * seconds / new,
            tokens_per_s=rows * new / seconds,
            gb_per_s_of_weights=weights * new / seconds / 1e9,
        )
