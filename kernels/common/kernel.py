"""What happens to a tile of logits between its GEMMs, in Triton: the twin of rows.py, one program per row.

A tile z is [c, n] float32 raw logits whose rows begin `width` apart; `first` is the vocabulary column it starts at. A
row is read in all its width, and the bias too, by 16 bytes at a time where that is a multiple of 16 elements; what lies
beyond n is ignored. Offsets that multiply a row number are int64. Only features that Triton 3.6 to 3.8 and their
interpreter share are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rto_fast.kernels.common.contract import Statistics, Transform
from rto_fast.kernels.common.rows import finish, new_state
from rto_fast.kernels.common.workspace import CUDA_PITCH as PITCH
from rto_fast.kernels.common.workspace import upcast

__all__ = ["PITCH", "d_logits_", "finish", "fold", "new_state", "operand", "row_scale"]

BLOCK = 4096
# without a bound, ptxas aims at 32 or 48 registers for some configurations and spills
LAUNCH = dict(num_warps=8, maxnreg=64)
# exp(-1e4) is 0, and 0 * -1e4 is 0 where 0 * -inf would be NaN
NO_LOGIT = tl.constexpr(-1e4)


@triton.jit
def transformed(x, cols, bias_ptr, inv_temperature, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, mask):
    """softcap(x + bias) / temperature, and the slope of the softcap."""
    slope = 1.0
    if HAS_BIAS:
        x += tl.load(bias_ptr + cols, mask=mask, other=0.0)
    if HAS_CAP:
        # tanh from exp(-2|x|): the difference 1 - e is exact where it is small
        e = tl.exp(-2.0 * tl.abs(x / softcap))
        t = (1.0 - e) / (1.0 + e)
        slope = 1.0 - t * t
        x = tl.where(x < 0.0, -t, t) * softcap
    return x * inv_temperature, slope


@triton.jit
def expm1(x):
    """exp(x) - 1 to float32 precision, without libdevice, which the interpreter lacks."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(tl.abs(x) < 0.2, series, tl.exp(x) - 1.0)


