"""preference_head against its definition in float64, on every backend; B pairs in R rows."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.kernels.common.testing import assert_no_worse
from rto_fast.kernels.preference_head import preference_head, preference_head_reference
from tests.kernels.backends import NATIVE

BACKENDS = ("reference", NATIVE, "triton")
DTYPES = (torch.float32, torch.bfloat16)
LOSSES = {
    "dpo": {},
    "conservative": dict(label_smoothing=0.1, beta=0.5),
    "ipo": dict(loss="ipo", beta=0.2),
    "all": dict(label_smoothing=0.2, softcap=4.0, temperature=0.7),
}
LENGTHS = (3, 1, 0, 6, 2, 4)


def make(width, vocab, dtype=torch.float32, bias=False, lengths=LENGTHS):
    """hidden, weight, bias or None, and the arguments of the pairs."""
    torch.manual_seed(width + vocab)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    rows, pairs = int(cu_seqlens[-1]), len(lengths) // 2
    hidden = torch.randn(rows, width).to(dtype)
    weight = (torch.randn(vocab, width) * width**-0.5).to(dtype)
    target = torch.randint(vocab, (rows,))
    zeros = torch.zeros(2 * pairs)
    # a reference near the policy: far from it a sum of log-probs rounds more than its difference is worth
    _, sums, _ = preference_head_reference(hidden.float(), weight.float(), target, cu_seqlens, zeros)
    given = dict(
        target=target,
        cu_seqlens=cu_seqlens,
        ref_logprobs=sums + torch.randn(2 * pairs),
        pair_weights=torch.rand(pairs) - 0.3,
    )
    return hidden, weight, torch.randn(vocab).to(dtype) if bias else None, given


def run(op, hidden, weight, bias, given, upstream, **options):
    """Loss, sums, margins and the gradients of a weighted sum of them."""
    leaves = [x.detach().clone().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    out = op(*leaves[:2], **given, bias=leaves[2] if bias is not None else None, **options)
    total = sum((x * d.to(x.dtype)).sum() for x, d in zip(out, upstream, strict=True))
    return [*out, *torch.autograd.grad(total, leaves)]


def check(hidden, weight, bias, given, backend, statistics=False, **options):
    pairs = given["pair_weights"].shape[0]
    upstream = [torch.tensor(1.7), torch.zeros(2 * pairs), torch.zeros(pairs)]
    if statistics:
        upstream = [torch.tensor(1.7), torch.randn(2 * pairs), torch.randn(pairs)]
    fused = run(preference_head, hidden, weight, bias, given, upstream, backend=backend, **options)
    eager = run(preference_head_reference, hidden, weight, bias, given, upstream, **options)
    wide = [None if x is None else x.double() for x in (hidden, weight, bias)]
    doubles = {k: x.double() if x.is_floating_point() else x for k, x in given.items()}
    exact = run(preference_head_reference, *wide, doubles, upstream, **options)
    names = ("loss", "logprobs", "margins", "d_hidden", "d_weight", "d_bias")
    for name, f, e, x in zip(names, fused, eager, exact, strict=False):
        assert_no_worse(f, e, x, floor=2e-6, name=name)
    assert all(x.dtype == torch.float32 for x in fused[:3])
    assert all(x.dtype == hidden.dtype for x in fused[3:])
    return fused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES)
def test_matches_float64(backend, dtype, loss):
    for vocab in (100, 257):
        check(*make(24, vocab, dtype, bias=loss == "all"), backend, **LOSSES[loss])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_output_is_differentiable(backend):
    check(*make(24, 100, bias=True), backend, statistics=True)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [50257, 50277, 50304, 128256, 151936])
def test_real_vocabularies(backend, dtype, vocab):
    check(*make(24, vocab, dtype), backend)


def test_a_real_vocabulary_in_triton():
    check(*make(24, 50257, torch.bfloat16, lengths=[1, 2, 0, 1]), "triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_pairs(backend):
    hidden, weight, _, given = make(8, 5, lengths=(3, 2))
    given |= dict(ref_logprobs=torch.zeros(0), pair_weights=torch.zeros(0), cu_seqlens=given["cu_seqlens"][:1])
    given["target"] = given["target"][:0]
    out = preference_head(hidden[:0].requires_grad_(), weight.requires_grad_(), **given, backend=backend)
    out.loss.backward()
    assert out.loss == 0 and out.logprobs.shape == (0,) and (weight.grad == 0).all()


def test_sequences_longer_than_a_block():
    from rto_fast.kernels.preference_head import kernel

    torch.manual_seed(0)
    rows, cu_seqlens = -torch.rand(4000), torch.tensor([0, 2500, 4000], dtype=torch.int32)
    _, sums, _, _ = kernel.pairs(rows, cu_seqlens, torch.zeros(2), None, 0.1, 0.0, "sigmoid")
    torch.testing.assert_close(sums, sequence_sums(rows, cu_seqlens), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_margins_far_from_zero(backend):
    hidden, weight, _, given = make(24, 100)
    given["ref_logprobs"] += torch.tensor([200.0, -200.0, 0.0, -200.0, 200.0, 0.0])
    given["pair_weights"][:] = 1.0
    out = preference_head(hidden, weight, **given, beta=1.0, backend=backend)
    torch.testing.assert_close(out.margins[:2], torch.tensor([-400.0, 400.0]), rtol=0.02, atol=0)
    assert out.loss.isfinite() and out.loss > 380


@pytest.mark.parametrize("backend", BACKENDS)
def test_laws(backend):
    hidden, weight, _, given = make(24, 100)
    given["pair_weights"][:] = 1.0
    # the policy is its own reference: no margin, log 2 a pair, and half of beta as the slope
    own = preference_head(hidden, weight, **given, backend=backend).logprobs
    out = preference_head(hidden, weight, **(given | dict(ref_logprobs=own)), backend=backend)
    assert (out.margins == 0).all()
    torch.testing.assert_close(out.loss, 3 * torch.tensor(2.0).log())
    # swapping chosen and rejected turns the margins over
    cu = given["cu_seqlens"]
    rows = torch.cat((torch.arange(int(cu[3]), int(cu[6])), torch.arange(int(cu[3]))))
    swapped = dict(
        target=given["target"][rows],
        cu_seqlens=torch.tensor([0, *LENGTHS[3:], *LENGTHS[:3]]).cumsum(0).int(),
        ref_logprobs=given["ref_logprobs"].roll(3),
    )
    there = preference_head(hidden, weight, **given, backend=backend).margins
    back = preference_head(hidden[rows], weight, **swapped, backend=backend).margins
    torch.testing.assert_close(back, -there, rtol=1e-5, atol=1e-6)


def test_gradcheck():
    hidden, weight, bias, given = make(4, 20, bias=True)
    given = {k: x.double() if x.is_floating_point() else x for k, x in given.items()}
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    for loss in LOSSES.values():
        assert torch.autograd.gradcheck(
            lambda h, w, b, loss=loss: preference_head(h, w, **given, bias=b, **loss), leaves
        )


def test_a_frozen_weight_saves_a_gemm():
    hidden, weight, _, given = make(24, 100)
    for frozen, want in ((False, 4), (True, 3)):
        with FlopCounterMode(display=False) as flops:
            out = preference_head(hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen), **given)
            out.loss.backward()
        assert flops.get_total_flops() == want * 2 * hidden.numel() * weight.shape[0]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(loss="hinge"), "loss must be 'sigmoid' or 'ipo', got 'hinge'"),
        (dict(cu_seqlens=torch.tensor([0, 1, 2, 3], dtype=torch.int32)), r"cu_seqlens must be \(2B\+1,\)"),
        (dict(cu_seqlens=torch.tensor([0, 1, 3])), "cu_seqlens must be torch.int32, got torch.int64"),
        (
            dict(cu_seqlens=torch.tensor([0, 1, 2], dtype=torch.int32)),
            "cu_seqlens must rise from 0 to R = 3, got 0 ... 2",
        ),
        (dict(cu_seqlens=torch.tensor([0, 4, 3], dtype=torch.int32)), "cu_seqlens must rise .* with a step down"),
        (dict(ref_logprobs=torch.zeros(1)), r"ref_logprobs must have shape \(2,\), got \(1,\)"),
        (dict(pair_weights=torch.zeros(2)), r"pair_weights must have shape \(1,\), got \(2,\)"),
        (dict(beta=0.0), "beta must be > 0"),
        (dict(label_smoothing=0.5), r"label_smoothing must lie in \[0, 0.5\)"),
        (dict(label_smoothing=0.1, loss="ipo"), "label_smoothing belongs to loss='sigmoid'"),
        (dict(weight=torch.zeros(5, 3)), "weight must be"),
    ],
)
def test_errors_name_the_argument(change, message):
    args = dict(hidden=torch.zeros(3, 4), weight=torch.zeros(5, 4), target=torch.zeros(3, dtype=torch.int64))
    args |= dict(cu_seqlens=torch.tensor([0, 1, 3], dtype=torch.int32), ref_logprobs=torch.zeros(2)) | change
    with pytest.raises(ValueError, match="preference_head: " + message):
        preference_head(**args)
