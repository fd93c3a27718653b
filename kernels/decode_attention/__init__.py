"""Attention of one query per row on a long key/value cache whose rows have lengths of their own."""

import math

import torch
from torch import Tensor

from rto_fast.kernels.common.dispatch import choose
from rto_fast.kernels.decode_attention import library
from rto_fast.kernels.decode_attention.reference import decode_attention_reference

__all__ = ["decode_attention", "decode_attention_reference"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# a tile of the widest heads that there are still lies in one block's registers
MAX_HEAD_DIM = 512
# axes y and z of a grid
MAX_GRID = 65535


def decode_attention(
    query: Tensor,  # (B, N, D)
    keys: Tensor,  # (B_max, N_kv, C, D)
    values: Tensor,  # (B_max, N_kv, C, D_v)
    lengths: Tensor,  # (B,) int64 or int32
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """One step of decoding: the newest position of every row attends to what its row of the cache holds.

        o_b = sum_{lo_b <= s < len_b} softmax(z_b)_s v_bs,    z_bs = scale q_b . k_bs,    lo_b = max(0, len_b - window)

    with lo_b = 0 for no window, and z = softcap tanh(scale q . k / softcap) with a softcap, as in Gemma 2
    (arXiv:2408.00118, section 2). Head n attends to key/value head n // (N / N_kv): Ainslie et al. 2023, GQA
    (arXiv:2305.13245). On CUDA the positions are split among programs, and the parts are put together by their
    maxima and sums: Dao et al. 2023, Flash-Decoding.

    query      (B, N, D), N a multiple of N_kv; row b belongs to row b of the cache
    keys       (B_max, N_kv, C, D) and values (B_max, N_kv, C, D_v), B_max >= B, C positions at most: views of a larger
               cache as they are, of any strides, the last dimension contiguous; D_v is D but for a few networks
    lengths    (B,) int64 or int32 on the device: how many positions of each row are filled, the newest included. What
               lies beyond is never read, NaN included. A row of length 0 gets zeros
    returns    (B, N, D_v) in the query's dtype
    dtypes     query, keys and values share one: float32, bfloat16, float16 (float64 on the reference backend)
    gradient   none: an operator for rollouts, which run without gradients. Inputs are read detached
    precision  scores, maxima, sums and the output are accumulated in float32 (float64 for float64). In half precision
               the kernel rounds exp(z - max) to the dtype of the values, for tensor cores take no other. A row's
               result does not depend on other rows, to the bit, and on CUDA nor on the capacity C
    cost       of a row and a step, with n = min(len, window) filled positions: n N_kv (D + D_v) numbers read, each key
               and value once for up to 16 heads of its group (32 where D <= 128, 8 in float32); 2 n N (D + D_v) FLOPs,
               so that memory is the bound. Rows pay for their own length alone. CUDA: one launch, or two where
               min(C, window) exceeds 512 positions, with N (D_v + 2) float32 numbers written and read again for each
               512 of them (3 % of the bytes read, at 8 heads a group and bfloat16). The grid follows from shapes
               alone: nothing waits for the device, and a CUDA graph can hold it
    errors     ValueError for a wrong shape, dtype, device, stride or range. Lengths outside [0, C] are an error on the
               CPU alone; on CUDA, where looking would wait for the device, they are cut to that range
    """
    if torch.compiler.is_compiling():
        with torch.no_grad():
            return library.forward(query, keys, values, lengths, float(scale), window, softcap, backend)
    backend = choose("decode_attention", query.device, backend, ("triton", "reference"))
    _check(query, keys, values, lengths, scale, window, softcap, backend)
    if backend == "triton":
        from rto_fast.kernels.decode_attention.kernel import decode_attention_triton as run
    else:
        run = decode_attention_reference
    with torch.no_grad():
        return run(query, keys, values, lengths, float(scale), window, softcap)


def _check(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str,
) -> None:
    """Raise a ValueError that names the argument, what it has to be and what it is."""
    op = "decode_attention"
    if query.dim() != 3:
        raise ValueError(f"{op}: query must be (B, N, D), got {_shape(query)}; a step has one query per row")
    rows, heads, dim = query.shape
    if query.dtype not in FLOATS:
        raise ValueError(f"{op}: query must be float32, bfloat16 or float16, got {query.dtype}; cast it")
    if query.dtype == torch.float64 and backend != "reference":
        raise ValueError(f"{op}: query must be float32 or half precision on backend {backend!r}, got torch.float64")
    for name, x in (("keys", keys), ("values", values)):
        if x.dim() != 4:
            raise ValueError(f"{op}: {name} must be (B_max, N_kv, C, D), got {_shape(x)}")
        if x.dtype != query.dtype:
            raise ValueError(f"{op}: {name} must be {query.dtype} as query is, got {x.dtype}; keep the cache in it")
        if x.device != query.device:
            raise ValueError(f"{op}: {name} must be on {query.device} as query is, got {x.device}")
        if x.stride(3) != 1 and x.shape[3] > 1:
            raise ValueError(f"{op}: {name} must have a contiguous last dimension, got strides {x.stride()}")
    if keys.shape[3] != dim:
        raise ValueError(f"{op}: keys must be (B_max, N_kv, C, D) with D = {dim} as query has, got {_shape(keys)}")
    if values.shape[:3] != keys.shape[:3]:
        raise ValueError(
            f"{op}: values must be (B_max, N_kv, C, D_v) = {(*keys.shape[:3], 'D_v')} as keys are, got {_shape(values)}"
        )
    max_rows, kv_heads = keys.shape[:2]
    if max_rows < rows:
        raise ValueError(f"{op}: keys must have a row for each of the B = {rows} queries, got {max_rows}")
    if not 1 <= dim <= MAX_HEAD_DIM or not 1 <= values.shape[3] <= MAX_HEAD_DIM:
        got = f"D = {dim}, D_v = {values.shape[3]}"
        raise ValueError(f"{op}: D and D_v must be between 1 and {MAX_HEAD_DIM}, got {got}")
    if kv_heads == 0 or heads == 0 or heads % kv_heads:
        raise ValueError(f"{op}: query must have a multiple of the N_kv = {kv_heads} heads of keys, got N = {heads}")
    if heads > MAX_GRID:
        raise ValueError(f"{op}: query must have at most {MAX_GRID} heads, got N = {heads}")
    if lengths.shape != (rows,):
        raise ValueError(f"{op}: lengths must be (B,) = ({rows},), got {_shape(lengths)}")
    if lengths.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{op}: lengths must be int64 or int32, got {lengths.dtype}")
    if lengths.device != query.device:
        raise ValueError(f"{op}: lengths must be on {query.device} as query is, got {lengths.device}")
    # on CUDA the same check would wait for the device
    if lengths.device.type == "cpu" and rows:
        low, high = (int(x) for x in lengths.aminmax())
        if low < 0 or high > keys.shape[2]:
            raise ValueError(
                f"{op}: lengths must lie in [0, C] = [0, {keys.shape[2]}], got values from {low} to {high}"
            )
    if not math.isfinite(scale):
        raise ValueError(f"{op}: scale must be finite, got {scale}; it is D^-0.5 in most networks")
    if window is not None and not window >= 1:
        raise ValueError(f"{op}: window must be at least 1, got {window}; None attends to the whole row")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(f"{op}: softcap must be > 0 and finite, got {softcap}; None leaves scores as they are")


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))
