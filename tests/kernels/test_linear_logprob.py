"""linear_logprob against its definition in float64, on every backend.

T rows, H hidden, V vocabulary. The tiles are shrunk to 8 rows x 128 columns, so that a few rows cross every edge.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rto_fast.kernels.common import workspace
from rto_fast.kernels.common.testing import assert_no_worse
from rto_fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from tests.kernels.backends import NATIVE

BACKENDS = ("reference", NATIVE, "triton")
DTYPES = (torch.float32, torch.bfloat16)
FULL = dict(temperature=0.7, softcap=4.0)
ROWS, COLUMNS = 8, 128


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(workspace, "CPU_TILE_BYTES", 4 * ROWS * COLUMNS)
    monkeypatch.setattr(workspace, "CPU_TILE_COLUMNS", COLUMNS)


def make(num_rows, width, vocab, dtype=torch.float32, bias=False, scale=2.0):
    """hidden, weight, bias or None, target."""
    torch.manual_seed(num_rows + width + vocab)
    hidden = torch.randn(num_rows, width).to(dtype)
    weight = (torch.randn(vocab, width) * scale * width**-0.5).to(dtype)
    return hidden, weight, torch.randn(vocab).to(dtype) if bias else None, torch.randint(vocab, (num_rows,))


def run(op, hidden, weight, bias, target, d_logprobs, d_entropy, **options):
    """Log-probs, entropy, lse and the gradients of a weighted sum of the first two."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    out = op(leaves[0], leaves[1], target, bias=leaves[2] if bias is not None else None, **options)
    total = 0.0
    for x, d in zip(out, (d_logprobs, d_entropy), strict=False):
        total = total + (x * d.to(x.dtype)).sum() if d is not None else total
    return [*out, *torch.autograd.grad(total, leaves)]


