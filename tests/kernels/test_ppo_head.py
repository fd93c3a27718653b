"""ppo_head against its definition in float64, on every backend; R rows, H hidden, V vocabulary."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rto_fast.kernels.common.testing import assert_no_worse
from rto_fast.kernels.ppo_head import chunked, ppo_head, ppo_head_reference
from tests.kernels.backends import NATIVE

BACKENDS = ("reference", NATIVE, "triton")
DTYPES = (torch.float32, torch.bfloat16)
LOSSES = {
    "plain": {},
    "k1": dict(kl_coef=0.3, kl="k1"),
    "k2": dict(kl_coef=0.3, kl="k2", temperature=0.7),
    "k3": dict(kl_coef=0.3, kl="k3", clip=math.inf),
    "entropy": dict(entropy_coef=0.1),
    "softcap": dict(softcap=4.0, clip=0.1),
    "all": dict(kl_coef=0.3, entropy_coef=0.1, softcap=4.0, temperature=0.7),
}


def make(num_rows, width, vocab, dtype=torch.float32, bias=False):
    """hidden, weight, bias or None, and a dict of (R,) tensors: ratios on both sides of the clip range, both signs."""
    torch.manual_seed(num_rows + width + vocab)
    hidden = torch.randn(num_rows, width).to(dtype)
    weight = (torch.randn(vocab, width) * 2.0 * width**-0.5).to(dtype)
    bias = torch.randn(vocab).to(dtype) if bias else None
    zeros, target = torch.zeros(num_rows), torch.randint(vocab, (num_rows,))
    _, logprobs, _ = ppo_head_reference(hidden.float(), weight.float(), target, zeros, zeros, zeros)
    rows = dict(
        target=target,
        old_logprobs=logprobs + 0.4 * torch.randn(num_rows),
        ref_logprobs=logprobs + 0.4 * torch.randn(num_rows),
        advantages=torch.randn(num_rows),
        weights=torch.rand(num_rows),
    )
    return hidden, weight, bias, rows


def run(op, hidden, weight, bias, rows, upstream=1.7, **options):
    """Loss, log-probs, entropy and the gradients of the scaled loss."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    out = op(*leaves[:2], **rows, bias=leaves[2] if bias is not None else None, **options)
    return [*out, *torch.autograd.grad(out[0] * upstream, leaves)]


def check(hidden, weight, bias, rows, backend, workspace_mb=None, floor=2e-6, **options):
    fused = run(
        ppo_head, hidden, weight, bias, rows,
        return_entropy=True, backend=backend, workspace_mb=workspace_mb, **options,
    )  # fmt: skip
    eager = run(ppo_head_reference, hidden, weight, bias, rows, **options)
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    doubles = {k: x.double() if x.is_floating_point() else x for k, x in rows.items()}
    exact = run(ppo_head_reference, *wide, doubles, **options)
    live = rows["weights"] != 0
    for i in (1, 2):
        assert (fused[i][~live] == 0).all()
        fused[i], eager[i], exact[i] = fused[i][live], eager[i][live], exact[i][live]
    names = ("loss", "logprobs", "entropy", "d_hidden", "d_weight", "d_bias")
    for name, f, e, x in zip(names, fused, eager, exact, strict=False):
        assert_no_worse(f, e, x, floor=floor, name=name)
    assert all(x.dtype == torch.float32 for x in fused[:3])
    assert all(x.dtype == hidden.dtype for x in fused[3:])
    return fused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_float64(backend, dtype, loss):
    for vocab in (1, 100, 257):
        check(*make(9, 24, vocab, dtype, bias=loss == "all"), backend, **LOSSES[loss])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_rows", [0, 1, 3, 4, 5, 13])
def test_every_edge_of_the_row_chunks(monkeypatch, backend, num_rows):
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device, workspace_mb: 4 * 4 * 300)
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    check(*make(num_rows, 24, 300, bias=True), backend, kl_coef=0.1)
    if num_rows < 5:
        check(*make(num_rows, 24, 300, torch.bfloat16), backend, kl_coef=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["plain", "all"])
def test_a_workspace_too_small_for_whole_rows(monkeypatch, backend, loss):
    monkeypatch.setattr(chunked, "MIN_ROWS", 10**9)
    for dtype in DTYPES:
        check(*make(9, 24, 700, dtype, bias=True), backend, **LOSSES[loss])


def gpu_gemm(out, a, b, add=False):
    """matmul_ as CUDA does it, where half-precision operands have a float32 result."""
    assert a.dtype == b.dtype
    return out.copy_(a.float() @ b.float() + (out if add else 0.0))


