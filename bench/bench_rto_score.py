"""rto_score against three bare GEMMs, and against eager log-probs followed by padded, vectorised GAE.

    python -m pytest bench/bench_rto_score.py

R response rows, H hidden, V vocabulary; FLOPs are 6 R V H.
"""

import pytest
import torch

from bench import peers
from bench.bench_token_reward_gae import REWARD, by_padding
from bench.record import DEVICE, beside
from bench.shapes import LAPTOP, LLAMA, head_inputs, offsets
from rto_fast.kernels.rto_score import FactoredLogits, rto_score

SHAPE, ROWS, DTYPE = (LLAMA, 8192, torch.bfloat16) if DEVICE == "cuda" else (LAPTOP, 1024, torch.float32)


def models(shared: bool):
    inputs = [head_inputs(SHAPE, ROWS, DEVICE, DTYPE, seed) for seed in range(3)]
    return [x._replace(weight=inputs[0].weight) for x in inputs] if shared else inputs


def ours(inputs, cu_seqlens, values):
    logits = [FactoredLogits(x.hidden, x.weight) for x in inputs]
    return rto_score(*logits, inputs[0].target, values, cu_seqlens, REWARD).advantages


def eager(inputs, cu_seqlens, values):
    logprobs = [peers.eager(x.hidden, x.weight, inputs[0].target) for x in inputs]
    return by_padding([*logprobs, values], cu_seqlens.diff().tolist())


@pytest.mark.parametrize("shared", [False, True], ids=["three heads", "one head"])
@pytest.mark.parametrize("rival", [ours, eager], ids=["rto_score", "eager"])
def test_rto_score(benchmark, rival, shared):
    inputs, values = models(shared), torch.linspace(-1, 1, ROWS, device=DEVICE)
    cu_seqlens = offsets(ROWS, ROWS // 64, DEVICE)
    with torch.no_grad():
        wanted = ours([type(x)(*(t.double() if t.is_floating_point() else t for t in x)) for x in _head(inputs)],
                      offsets(64, 4, DEVICE), values[:64].double())  # fmt: skip
        got = rival(_head(inputs), offsets(64, 4, DEVICE), values[:64])
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=2e-4 if DTYPE == torch.float32 else 0.05)

        logits = torch.empty(ROWS, SHAPE.vocab, device=DEVICE, dtype=DTYPE)

        def gemms():
            for x in inputs:
                torch.mm(x.hidden, x.weight.T, out=logits)

        beside(
            benchmark,
            lambda: rival(inputs, cu_seqlens, values),
            gemms,
            rival="rto_fast" if rival is ours else "eager",
            shape=f"{SHAPE.width}x{SHAPE.vocab} R={ROWS}{', one head' if shared else ''}",
            of="three GEMMs",
            rounds=3,
            flops=3 * SHAPE.gemm_flops(ROWS),
        )


def _head(inputs):
    """The first 64 rows."""
    return [x._replace(hidden=x.hidden[:64], target=x.target[:64]) for x in inputs]