@triton.jit
def online(
    m, s, u, z_ptr, n, width, bias_ptr, inv_temperature, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fold n logits of one row into its running maximum m, s = sum exp(z - m) and u = sum exp(z - m) (z - m).

    A block is [TURNS, BLOCK / TURNS] and each of its columns has m, s and u of its own, so that a thread folds what it
    has read itself: threads meet once a row, not twice a block.
    """
    # at four columns to a thread, which it reads at once
    TURNS: tl.constexpr = 4 if BLOCK == 4096 else 1
    LANES: tl.constexpr = BLOCK // TURNS
    lane = tl.arange(0, LANES)
    turn = tl.arange(0, TURNS) * LANES
    # the lowest float32 stands for -inf, so that columns of nothing but -inf leave no -inf - -inf behind
    own_m = tl.full((LANES,), -3.4028234663852886e38, tl.float32)
    own_s = tl.zeros((LANES,), tl.float32)
    own_u = tl.zeros((LANES,), tl.float32)
    for start in range(0, n, BLOCK):
        cols = start + turn[:, None] + lane[None, :]
        mask = cols < width
        x = tl.load(z_ptr + cols, mask=mask, other=0.0)
        x, _ = transformed(x, cols, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, mask)
        x = tl.where(cols < n, x, float("-inf"))
        new_m = tl.maximum(own_m, tl.max(x, 0))
        x -= new_m[None, :]
        e = tl.exp(x)
        decay = tl.exp(own_m - new_m)
        if ENTROPY:
            own_u = (own_u + (own_m - new_m) * own_s) * decay + tl.sum(e * tl.maximum(x, NO_LOGIT), 0)
        own_s = own_s * decay + tl.sum(e, 0)
        own_m = new_m
    new_m = tl.maximum(m, tl.max(own_m, 0))
    decay, own_decay = tl.exp(m - new_m), tl.exp(own_m - new_m)
    if ENTROPY:
        own_u = (own_u + (own_m - new_m) * own_s) * own_decay
        u = (u + (m - new_m) * s) * decay + tl.sum(own_u, 0)
    return new_m, s * decay + tl.sum(own_s * own_decay, 0), u


@triton.jit
def target_logit(z_ptr, n, column, bias_ptr, inv_temperature, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """The target's logit, NaN where the target lies in another tile."""
    inside = (column >= 0) & (column < n)
    x = tl.load(z_ptr + column, mask=inside, other=float("nan"))
    x, _ = transformed(x, column, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, inside)
    return x


@triton.jit
def store_gradient(
    z_ptr, out_ptr, n, width, column, m, log_s, logprob, entropy, d_logprob, d_entropy,
    bias_ptr, inv_temperature, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Overwrite one row of raw logits with its gradient.

    out_ptr may be the front of the very row, in a dtype of half the size: a block is written behind everything that is
    still to be read, once all threads have read theirs.
    """
    at_target = -d_logprob * expm1(logprob)
    if ENTROPY:
        at_target -= d_entropy * tl.exp(logprob) * (tl.maximum(logprob, NO_LOGIT) + entropy)
    for start in range(0, n, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        mask = cols < width
        x = tl.load(z_ptr + cols, mask=mask, other=0.0)
        x, slope = transformed(x, cols, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, mask)
        x = (x - m) - log_s
        factor = -d_logprob
        if ENTROPY:
            factor -= d_entropy * (tl.maximum(x, NO_LOGIT) + entropy)
        dz = tl.where(cols == column, at_target, factor * tl.exp(x)) * (slope * inv_temperature)
        tl.debug_barrier()
        tl.store(out_ptr + cols, dz.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fold_kernel(
    z_ptr, bias_ptr, target_ptr, m_ptr, s_ptr, zy_ptr, u_ptr, n, width, first, inv_temperature, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (c,): fold a tile into the state of its rows."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * width
    column = tl.load(target_ptr + row) - first
    zy = target_logit(z_ptr, n, column, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP)
    tl.store(zy_ptr + row, zy, mask=(column >= 0) & (column < n))
    m, s = tl.load(m_ptr + row), tl.load(s_ptr + row)
    u = tl.load(u_ptr + row) if ENTROPY else 0.0
    m, s, u = online(m, s, u, z_ptr, n, width, bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, ENTROPY, BLOCK)
    tl.store(m_ptr + row, m)
    tl.store(s_ptr + row, s)
    if ENTROPY:
        tl.store(u_ptr + row, u)


@triton.jit
def d_logits_kernel(
    z_ptr, out_ptr, bias_ptr, target_ptr, logprob_ptr, m_ptr, log_s_ptr, d_logprob_ptr, entropy_ptr, d_entropy_ptr,
    n, width, out_width, first, inv_temperature, softcap,
    HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (c,): a tile of raw logits becomes its gradient, in place."""
    row = tl.program_id(0).to(tl.int64)
    entropy = tl.load(entropy_ptr + row) if ENTROPY else 0.0
    d_entropy = tl.load(d_entropy_ptr + row) if ENTROPY else 0.0
    logprob = tl.load(logprob_ptr + row)
    # a target outside [0, V) has no column here: its NaN log-prob must not leave a finite gradient behind
    d_logprob = tl.where(logprob == logprob, tl.load(d_logprob_ptr + row), logprob)
    store_gradient(
        z_ptr + row * width, out_ptr + row * out_width, n, width, tl.load(target_ptr + row) - first,
        tl.load(m_ptr + row), tl.load(log_s_ptr + row), logprob, entropy, d_logprob, d_entropy,
        bias_ptr, inv_temperature, softcap, HAS_BIAS, HAS_CAP, ENTROPY, BLOCK,
    )  # fmt: skip


def operand(x: Tensor) -> Tensor:
    """`x` as this backend's GEMMs take it: as it is on a GPU; in float32 under the interpreter."""
    return upcast(x) if x.device.type == "cpu" else x


def scalars(transform: Transform) -> tuple[float, float]:
    """(1 / temperature, softcap or 1) as the kernels take them."""
    temperature, softcap = transform
    return 1.0 / temperature, 1.0 if softcap is None else float(softcap)


def in_place(z: Tensor, dtype: torch.dtype) -> Tensor:
    """[c, n] of `dtype` over the storage of z: each row in the front of its row of z."""
    return z if z.dtype == dtype else z.view(dtype)[:, : z.shape[1]]


def constants(n: int, has_bias: bool, has_cap: bool) -> dict[str, bool | int]:
    """What a launch over rows of n logits is compiled for."""
    return dict(HAS_BIAS=has_bias, HAS_CAP=has_cap, BLOCK=min(BLOCK, triton.next_power_of_2(n)), **LAUNCH)


def fold(
    z: Tensor, bias: Tensor | None, head: Transform, target: Tensor, first: int, state: tuple[Tensor, ...]
) -> None:
    """Fold a tile into its rows' state, in place; z is read only."""
    m, s, zy, *u = state
    c, n = z.shape
    with torch.cuda.device_of(z):
        fold_kernel[(c,)](
            z, bias, target, m, s, zy, u[0] if u else None, n, z.stride(0), first, *scalars(head),
            ENTROPY=bool(u), **constants(n, bias is not None, head[1] is not None),
        )  # fmt: skip


def row_scale(log_s: Tensor, d_logprob: Tensor, d_entropy: Tensor | None, head: Transform) -> None:
    """Nothing: `d_logits_` leaves no factor of a row out."""


def d_logits_(
    z: Tensor,
    bias: Tensor | None,
    head: Transform,
    target: Tensor,
    first: int,
    dtype: torch.dtype,
    stats: Statistics,
    d_logprob: Tensor,
    d_entropy: Tensor | None,
) -> Tensor:
    """The gradient of a tile of raw logits, in `dtype`, over the tile's own storage."""
    c, n = z.shape
    out = in_place(z, dtype)
    with torch.cuda.device_of(z):
        d_logits_kernel[(c,)](
            z, out, bias, target, *stats[:3], d_logprob, stats.entropy, d_entropy,
            n, z.stride(0), out.stride(0), first, *scalars(head),
            ENTROPY=d_entropy is not None, **constants(n, bias is not None, head[1] is not None),
        )  # fmt: skip
    return out