@pytest.mark.parametrize("chunk", [7, 40])
def test_bfloat16_gradients_as_on_a_gpu(monkeypatch, chunk):
    from rto_fast.kernels.common import kernel

    monkeypatch.setattr(kernel, "operand", lambda x: x)
    monkeypatch.setattr(chunked, "matmul_", gpu_gemm)
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device, workspace_mb: 4 * chunk * 300)
    monkeypatch.setattr(chunked, "MIN_ROWS", 1)
    for loss in ("plain", "all"):
        check(*make(40, 24, 300, torch.bfloat16, bias=True), "triton", **LOSSES[loss])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [50257, 50277, 50304, 128256, 151936])
def test_real_vocabularies(backend, vocab):
    hidden, weight, bias, rows = make(2 if backend == "triton" else 7, 40, vocab, torch.bfloat16)
    fused = check(hidden, weight, bias, rows, backend)
    wanted = ppo_head_reference(
        hidden.double(), weight.double(), **{k: v.double() if v.is_floating_point() else v for k, v in rows.items()}
    )
    assert (fused[1] - wanted[1]).abs().max() <= 1e-3


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workspace_mb", [None, 1, 8])
def test_large_vocabulary(backend, dtype, workspace_mb):
    for loss in ("plain", "all"):
        check(*make(44, 24, 50304, dtype), backend, workspace_mb, **LOSSES[loss])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["plain", "all"])