def check(hidden, weight, bias, target, backend, factor=2.0, floor=2e-6, entropy=True, **options):
    torch.manual_seed(1)
    d_logprobs, d_entropy = torch.randn(2, hidden.shape[0])
    upstream = (d_logprobs, d_entropy if entropy else None)
    fused = run(linear_logprob, hidden, weight, bias, target, *upstream, return_stats=True, backend=backend, **options)
    eager = run(linear_logprob_reference, hidden, weight, bias, target, *upstream, **options)
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    exact = run(linear_logprob_reference, *wide, target, *upstream, **options)
    names = ("logprobs", "entropy", "lse", "d_hidden", "d_weight", "d_bias")
    for name, f, e, x in zip(names, fused, eager, exact, strict=False):
        assert_no_worse(f, e, x, factor, floor, name)
    assert all(x.dtype == torch.float32 for x in fused[:3])
    assert all(x.dtype == hidden.dtype for x in fused[3:])
    # the bound that a reward made of two log-probs lives on
    finite = exact[0].isfinite()
    assert ((fused[0] - exact[0])[finite].abs() <= 1e-3).all()
    return fused, exact


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 100, 257, 1000])
@pytest.mark.parametrize("full", [False, True])
def test_matches_float64(small_tiles, backend, dtype, vocab, full):
    check(*make(5, 24, vocab, dtype, bias=full), backend, **(FULL if full else {}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_rows", [0, 1, 7, 8, 9])
def test_every_edge_of_the_row_chunks(small_tiles, backend, num_rows):
    for entropy in (False, True):
        check(*make(num_rows, 24, 300, bias=True), backend, entropy=entropy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [50257, 50277, 50304, 128256, 151936])
def test_real_vocabularies_on_the_real_tiles(backend, dtype, vocab):
    check(*make(3 if backend == "triton" else 9, 40, vocab, dtype), backend)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_many_rows_on_the_real_tiles(backend):
    for num_rows in (4079, 4080, 4081):
        check(*make(num_rows, 8, 257), backend, entropy=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-130.0, 130.0])
def test_logits_far_from_zero(small_tiles, backend, shift):
    hidden, weight, bias, target = make(5, 24, 300, bias=True)
    check(hidden, weight, bias + shift, target, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_peaked_rows(small_tiles, backend):
    hidden, weight, bias, target = make(4, 24, 300, bias=True, scale=0.1)
    target[:2] = 130
    # the rows whose target this is are almost sure of it, the others almost sure of something else
    bias[130] = 10.0
    fused, exact = check(hidden, weight, bias, target, backend)
    sure = slice(0, 2)
    torch.testing.assert_close(fused[3][sure].double(), exact[3][sure], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_columns(small_tiles, backend):
    hidden, weight, bias, target = make(5, 24, 300, bias=True)
    # a column, and a whole tile of the vocabulary
    bias[7] = -torch.inf
    bias[:128] = -torch.inf
    target[:] = torch.tensor([200, 299, 128, 255, 256])
    fused, _ = check(hidden, weight, bias, target, backend)
    assert (fused[5][:128] == 0).all()
    target[2] = 7
    out = linear_logprob(hidden, weight, target, bias=bias, backend=backend)
    assert out[2] == -torch.inf and out.isfinite().sum() == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_rows_leave_no_trace(small_tiles, backend):
    hidden, weight, _, target = make(12, 24, 300)
    mask = torch.arange(12) % 3 != 1
    want = run(
        linear_logprob, hidden[mask], weight, None, target[mask], torch.arange(8.0), torch.ones(8),
        return_stats=True, backend=backend,
    )  # fmt: skip
    hidden[~mask], target[~mask] = torch.nan, -100
    d = torch.full((12,), torch.nan)
    d[mask] = torch.arange(8.0)
    got = run(
        linear_logprob, hidden, weight, None, target, d, mask.float(), mask=mask, return_stats=True, backend=backend
    )
    for g, w in zip(got[:4], want[:4], strict=True):
        assert torch.equal(g[mask], w) and (g[~mask] == 0).all()
    assert torch.equal(got[4], want[4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_row(small_tiles, backend):
    hidden, weight, _, target = make(5, 24, 300)
    clean = linear_logprob(hidden, weight, target, backend=backend)
    hidden[2] = torch.nan
    out = linear_logprob(hidden, weight, target, backend=backend)
    assert out[2].isnan() and torch.equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_bfloat16_gradients_take_the_front_of_their_float32_rows():
    from rto_fast.kernels.common import kernel, rows

    torch.manual_seed(0)
    z, target = torch.randn(3, 5000), torch.tensor([0, 4999, 70])
    state = rows.new_state(3, True, z.device, z.dtype)
    rows.fold(z.clone(), None, (1.0, None), target, 0, state)
    args = (None, (1.0, None), target, 0)
    per_row = (rows.finish(state), torch.randn(3), torch.randn(3))
    want = rows.d_logits_(z.clone(), *args, z.dtype, *per_row)
    got = kernel.d_logits_(z, *args, torch.bfloat16, *per_row)
    assert got.data_ptr() == z.data_ptr() and got.stride() == (10000, 1)
    torch.testing.assert_close(got, want.bfloat16(), rtol=2**-7, atol=1e-9)


def gpu_gemm(out, a, b, add=False):
    """matmul_ as CUDA does it, where half-precision operands have a float32 result."""
    assert a.dtype == b.dtype
    return out.copy_(a.float() @ b.float() + (out if add else 0.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [7, 17])
def test_half_precision_gradients_as_on_a_gpu(small_tiles, monkeypatch, dtype, num_rows):
    from rto_fast.kernels.common import chunked, kernel

    monkeypatch.setattr(kernel, "operand", lambda x: x)
    monkeypatch.setattr(chunked, "matmul_", gpu_gemm)
    for entropy in (False, True):
        check(*make(num_rows, 24, 300, dtype, bias=True), "triton", entropy=entropy)


def test_what_is_differentiable():
    hidden, weight, _, target = make(5, 24, 300)
    out = linear_logprob(hidden.requires_grad_(), weight, target, return_stats=True)
    assert out.logprobs.requires_grad and out.entropy.requires_grad and not out.lse.requires_grad
    for which in (out.logprobs, out.entropy):
        (grad,) = torch.autograd.grad(which.sum(), hidden, retain_graph=True)
        assert grad.abs().sum() > 0
    assert not linear_logprob(hidden.detach(), weight, target).requires_grad


def test_gradcheck(small_tiles):
    hidden, weight, bias, target = (x.double() if x.is_floating_point() else x for x in make(9, 5, 130, bias=True))
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    for options in ({}, FULL):
        assert torch.autograd.gradcheck(
            lambda h, w, b, options=options: linear_logprob(h, w, target, bias=b, return_stats=True, **options)[:2],
            leaves,
        )


def test_gemms_that_nobody_needs_are_not_done():
    hidden, weight, _, target = make(64, 24, 300)
    gemm = 2 * hidden.numel() * weight.shape[0]
    for h, w, want in ((True, True, 4), (True, False, 3), (False, True, 3), (False, False, 1)):
        with FlopCounterMode(display=False) as flops:
            out = linear_logprob(hidden.clone().requires_grad_(h), weight.clone().requires_grad_(w), target)
            if h or w:
                out.sum().backward()
        assert flops.get_total_flops() == want * gemm


def test_rows_are_independent(small_tiles):
    hidden, weight, _, target = make(40, 24, 300)
    d = torch.randn(40)

    def both(index):
        out, _, _, d_hidden, d_weight = run(
            linear_logprob, hidden[index], weight, None, target[index], d[index], None, return_stats=True
        )
        return out, d_hidden, d_weight

    out, d_hidden, d_weight = both(torch.arange(40))
    again = both(torch.arange(40))
    assert all(map(torch.equal, (out, d_hidden, d_weight), again))
    order = torch.randperm(40)
    permuted = both(order)
    torch.testing.assert_close(permuted[0], out[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted[1], d_hidden[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(permuted[2], d_weight, rtol=0, atol=1e-4)
    # whole chunks of rows, so that the GEMMs are the same ones
    first, second = both(torch.arange(16)), both(torch.arange(16, 40))
    assert torch.equal(torch.cat((first[0], second[0])), out)
    assert torch.equal(torch.cat((first[1], second[1])), d_hidden)
    torch.testing.assert_close(first[2] + second[2], d_weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(hidden=torch.zeros(2, 3, 4)), r"hidden must be \(rows, H\), got \(2, 3, 4\)"),
        (dict(weight=torch.zeros(5, 3)), r"weight must be \(V, H\) .* H = 4, got \(5, 3\)"),
        (dict(weight=torch.zeros(5, 4, dtype=torch.float16)), "weight must be torch.float32, got torch.float16"),
        (dict(hidden=torch.zeros(3, 4, dtype=torch.int64)), "hidden must be float32"),
        (dict(target=torch.zeros(3, dtype=torch.int32)), "target must be torch.int64, got torch.int32"),
        (dict(target=torch.zeros(3, 1, dtype=torch.int64)), r"target must have shape \(3,\), got \(3, 1\)"),
        (dict(target=torch.tensor([0, 5, -1])), r"target must lie in \[0, V\) = \[0, 5\), got values from -1 to 5"),
        (dict(bias=torch.zeros(4)), r"bias must have shape \(5,\), got \(4,\)"),
        (dict(weight=torch.zeros(5, 4, device="meta")), "weight must be on cpu"),
        (dict(mask=torch.ones(3)), "mask must be torch.bool"),
        (dict(temperature=0.0), "temperature must be > 0"),
        (dict(softcap=0.0), "softcap must be > 0"),
        (dict(workspace_mb=0), "workspace_mb must be at least 1"),
        (dict(backend="cuda"), "backend must be one of"),
    ],
)
def test_errors_name_the_argument(change, message):
    args = dict(hidden=torch.zeros(3, 4), weight=torch.zeros(5, 4), target=torch.zeros(3, dtype=torch.int64)) | change
    with pytest.raises(ValueError, match="linear_logprob: " + message):
        linear_logprob(**args)


PEAK = """
import resource, torch
from rto_fast.kernels.{op} import {op}
torch.set_num_threads(1)
R, H, V = 2048, 128, 50304
hidden, weight = torch.randn(R, H).requires_grad_(), (torch.randn(V, H) * 0.1).requires_grad_()
target, one = torch.randint(V, (R,)), torch.ones(R)
(hidden[:64] @ weight[:64].T).sum().backward()  # the GEMM library's own memory
hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
hidden.grad = weight.grad = None
{call}.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
CALLS = {
    "linear_logprob": "linear_logprob(hidden, weight, target).sum()",
    "ppo_head": "ppo_head(hidden, weight, target, -10 * one, one, one).loss",
}


@pytest.mark.rest
@pytest.mark.parametrize("op", CALLS)
def test_peak_memory_is_the_workspace(op):
    """2,048 rows of 50,304 logits are 393 MiB; at most 120 beyond inputs and gradients are ever held."""
    root = Path(__file__).parents[2]
    script = PEAK.format(op=op, call=CALLS[op])
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) / 1024 <= 120
