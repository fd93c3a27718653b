"""Bounded workspaces for the heads: how large a tile of logits may be, and GEMMs that accumulate in float32.

T rows, H hidden, V vocabulary. The geometry of a tile depends on V, the device and `workspace_mb`, never on T: what a
row is summed with, and in which order, is then the same whatever it is packed with.
"""

import torch
from torch import Tensor

# a CPU tile of float32 logits that stays in the second-level caches between its GEMM and its row pass: measured on
# 2048 x 512 x 50304, 4 MiB tiles take 0.6 of the time of 64 MiB tiles
CPU_TILE_BYTES = 4 << 20
CPU_TILE_COLUMNS = 512
# rows that make a GEMM on a GPU compute-bound, with few read-modify-write passes over float32 gradients
CUDA_TILE_ROWS = 8192
# a GPU's GEMMs work on tiles of 128 rows or 256, and a tile that is not full costs as much as one that is
CUDA_GEMM_ROWS = 128
# elements between the starts of two rows of logits, so that all accesses, of GEMMs and of Triton, are 16 bytes wide
# whatever V is: a row of bfloat16 gradients begins where its row of logits does
CUDA_PITCH = 16
# of ppo_head's logits this holds 4,000 rows of 128k columns. Each of its chunks reads and writes float32 dW, 8 V H
# bytes: reckoned for H = 4096 on an H200, 1 ms beside the 8 ms that the GEMMs of 2,000 rows take
CUDA_WORKSPACE_MB = 2048
CPU_WORKSPACE_MB = 64


def workspace_bytes(device: torch.device, workspace_mb: int | None) -> int:
    """The bound on one buffer of logits: 64 MiB on CPU, 2 GiB elsewhere, unless the caller says."""
    return (workspace_mb or (CPU_WORKSPACE_MB if device.type == "cpu" else CUDA_WORKSPACE_MB)) << 20


def chunk_rows(columns: int, device: torch.device, limit: int) -> int:
    """How many rows of `columns` elements a chunk of at most `limit` elements takes; never 0."""
    if device.type == "cpu":
        return max(1, limit // columns)
    rows = max(1, limit // padded(columns, CUDA_PITCH))
    return rows if rows < CUDA_GEMM_ROWS else rows // CUDA_GEMM_ROWS * CUDA_GEMM_ROWS


def padded(columns: int, pitch: int) -> int:
    """The next multiple of `pitch`."""
    return -(-columns // pitch) * pitch


def tile(buffer: Tensor, rows: int, columns: int, pitch: int) -> Tensor:
    """[rows, columns] at the front of a flat buffer, each row at a multiple of `pitch` elements, zeros in between."""
    width = padded(columns, pitch)
    whole = buffer[: rows * width].view(rows, width)
    if width > columns:
        whole[:, columns:].zero_()
    return whole[:, :columns]


def padded_bias(bias: Tensor | None, start: int, stop: int, dtype: torch.dtype, pitch: int) -> Tensor | None:
    """bias[start:stop] in `dtype`, as long as a row of its tile."""
    if bias is None:
        return None
    part = bias[start:stop].to(dtype)
    return torch.nn.functional.pad(part, (0, padded(len(part), pitch) - len(part))).contiguous()


def tile_shape(vocab: int, device: torch.device, dtype: torch.dtype, workspace_mb: int | None) -> tuple[int, int]:
    """(rows, columns) of the largest tile of logits that is ever held."""
    limit = workspace_bytes(device, workspace_mb)
    if device.type == "cpu":
        elements = min(limit, CPU_TILE_BYTES) // dtype.itemsize
        columns = min(vocab, CPU_TILE_COLUMNS)
    else:
        elements = limit // dtype.itemsize
        tiles = -(-vocab // max(1024, elements // CUDA_TILE_ROWS))
        columns = min(vocab, -(-vocab // (128 * tiles)) * 128)
    return chunk_rows(columns, device, elements), columns


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, statistics and sums: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upcast(x: Tensor) -> Tensor:
    """`x` in the accumulator's dtype."""
    return x.to(accumulator(x.dtype))


def matmul_(out: Tensor, a: Tensor, b: Tensor, add: bool = False) -> Tensor:
    """out = a @ b, or out += a @ b, accumulated in float32 and rounded once to out's dtype.

    Half-precision operands with a float32 result need CUDA: torch has no such GEMM on CPU.
    """
    if out.dtype == a.dtype:
        return torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    if add:
        return torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)