def test_rows_of_weight_zero_leave_no_trace(backend, loss):
    options = LOSSES[loss] | dict(backend=backend, return_entropy=True)
    hidden, weight, bias, rows = make(12, 24, 300, bias=True)
    live = torch.arange(12) % 3 != 1
    rows["weights"][~live] = 0
    want = run(ppo_head, hidden[live], weight, bias, {k: x[live] for k, x in rows.items()}, **options)
    hidden[~live] = torch.nan
    for name in ("old_logprobs", "ref_logprobs", "advantages"):
        rows[name][~live] = torch.nan
    got = run(ppo_head, hidden, weight, bias, rows, **options)
    for i in (1, 2, 3):
        torch.testing.assert_close(got[i][live], want[i], rtol=0, atol=1e-5)
        assert (got[i][~live] == 0).all()
    for i in (0, 4, 5):
        torch.testing.assert_close(got[i], want[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_forbidden_columns_and_logits_far_from_zero(backend):
    hidden, weight, bias, rows = make(6, 24, 300, bias=True)
    bias[:] -= 130
    bias[:7] = -torch.inf
    rows["target"].clamp_(min=7)
    _, rows["old_logprobs"], _ = ppo_head_reference(hidden, weight, rows["target"], *torch.zeros(3, 6), bias=bias)
    fused = check(hidden, weight, bias, rows, backend, kl_coef=0.1, entropy_coef=0.1)
    assert (fused[5][:7] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_policies_give_the_policy_gradient(backend):
    """Ratio 1 and KL 0: the loss is -sum w A, whatever the clip range."""
    hidden, weight, _, rows = make(9, 24, 257)
    rows["old_logprobs"] = ppo_head(hidden, weight, **rows, backend=backend).logprobs
    rows["ref_logprobs"] = rows["old_logprobs"]
    out = ppo_head(hidden, weight, **rows, clip=1e-6, kl_coef=0.5, backend=backend)
    torch.testing.assert_close(out.loss, -(rows["weights"] * rows["advantages"]).sum())


def test_a_split_batch_has_the_same_gradient():
    hidden, weight, _, rows = make(24, 16, 100)
    whole = run(ppo_head, hidden, weight, None, rows, kl_coef=0.1)
    parts = [
        run(ppo_head, hidden[i], weight, None, {k: x[i] for k, x in rows.items()}, kl_coef=0.1)
        for i in (slice(0, 7), slice(7, 24))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole[0])
    torch.testing.assert_close(torch.cat((parts[0][3], parts[1][3])), whole[3], rtol=0, atol=1e-5)
    torch.testing.assert_close(parts[0][4] + parts[1][4], whole[4], rtol=0, atol=1e-5)
    again = run(ppo_head, hidden, weight, None, rows, kl_coef=0.1)
    assert torch.equal(again[0], whole[0]) and torch.equal(again[4], whole[4])


def test_float64_is_exact():
    """In the place of gradcheck, which differentiates one loss several times."""
    hidden, weight, bias, rows = make(9, 24, 257, bias=True)
    rows = {k: x.double() if x.is_floating_point() else x for k, x in rows.items()}
    for loss in LOSSES.values():
        args = (hidden.double(), weight.double(), bias.double(), rows)
        got = run(ppo_head, *args, return_entropy=True, **loss)
        for g, w in zip(got, run(ppo_head_reference, *args, **loss), strict=True):
            torch.testing.assert_close(g, w, rtol=0, atol=1e-13)


def test_gemms_that_nobody_needs_are_not_done():
    hidden, weight, _, rows = make(64, 24, 300)
    rows["clip"] = math.inf  # no row is silenced
    gemm = 2 * hidden.numel() * weight.shape[0]
    for h, w, want in ((True, True, 3), (True, False, 2), (False, True, 2), (False, False, 1)):
        with FlopCounterMode(display=False) as flops:
            out = ppo_head(hidden.clone().requires_grad_(h), weight.clone().requires_grad_(w), **rows)
            if h or w:
                out.loss.backward()
        assert flops.get_total_flops() == want * gemm
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        ppo_head(hidden.requires_grad_(), weight.requires_grad_(), **rows)
    assert flops.get_total_flops() == gemm


def silenced(rows: dict, which: torch.Tensor) -> None:
    """Push the chosen rows out of the clip range on the side where the loss is constant, the others far inside."""
    sign = torch.where(rows["advantages"] < 0, -1.0, 1.0)
    now = rows["old_logprobs"].clone()
    rows["old_logprobs"] = now - torch.where(which, 0.5 * sign, 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("two_passes", [False, True])
@pytest.mark.parametrize("which", ["first", "last", "every other", "all"])
def test_silenced_rows_cost_one_gemm_and_have_no_gradient(monkeypatch, backend, two_passes, which):
    monkeypatch.setattr(chunked, "workspace_bytes", lambda device, workspace_mb: 4 * 8 * 300)
    monkeypatch.setattr(chunked, "MIN_ROWS", 10**9 if two_passes else 1)
    hidden, weight, bias, rows = make(20, 24, 300, bias=True)
    out = ppo_head(hidden, weight, **rows, bias=bias)
    rows["old_logprobs"], place = out.logprobs, torch.arange(20)
    chosen = {"first": place < 5, "last": place > 14, "every other": place % 2 == 0, "all": place >= 0}[which]
    silenced(rows, chosen)
    got = check(hidden, weight, bias, rows, backend)
    assert (got[3][chosen] == 0).all() and (got[3][~chosen] != 0).any(1).all()
    check(hidden, weight, bias, rows, backend, entropy_coef=0.1)
    check(hidden, weight, bias, rows, backend, kl_coef=0.1)
    check(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16(), rows, backend)
    buffer = torch.ones_like(weight)
    leaf = weight.clone().requires_grad_()
    ppo_head(hidden, leaf, **rows, bias=bias, weight_grad=buffer, backend=backend).loss.backward()
    torch.testing.assert_close(1.7 * (buffer - 1), got[4], rtol=1e-5, atol=1e-5)
    with FlopCounterMode(display=False) as flops:
        ppo_head(hidden.clone().requires_grad_(), leaf, **rows, bias=bias, backend=backend).loss.backward()
    gemms = (1 if two_passes else 0) + 2
    heard = 20 if backend == "triton" else int((~chosen).sum())
    assert flops.get_total_flops() == 2 * 24 * 300 * (20 + gemms * heard)


def test_outputs_and_a_second_backward():
    hidden, weight, _, rows = make(5, 16, 100)
    out = ppo_head(hidden.requires_grad_(), weight, **rows)
    assert out.entropy is None and not out.logprobs.requires_grad
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        out.loss.backward()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(advantages=torch.zeros(3, 1)), r"advantages must have shape \(3,\), got \(3, 1\)"),
        (dict(old_logprobs=torch.zeros(3).double()), "old_logprobs must be torch.float32, got torch.float64"),
        (dict(weights=torch.zeros(4)), r"weights must have shape \(3,\), got \(4,\)"),
        (dict(kl="k4"), "kl must be one of k1, k2, k3, got 'k4'"),
        (dict(kl_coef=0.1), "kl_coef = 0.1 needs ref_logprobs"),
        (dict(clip=0.0), "clip must be > 0"),
        (dict(target=torch.tensor([0, 5, 0])), r"target must lie in \[0, V\)"),
    ],
)
def test_errors_name_the_argument(change, message):
    args = dict(hidden=torch.zeros(3, 4), weight=torch.zeros(5, 4), target=torch.zeros(3, dtype=torch.int64))
    args |= dict.fromkeys(("old_logprobs", "advantages", "weights"), torch.ones(3)) | change
    with pytest.raises(ValueError, match="ppo_head: " + message):
        ppo_head(**args)
