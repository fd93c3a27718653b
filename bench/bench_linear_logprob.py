"""linear_logprob, scoring and training, against eager torch, torch.compile and the libraries that are installed.

    python -m pytest bench/bench_linear_logprob.py -s

Every rival's log-probs are compared with ours before anything is timed, ours with float64.
"""

import pytest
import torch

from bench import suite
from bench.record import DEVICE, beside
from bench.shapes import head_inputs
from rto_fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference


def logprob_of(name):
    return linear_logprob if name == "rto_fast" else suite.rival(name)


@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_scoring(benchmark, name):
    hidden, weight, target = suite.inputs()
    logprob = logprob_of(name)
    with torch.no_grad():
        few = slice(0, 64)
        exact = linear_logprob_reference(hidden[few].double(), weight.double(), target[few])[0]
        ours = linear_logprob(hidden, weight, target)
        assert (ours[few].double() - exact).abs().max() <= 1e-3
        error = (logprob(hidden, weight, target).float() - ours).abs().max().item()
        assert error <= suite.NATS, f"log-probs differ by {error:.3g} nat"
        suite.compare(benchmark, lambda: logprob(hidden, weight, target), 1, name, "forward")


@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_forward_and_backward(benchmark, name):
    logprob = logprob_of(name)
    hidden, weight = suite.leaves()
    target = suite.inputs().target
    upstream = torch.linspace(-1, 1, suite.ROWS, device=suite.DEVICE)

    def run(logprob=logprob):
        return torch.autograd.grad(logprob(hidden, weight, target), (hidden, weight), upstream)

    suite.agree(run, lambda: run(linear_logprob), 0.05)
    suite.compare(benchmark, run, 4, name, "forward and backward")


@pytest.mark.skipif(DEVICE == "cuda", reason="every row of a GPU's tables is in half precision")
def test_scoring_in_half_precision(benchmark):
    """bfloat16 operands, float32 logits: beside the float32 GEMM, for torch has none on a CPU that adds in float32."""
    hidden, weight, target = (x.bfloat16() if x.is_floating_point() else x for x in suite.inputs())
    few = slice(0, 64)
    exact = linear_logprob_reference(hidden[few].double(), weight.double(), target[few])[0]
    with torch.no_grad():
        assert (linear_logprob(hidden, weight, target)[few].double() - exact).abs().max() <= 1e-3
        what = "forward, bfloat16 operands"
        suite.compare(benchmark, lambda: linear_logprob(hidden, weight, target), 1, "rto_fast", what)


@pytest.mark.parametrize("growth, rows, vocab", [("rows T", n, suite.SHAPE.vocab) for n in suite.GROWING_ROWS]
                         + [("columns V", suite.ROWS, n) for n in suite.GROWING_VOCABULARIES])  # fmt: skip
def test_growth(benchmark, growth, rows, vocab):
    """The forward's time per row and its memory at T x 1, x 4, x 16, and at V x 1, x 4."""
    shape = suite.SHAPE._replace(vocab=vocab)
    hidden, weight, target = head_inputs(shape, rows, DEVICE, suite.inputs().hidden.dtype)
    logits = torch.empty(rows, vocab, device=DEVICE, dtype=hidden.dtype)
    with torch.no_grad():
        beside(
            benchmark,
            lambda: linear_logprob(hidden, weight, target),
            lambda: torch.mm(hidden, weight.T, out=logits),
            rival="rto_fast",
            shape=f"{shape.width}x{vocab} T={rows}, forward",
            of="the bare GEMM",
            rounds=suite.ROUNDS,
            flops=shape.gemm_flops(rows),
            growth=growth,
            size=rows if growth == "rows T" else vocab,
        )
