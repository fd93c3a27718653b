"""decode_attention in Triton: one program per row, group of heads and split of the positions, then one to combine.

B rows, N heads, N_kv key/value heads, D and D_v head sizes (DP and VP: the powers of two that hold them), C capacity;
[GROUP, BLOCK] is a tile of scores, of GROUP heads that share a key/value head and BLOCK positions.

A split is 512 positions, counted from the first that the row attends to. That is one constant for every batch and
capacity: a split that followed the lengths or the number of rows would let neighbours change a row's rounding. What a
part of a softmax leaves behind is its maximum m, total = sum exp(z - m) and acc = sum exp(z - m) v. m starts at the
lowest finite number in place of -inf, so that no -inf - -inf arises. Only features that Triton 3.6 to 3.8 and their
interpreter share are used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# a program of 128 bfloat16 numbers per position reads 256 KB of keys and values; its partial sums of 8 heads, written
# and read again, are 8 KB beside that
SPLIT = 512
SPLITS_AT_ONCE = 16
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _capped(x, softcap, HAS_CAP: tl.constexpr):
    """softcap tanh(x / softcap)"""
    if HAS_CAP:
        # tanh from exp(-2|x|): the difference 1 - e is exact where it is small
        e = tl.exp(-2.0 * tl.abs(x / softcap))
        t = (1.0 - e) / (1.0 + e)
        x = tl.where(x < 0.0, -t, t) * softcap
    return x


@triton.jit
def _bounds(p_lengths, row, capacity, window, HAS_WINDOW: tl.constexpr):
    """First position that a row attends to, and the one after its last."""
    length = tl.minimum(tl.maximum(tl.load(p_lengths + row), 0), capacity).to(tl.int32)
    first = length * 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    return first, length


@triton.jit
def _by_dots(
    p_q, p_k, p_v, live, group, first, stop, step_q, step_k, step_v, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, VP: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(m, total, acc) of several half-precision heads, on tensor cores, whose tiles are never less than 16 high."""
    head, d, e, lane = tl.arange(0, GROUP), tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, BLOCK)
    own = (head < group) & live
    q = tl.load(p_q + head[:, None] * step_q + d[None, :], mask=own[:, None] & (d < D)[None, :], other=0.0)
    m = tl.full((GROUP,), LOWEST, tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, VP), tl.float32)
    for start in tl.range(first, stop, BLOCK, num_stages=STAGES):
        s = start + lane
        inside = s < stop
        row = s.to(tl.int64)
        k = tl.load(p_k + row[None, :] * step_k + d[:, None], mask=inside[None, :] & (d < D)[:, None], other=0.0)
        z = _capped(tl.dot(q, k) * scale, softcap, HAS_CAP)
        z = tl.where(inside[None, :], z, float("-inf"))
        new_m = tl.maximum(m, tl.max(z, 1))
        p = tl.exp(z - new_m[:, None])
        decay = tl.exp(m - new_m)
        total = total * decay + tl.sum(p, 1)
        v = tl.load(p_v + row[:, None] * step_v + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None])
        m = new_m
    return m, total, acc


