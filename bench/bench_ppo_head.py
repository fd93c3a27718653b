"""ppo_head, loss and gradients, against PPO's loss on top of eager torch's, torch.compile's and libraries' log-probs.

    python -m pytest bench/bench_ppo_head.py -s

Every rival's gradients are compared with ours before anything is timed.
"""

import pytest
import torch

from bench import peers, suite
from bench.shapes import decisions
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head

CLIP = 0.2


@pytest.mark.parametrize("frozen", [False, True], ids=["both gradients", "frozen head"])
@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_ppo_head(benchmark, name, frozen):
    if frozen and name not in ("rto_fast", "eager"):
        pytest.skip("a frozen head is compared with eager torch alone")
    hidden, weight = suite.leaves()
    target = suite.inputs().target
    with torch.no_grad():
        given = decisions(linear_logprob(hidden, weight, target))
    if frozen:
        weight = weight.detach()
    wanted = (hidden,) if frozen else (hidden, weight)

    def ours():
        return torch.autograd.grad(ppo_head(hidden, weight, target, *given, clip=CLIP).loss, wanted)

    run = ours
    if name != "rto_fast":
        logprob = suite.rival(name)

        def run():
            return torch.autograd.grad(peers.ppo_loss(logprob, hidden, weight, target, given, CLIP), wanted)

    # rounded logits put some rows on the other side of the clip range
    suite.agree(run, ours, 0.1)
    products = 2 if frozen else 3
    suite.compare(benchmark, run, products, name, "frozen head" if frozen else "both gradients")
