"""The oracle at real shapes: log-probs and gradients in float64, by blocks of rows and samples of columns.

T rows, H hidden, V vocabulary. float64 logits of all rows would not fit, those of a block do.
"""

import torch
from torch import Tensor

from bench import peers

BLOCK = 256
# elements of the float32 logits of a block of eager's rows, of which autograd holds several
EAGER_BLOCK = 1 << 31


def logprobs(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) float64 log-probs and log-sum-exps."""
    weight = weight.double()
    out = [torch.empty(len(target), dtype=torch.float64, device=hidden.device) for _ in range(2)]
    for start in range(0, len(target), BLOCK):
        rows = slice(start, start + BLOCK)
        z = hidden[rows].double() @ weight.T
        out[1][rows] = torch.logsumexp(z, -1)
        out[0][rows] = z.gather(1, target[rows, None])[:, 0] - out[1][rows]
    return out[0], out[1]


def gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, lse: Tensor, d_logprobs: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """d sum(d_logprobs logprobs): of hidden at `rows`, of weight at `columns`; float64."""
    d = d_logprobs.double()
    wide = weight.double()
    d_hidden = []
    for at in rows.split(BLOCK):
        p = torch.exp(hidden[at].double() @ wide.T - lse[at, None])
        d_hidden.append(d[at, None] * (wide[target[at]] - p @ wide))
    p = torch.exp(hidden.double() @ wide[columns].T - lse[:, None])
    hits = (target[:, None] == columns).double()
    return torch.cat(d_hidden), (d[:, None] * (hits - p)).T @ hidden.double()


def eager_gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, d_logprobs: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by autograd through eager torch in the operands' dtype, in blocks of rows that its softmax fits."""
    d_hidden = torch.empty_like(hidden)
    d_weight = torch.zeros(len(columns), weight.shape[1], device=weight.device)
    for at in torch.arange(len(target), device=hidden.device).split(max(1, EAGER_BLOCK // weight.shape[0])):
        h, w = hidden[at].detach().requires_grad_(), weight.detach().requires_grad_()
        loss = (peers.eager(h, w, target[at]) * d_logprobs[at]).sum()
        d_hidden[at], d_w = torch.autograd.grad(loss, (h, w))
        d_weight += d_w[columns]
    return d_hidden[rows], d_weight


def samples(size: int, edges: tuple[int, ...], count: int, device: str) -> Tensor:
    """Sorted numbers below `size`: both ends, the neighbours of `edges`, and random ones."""
    generator = torch.Generator().manual_seed(3)
    near = {e + i for e in (0, *edges, size) for i in (-1, 0, 1) if 0 <= e + i < size}
    drawn = torch.randint(size, (count,), generator=generator).tolist() if size else []
    return torch.tensor(sorted(near | set(drawn)), dtype=torch.int64, device=device)
