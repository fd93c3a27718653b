"""The oracle at real shapes: log-probs and gradients in float64, by blocks of rows and samples of columns.

T rows, H hidden, V vocabulary. float64 logits of all rows would not fit, those of a block do.
"""

import torch
from torch import Tensor

BLOCK = 256


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


def samples(size: int, edges: tuple[int, ...], count: int, device: str) -> Tensor:
    """Sorted numbers below `size`: both ends, the neighbours of `edges`, and random ones."""
    generator = torch.Generator().manual_seed(3)
    near = {e + i for e in (0, *edges, size) for i in (-1, 0, 1) if 0 <= e + i < size}
    drawn = torch.randint(size, (count,), generator=generator).tolist() if size else []
    return torch.tensor(sorted(near | set(drawn)), dtype=torch.int64, device=device)