@triton.jit
def _one_head(
    p_q, p_k, p_v, live, first, stop, step_k, step_v, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, VP: tl.constexpr, BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(m, total, acc) of one head: every lane keeps those of its own positions, and they meet once, after the last."""
    d, e, lane = tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, BLOCK)
    q = tl.load(p_q + d, mask=(d < D) & live, other=0.0).to(tl.float32)
    m = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, VP), tl.float32)
    for start in tl.range(first, stop, BLOCK, num_stages=STAGES):
        s = start + lane
        inside = s < stop
        row = s.to(tl.int64)
        k = tl.load(p_k + row[:, None] * step_k + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
        z = _capped(tl.sum(k.to(tl.float32) * q[None, :], 1) * scale, softcap, HAS_CAP)
        z = tl.where(inside, z, float("-inf"))
        new_m = tl.maximum(m, z)
        p = tl.exp(z - new_m)
        decay = tl.exp(m - new_m)
        total = total * decay + p
        v = tl.load(p_v + row[:, None] * step_v + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0)
        acc = acc * decay[:, None] + p[:, None] * v.to(tl.float32)
        m = new_m
    top = tl.max(m, 0)
    weight = tl.exp(m - top)
    m = tl.zeros((1,), tl.float32) + top
    total = tl.zeros((1,), tl.float32) + tl.sum(weight * total, 0)
    return m, total, tl.sum(weight[:, None] * acc, 0)[None, :]


@triton.jit
def _by_products(
    p_q, p_k, p_v, live, group, first, stop, step_q, step_k, step_v, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr, VP: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
    HAS_CAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(m, total, acc) of several float32 heads, which tensor cores would round to tf32: tiles [GROUP, BLOCK, D]."""
    head, d, e, lane = tl.arange(0, GROUP), tl.arange(0, DP), tl.arange(0, VP), tl.arange(0, BLOCK)
    own = (head < group) & live
    q = tl.load(p_q + head[:, None] * step_q + d[None, :], mask=own[:, None] & (d < D)[None, :], other=0.0)
    m = tl.full((GROUP,), LOWEST, tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, VP), tl.float32)
    for start in tl.range(first, stop, BLOCK, num_stages=STAGES):
        s = start + lane
        inside = s < stop
        row = s.to(tl.int64)
        k = tl.load(p_k + row[:, None] * step_k + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
        z = _capped(tl.sum(q[:, None, :] * k[None, :, :], 2) * scale, softcap, HAS_CAP)
        z = tl.where(inside[None, :], z, float("-inf"))
        new_m = tl.maximum(m, tl.max(z, 1))
        p = tl.exp(z - new_m[:, None])
        decay = tl.exp(m - new_m)
        total = total * decay + tl.sum(p, 1)
        v = tl.load(p_v + row[:, None] * step_v + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0)
        acc = acc * decay[:, None] + tl.sum(p[:, :, None] * v[None, :, :], 1)
        m = new_m
    return m, total, acc


@triton.jit(do_not_specialize=["capacity", "window", "splits"])
def split_kernel(
    p_query, p_keys, p_values, p_lengths, p_out, p_m, p_total,
    step_qb, step_qn, step_kb, step_kn, step_ks, step_vb, step_vn, step_vs,
    capacity, window, splits, scale, softcap,
    PER_KV: tl.constexpr, GROUPS: tl.constexpr, GROUP: tl.constexpr, HOW: tl.constexpr, PARTIAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, DV: tl.constexpr,
    VP: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (B, N_kv * GROUPS, splits): PER_KV heads a key/value head, GROUP of them a program.

    PARTIAL: m and total (B, N, splits) and acc (B, N, splits, D_v), float32, of a split; else the row's result. What a
    split beyond its row would write, nobody reads.
    """
    b, kv, split = tl.program_id(0).to(tl.int64), tl.program_id(1) // GROUPS, tl.program_id(2)
    begin, length = _bounds(p_lengths, b, capacity, window, HAS_WINDOW)
    first = begin + split * SPLIT
    stop = tl.minimum(length, first + SPLIT)
    live = first < stop
    if PARTIAL:
        if not live:
            return
    part = tl.program_id(1) % GROUPS * GROUP
    num_heads = tl.num_programs(1) // GROUPS * PER_KV
    group = tl.minimum(PER_KV - part, GROUP)
    n = kv * PER_KV + part
    p_q = p_query + b * step_qb + n.to(tl.int64) * step_qn
    p_k = p_keys + b * step_kb + kv.to(tl.int64) * step_kn
    p_v = p_values + b * step_vb + kv.to(tl.int64) * step_vn
    if HOW == "dots":
        m, total, acc = _by_dots(
            p_q, p_k, p_v, live, group, first, stop, step_qn, step_ks, step_vs, scale, softcap,
            D, DP, DV, VP, GROUP, BLOCK, HAS_CAP, STAGES,
        )  # fmt: skip
    elif HOW == "one":
        m, total, acc = _one_head(
            p_q, p_k, p_v, live, first, stop, step_ks, step_vs, scale, softcap,
            D, DP, DV, VP, BLOCK, HAS_CAP, STAGES,
        )  # fmt: skip
    else:
        m, total, acc = _by_products(
            p_q, p_k, p_v, live, group, first, stop, step_qn, step_ks, step_vs, scale, softcap,
            D, DP, DV, VP, GROUP, BLOCK, HAS_CAP, STAGES,
        )  # fmt: skip
    head, e = tl.arange(0, GROUP), tl.arange(0, VP)
    own = head < group
    line = b * num_heads + n + head
    if PARTIAL:
        line = line * splits + split
        tl.store(p_m + line, m, mask=own)
        tl.store(p_total + line, total, mask=own)
    else:
        # acc of a row that holds nothing is 0, and so is its result
        acc /= tl.where(live, total, 1.0)[:, None]
    mask = own[:, None] & (e < DV)[None, :]
    tl.store(p_out + line[:, None] * DV + e[None, :], acc.to(p_out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["capacity", "window", "splits"])
def combine_kernel(
    p_m, p_total, p_acc, p_lengths, p_out, capacity, window, splits,
    HAS_WINDOW: tl.constexpr, DV: tl.constexpr, VP: tl.constexpr, SPLIT: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Grid (B, N): the splits of one head, o = sum_j exp(m_j - M) acc_j / sum_j exp(m_j - M) total_j."""
    b = tl.program_id(0).to(tl.int64)
    begin, length = _bounds(p_lengths, b, capacity, window, HAS_WINDOW)
    filled = tl.cdiv(length - begin, SPLIT)
    line = b * tl.num_programs(1) + tl.program_id(1)
    lane, e = tl.arange(0, AT_ONCE), tl.arange(0, VP)
    m, total = tl.full((), LOWEST, tl.float32), 0.0
    acc = tl.zeros((VP,), tl.float32)
    for start in range(0, filled, AT_ONCE):
        j = start + lane
        inside = j < filled
        part = line * splits + j
        part_m = tl.load(p_m + part, mask=inside, other=float("-inf"))
        part_total = tl.load(p_total + part, mask=inside, other=0.0)
        mask = inside[:, None] & (e < DV)[None, :]
        part_acc = tl.load(p_acc + part[:, None] * DV + e[None, :], mask=mask, other=0.0)
        new_m = tl.maximum(m, tl.max(part_m, 0))
        weight = tl.exp(part_m - new_m)
        decay = tl.exp(m - new_m)
        total = total * decay + tl.sum(weight * part_total, 0)
        acc = acc * decay + tl.sum(weight[:, None] * part_acc, 0)
        m = new_m
    out = acc / tl.where(filled > 0, total, 1.0)
    tl.store(p_out + line * DV + e, out.to(p_out.dtype.element_ty), mask=e < DV)


def num_splits(capacity: int, window: int | None) -> int:
    """How many programs share the positions of one row; at least one."""
    return max(1, -(-(capacity if window is None else min(capacity, window)) // SPLIT))


def constants(dtype: torch.dtype, per_kv: int, dim: int, value_dim: int) -> dict[str, int | str]:
    """What the split kernel is compiled for: how heads of a group are handled, in which tiles.

    Registers are bounded because ptxas left alone aims at 96 or 168 of them for some of these, and spills; with other
    bounds it spills on Triton 3.6 or 3.8.
    """
    padded, padded_v = triton.next_power_of_2(dim), triton.next_power_of_2(value_dim)
    wider = max(padded, padded_v)
    if per_kv == 1:
        how, group, block = "one", 1, min(128, 8192 // (wider * dtype.itemsize))
    elif dtype == torch.float32:
        how, group = "products", min(8, triton.next_power_of_2(per_kv))
        block = min(64, max(1, 4096 // (group * wider)))
    else:
        how, group = "dots", 32 if per_kv > 16 and wider <= 128 else 16
        block = max(16, min(64, 8192 // wider))
        # a tensor core takes 16 numbers at a time
        padded, padded_v = max(16, padded), max(16, padded_v)
    # shared memory has room for three blocks of dots, registers for three of 168 a thread
    registers = 192 if dtype == torch.float32 or group > 16 or wider > 256 else 168 if how == "dots" else 128
    return dict(
        PER_KV=per_kv, GROUPS=-(-per_kv // group), GROUP=group, HOW=how, D=dim, DP=padded, DV=value_dim, VP=padded_v,
        BLOCK=block, SPLIT=SPLIT, STAGES=3, num_warps=4, maxnreg=registers,
    )  # fmt: skip


def decode_attention_triton(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The arguments of decode_attention, unchecked; no float64. One launch, or two where positions are split."""
    (rows, heads, dim), (_, kv_heads, capacity, value_dim) = query.shape, values.shape
    out = query.new_empty(rows, heads, value_dim)
    if rows == 0:
        return out
    query = query if query.stride(2) == 1 else query.contiguous()
    lengths = lengths.contiguous()
    splits = num_splits(capacity, window)
    partial = splits > 1
    acc, m, total = out, None, None
    if partial:
        acc = torch.empty(rows, heads, splits, value_dim, dtype=torch.float32, device=query.device)
        m, total = torch.empty(2, rows, heads, splits, dtype=torch.float32, device=query.device)
    chosen = constants(query.dtype, heads // kv_heads, dim, value_dim)
    # capacities are int32
    windowed, reach = window is not None, capacity if window is None else min(window, capacity)
    with torch.cuda.device_of(query):
        split_kernel[(rows, kv_heads * int(chosen["GROUPS"]), splits)](
            query, keys, values, lengths, acc, m, total, *query.stride()[:2], *keys.stride()[:3], *values.stride()[:3],
            capacity, reach, splits, scale, 1.0 if softcap is None else float(softcap),
            PARTIAL=partial, HAS_WINDOW=windowed, HAS_CAP=softcap is not None, **chosen,
        )  # fmt: skip
        if partial:
            combine_kernel[(rows, heads)](
                m, total, acc, lengths, out, capacity, reach, splits, HAS_WINDOW=windowed, DV=value_dim,
                VP=triton.next_power_of_2(value_dim), SPLIT=SPLIT, AT_ONCE=SPLITS_AT_ONCE, num_warps=4,
            )  # fmt: skip
    return out
