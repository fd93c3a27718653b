"""The repaired interpreter computes bfloat16 as a device does."""

import torch
import triton
import triton.language as tl


@triton.jit
def _products(x_ptr, y_ptr, dot_ptr, sum_ptr, row_ptr, max_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i[:, None] * N + i[None, :])
    y = tl.load(y_ptr + i[:, None] * N + i[None, :])
    tl.store(dot_ptr + i[:, None] * N + i[None, :], tl.dot(x, y))
    tl.store(sum_ptr + i[:, None] * N + i[None, :], tl.where(x > y, x * y, x - y))
    tl.store(row_ptr + i, tl.sum(x, 1))
    tl.store(max_ptr + i, tl.max(x, 1))


@triton.jit
def _loop(out_ptr, n, N: tl.constexpr):
    total = tl.zeros((N,), tl.float32)
    for start in range(0, n, N):
        total += start + tl.arange(0, N)
    tl.store(out_ptr + tl.arange(0, N), total)


def test_bfloat16_is_computed_in_float32_and_rounded_once():
    torch.manual_seed(0)
    x, y = torch.randn(2, 16, 16).bfloat16()
    dot, mixed = torch.empty(16, 16), torch.empty(16, 16, dtype=torch.bfloat16)
    rows, largest = torch.empty(2, 16, dtype=torch.bfloat16)
    _products[(1,)](x, y, dot, mixed, rows, largest, 16)
    torch.testing.assert_close(dot, x.float() @ y.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed, torch.where(x > y, x * y, x - y))
    assert torch.equal(largest, x.amax(1))
    torch.testing.assert_close(rows, x.float().sum(1).bfloat16(), rtol=2**-7, atol=0)


def test_a_loop_over_a_runtime_bound_runs():
    out = torch.empty(4)
    _loop[(1,)](out, 10, 4)
    assert out.tolist() == [12, 15, 18, 21]
