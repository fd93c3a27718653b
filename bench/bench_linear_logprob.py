"""linear_logprob, scoring and training, against eager torch, torch.compile and the libraries that are installed.

    python -m pytest bench/bench_linear_logprob.py -s

Every rival's log-probs are compared with ours before anything is timed, ours with float64.
"""

import pytest
import torch

from bench import suite
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
        suite.compare(benchmark, lambda: logprob(hidden, weight, target), 1, 1, name, "forward")


@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_forward_and_backward(benchmark, name):
    logprob = logprob_of(name)
    hidden, weight = suite.leaves()
    target = suite.inputs().target
    upstream = torch.linspace(-1, 1, suite.ROWS, device=suite.DEVICE)

    def run(logprob=logprob):
        return torch.autograd.grad(logprob(hidden, weight, target), (hidden, weight), upstream)

    suite.agree(run, lambda: run(linear_logprob), 0.05)
    suite.compare(benchmark, run, 3, 4, name, "forward and backward")
