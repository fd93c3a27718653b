"""preference_head, DPO's loss and gradients over packed pairs, against the same loss on top of rivals' log-probs.

    python -m pytest bench/bench_preference_head.py -s

Every rival's gradients are compared with ours before anything is timed.
"""

import pytest
import torch
import torch.nn.functional as F

from bench import suite
from bench.shapes import offsets
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.preference_head import preference_head

SEQUENCES, BETA = 16, 0.1


@pytest.mark.parametrize("name", ["rto_fast", *suite.RIVALS])
def test_preference_head(benchmark, name):
    hidden, weight = suite.leaves()
    target = suite.inputs().target
    cu_seqlens = offsets(suite.ROWS, SEQUENCES, suite.DEVICE)
    lengths = cu_seqlens.diff().tolist()
    with torch.no_grad():
        sums = torch.stack([part.sum() for part in linear_logprob(hidden, weight, target).split(lengths)])
        # margins of about 1
        ref_logprobs = sums + torch.linspace(-10, 10, SEQUENCES, device=suite.DEVICE)

    def ours():
        loss = preference_head(hidden, weight, target, cu_seqlens, ref_logprobs, beta=BETA).loss
        return torch.autograd.grad(loss, (hidden, weight))

    run = ours
    if name != "rto_fast":
        logprob = suite.rival(name)

        def run():
            rows = logprob(hidden, weight, target)
            chosen, rejected = (torch.stack([p.sum() for p in rows.split(lengths)]) - ref_logprobs).chunk(2)
            return torch.autograd.grad(-F.logsigmoid(BETA * (chosen - rejected)).sum(), (hidden, weight))

    suite.agree(run, ours, 0.1)
    suite.compare(benchmark, run, 4, name, "DPO")
