"""What happens to a tile of logits between its GEMMs, in torch: the reference backend's twin of kernel.py.

A tile z is [c, n]: c rows, and the n vocabulary columns that start at `first`; it is consumed. `head` is (temperature,
softcap). While the tiles of a row are folded its state is the running maximum m, s = sum exp(z - m), the target's logit
zy and, when the entropy is wanted, u = sum exp(z - m) (z - m).
"""

import torch
from torch import Tensor

from rto_fast.kernels.common.contract import Statistics, Transform
from rto_fast.kernels.common.workspace import upcast

# exp(-1e4) is 0 in every dtype, and 0 * -1e4 is 0 where 0 * -inf would be NaN
NO_LOGIT = -1e4
# rows of a tile lie end to end
PITCH = 1


def operand(x: Tensor) -> Tensor:
    """`x` as this backend's GEMMs take it: always in the dtype of the logits."""
    return upcast(x)


def transform_(z: Tensor, bias: Tensor | None, temperature: float, softcap: float | None) -> Tensor:
    """softcap(z + bias) / temperature, in place."""
    if bias is not None:
        z.add_(bias)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)
    return z if temperature == 1.0 else z.mul_(1.0 / temperature)


def place(target: Tensor, first: int, n: int) -> tuple[Tensor, Tensor]:
    """Which rows [c] have their target among these n columns, and in which one [c, 1] (any, where they have not)."""
    column = target - first
    inside = (column >= 0) & (column < n)
    return inside, column.clamp_(0, n - 1)[:, None]


def new_state(num_rows: int, entropy: bool, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(m, s, zy) or (m, s, zy, u) before the first tile."""
    # the lowest finite number stands for -inf, so that a tile of nothing but -inf columns leaves no -inf - -inf behind
    m = torch.full((num_rows,), torch.finfo(dtype).min, device=device, dtype=dtype)
    zy = torch.full_like(m, torch.nan)
    return (m, torch.zeros_like(m), zy, torch.zeros_like(m)) if entropy else (m, torch.zeros_like(m), zy)


def fold(
    z: Tensor, bias: Tensor | None, head: Transform, target: Tensor, first: int, state: tuple[Tensor, ...]
) -> None:
    """Fold a tile into its rows' state, in place: the online log-sum-exp."""
    m, s, zy, *u = state
    transform_(z, bias, *head)
    inside, column = place(target, first, z.shape[1])
    zy.copy_(torch.where(inside, z.gather(1, column)[:, 0], zy))
    new_m = torch.maximum(m, z.amax(1))
    z.sub_(new_m[:, None])
    shift = m - new_m
    decay = shift.exp()
    if u:
        p = torch.exp(z)
        tile_sum = p.sum(1)
        p.mul_(z.clamp_(min=NO_LOGIT))
        u[0].addcmul_(shift, s).mul_(decay).add_(p.sum(1))
    else:
        tile_sum = z.exp_().sum(1)
    s.mul_(decay).add_(tile_sum)
    m.copy_(new_m)


def finish(state: tuple[Tensor, ...]) -> Statistics:
    """(logprobs, m, log s, entropy) of rows whose tiles are all folded; their log-sum-exp is m + log s.

    The two stay apart because z - m is exact where z - (m + log s) loses digits to the size of the logits.
    """
    m, s, zy, *u = state
    log_s = s.log()
    return Statistics((zy - m).sub_(log_s), m, log_s, log_s - u[0] / s if u else None)


def row_scale(log_s: Tensor, d_logprob: Tensor, d_entropy: Tensor | None, head: Transform) -> Tensor | None:
    """The factor of each row of d logits that `d_logits_` leaves out, or None when it leaves none out.

    Without an entropy gradient d logits = -d_logprob / s (exp(z - m) - s onehot), up to the slope of the transform: the
    factor is cheaper on the (T, H) side.
    """
    return d_logprob * torch.exp(-log_s) * (-1.0 / head[0]) if d_entropy is None else None


def d_logits_(
    z: Tensor,
    bias: Tensor | None,
    head: Transform,
    target: Tensor,
    first: int,
    dtype: torch.dtype,
    stats: Statistics,  # [c], as are all that follow
    d_logprob: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    """Turn a tile of raw logits into its gradient, up to `row_scale`:

    d z_j = d_logprob ([j = y] - p_j) - d_entropy p_j (log p_j + entropy)
    d raw_j = d z_j (1 - (temperature z_j / softcap)^2) / temperature

    `dtype`, of the operands of the GEMMs that follow, is always z's here. The target's p - 1 is expm1(log p),
    which keeps its digits when p is almost 1.
    """
    temperature, softcap = head
    logprob, m, log_s, entropy = stats
    transform_(z, bias, temperature, softcap)
    slope = None if softcap is None else 1.0 - (z * (temperature / softcap)).square_()
    inside, column = place(target, first, z.shape[1])
    z.sub_(m[:, None])
    if d_entropy is None:
        at_target = log_s.exp() * torch.expm1(logprob)
        z.exp_()
    else:
        assert entropy is not None, "the gradient of an entropy comes with the entropy"
        entropy_part = d_entropy * (1.0 / temperature)
        rest = torch.addcmul(d_logprob * (1.0 / temperature), entropy_part, entropy).neg_()
        p = torch.exp(z.sub_(log_s[:, None]))
        at_target = d_logprob * torch.expm1(logprob) * (-1.0 / temperature) - entropy_part * logprob.exp() * (
            logprob.clamp(min=NO_LOGIT) + entropy
        )
        z.clamp_(min=NO_LOGIT).mul_(-entropy_part[:, None]).add_(rest[:, None]).mul_(p)
    z.scatter_(1, column, torch.where(inside[:, None], at_target[:, None], z.gather(1, column)))
    return z if slope is None else z.mul_(slope)
