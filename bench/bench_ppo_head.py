"""ppo_head, loss and gradients, against PPO's loss on top of eager torch's, torch.compile's and libraries' log-probs.

    python -m pytest bench/bench_ppo_head.py -s

Every rival's gradients are compared with ours before anything is timed.
"""

import pytest
import torch

from bench import peers, suite, timing
from bench.record import DEVICE, beside
from bench.shapes import decisions
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head

CLIP = 0.2
# too small for the logits of 96 rows: a fourth GEMM, and next to no memory
SMALL_MB = 16 if DEVICE == "cuda" else 4


def case():
    hidden, weight = suite.leaves()
    target = suite.inputs().target
    with torch.no_grad():
        return hidden, weight, target, decisions(linear_logprob(hidden, weight, target))


def updates(frozen: bool, workspace_mb: int | None = None):
    """Our loss and gradients, and a function that makes those on top of a rival's log-probs."""
    hidden, weight, target, given = case()
    if frozen:
        weight = weight.detach()
    wanted = (hidden,) if frozen else (hidden, weight)

    def ours():
        loss = ppo_head(hidden, weight, target, *given, clip=CLIP, workspace_mb=workspace_mb).loss
        return torch.autograd.grad(loss, wanted)

    def on_top_of(logprob: peers.LogProb):
        return lambda: torch.autograd.grad(peers.ppo_loss(logprob, hidden, weight, target, given, CLIP), wanted)

    return ours, on_top_of


def sums():
    """Our update and eager torch's, each added to gradients that are there already."""
    hidden, weight, target, given = case()
    theirs = suite.leaves()
    main_grad = torch.zeros_like(weight, dtype=torch.float32)
    hidden.grad = torch.zeros_like(hidden)
    for leaf in theirs:
        leaf.grad = torch.zeros_like(leaf)

    def ours():
        ppo_head(hidden, weight, target, *given, clip=CLIP, weight_grad=main_grad).loss.backward()

    def eager():
        peers.ppo_loss(peers.eager, *theirs, target, given, CLIP).backward()

    ours(), eager()
    suite.agree(lambda: (theirs[0].grad, theirs[1].grad), lambda: (hidden.grad, main_grad), 0.1)
    return ours, eager


@pytest.mark.parametrize("frozen", [False, True], ids=["both gradients", "frozen head"])
@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_ppo_head(benchmark, name, frozen):
    if frozen and name not in ("rto_fast", "eager"):
        pytest.skip("a frozen head is compared with eager torch alone")
    ours, on_top_of = updates(frozen)
    run = ours if name == "rto_fast" else on_top_of(suite.rival(name))
    # rounded logits put some rows on the other side of the clip range
    suite.agree(run, ours, 0.1)
    products = 2 if frozen else 3
    suite.compare(benchmark, run, products, name, "frozen head" if frozen else "both gradients")


@pytest.mark.parametrize("how", ["new gradients", f"new gradients, workspace_mb={SMALL_MB}", "summed into .grad"])
def test_ppo_head_over_eager(benchmark, how):
    """Time and memory of one update over eager torch's.

    New gradients count as memory, of both. Summed into .grad, as micro-batches are, they were there before, of both.
    """
    ours, on_top_of = updates(False, SMALL_MB if "workspace_mb" in how else None)
    eager = on_top_of(peers.eager)
    suite.agree(eager, ours, 0.1)
    if how == "summed into .grad":
        ours, eager = sums()
    ratio = beside(
        benchmark,
        ours,
        eager,
        rival=f"rto_fast, {how}",
        shape=f"{suite.SHAPE.width}x{suite.SHAPE.vocab} T={suite.ROWS}, both gradients",
        of="eager",
        rounds=2 * suite.ROUNDS + 1,
    )
    mib, eager_mib = benchmark.extra_info["peak_mib"], timing.peak_mib(eager, DEVICE)
    if mib and eager_mib:
        benchmark.extra_info["eager_mib"] = eager_mib
        print(f"\n{how}: {ratio:.2f} x eager's time, {mib:.0f} MiB against {eager_mib:.0f}, 1/{eager_mib / mib:.1f}")
