"""A caller's float32 buffer for dW (a main_grad), of every operator that has a head."""

import pytest
import torch

from rto_fast.kernels.common import workspace
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from tests.kernels.backends import NATIVE

BACKENDS = ("reference", NATIVE, "triton")
DTYPES = (torch.float32, torch.bfloat16)
ROWS, WIDTH, VOCAB = 24, 20, 300


def by_logprobs(hidden, weight, data, **options):
    logprobs = linear_logprob(hidden, weight, data["target"], **options)
    return (logprobs * data["advantages"]).sum()


def by_policy(hidden, weight, data, **options):
    rows = (data["target"], data["old_logprobs"], data["advantages"], data["weights"])
    return ppo_head(hidden, weight, *rows, entropy_coef=data.get("entropy_coef", 0.0), **options).loss


def by_policy_in_two_passes(hidden, weight, data, **options):
    # 1 MiB holds fewer rows of logits than one chunk must have, once the bound is raised
    return by_policy(hidden, weight, data, **options)


def by_pairs(hidden, weight, data, **options):
    cu_seqlens = torch.tensor([0, 5, 12, 12 + (len(hidden) - 12) // 2, len(hidden)]).int()
    return preference_head(hidden, weight, data["target"], cu_seqlens, torch.zeros(4), **options).loss


OPS = [by_logprobs, by_policy, by_policy_in_two_passes, by_pairs]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch, request):
    monkeypatch.setattr(workspace, "CPU_TILE_BYTES", 4 * 8 * 128)
    monkeypatch.setattr(workspace, "CPU_TILE_COLUMNS", 128)
    if "two_passes" in request.node.name:
        monkeypatch.setattr("rto_fast.kernels.ppo_head.chunked.MIN_ROWS", 1 << 20)
        monkeypatch.setattr("rto_fast.kernels.ppo_head.chunked.workspace_bytes", lambda *a: 1 << 10)


def make(dtype, seed=0, rows=ROWS):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=g).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(5)).mul(0.4).to(dtype).requires_grad_()
    data = dict(target=torch.randint(VOCAB, (rows,), generator=g), advantages=torch.randn(rows, generator=g))
    with torch.no_grad():
        data["old_logprobs"] = linear_logprob(hidden, weight, data["target"]) + 0.2 * torch.randn(rows, generator=g)
    data["weights"] = torch.rand(rows, generator=g) * (torch.arange(rows) % 4 > 0)
    return hidden, weight, data


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_the_buffer_takes_what_weight_grad_would_have(op, dtype, backend):
    hidden, weight, data = make(dtype)
    op(hidden, weight, data, backend=backend).backward()
    wanted_hidden, wanted = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    before = torch.randn(VOCAB, WIDTH)
    buffer = before.clone()
    op(hidden, weight, data, weight_grad=buffer, backend=backend).backward()
    assert weight.grad is None and torch.equal(hidden.grad, wanted_hidden)
    added = buffer.double() - before.double()
    # the buffer holds float32 sums; what it is compared with was rounded to the weight's dtype
    roundoff = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert (added - wanted.double()).abs().max() <= roundoff * wanted.abs().max() + 1e-6
    assert added.abs().max() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_micro_batches_are_rounded_once(op, backend):
    """bfloat16 weights: summed over micro-batches, the buffer stays as good as float32, weight.grad does not."""
    buffer, exact, rounded = torch.zeros(VOCAB, WIDTH), torch.zeros(VOCAB, WIDTH).double(), None
    for seed in range(6):
        hidden, weight, data = make(torch.bfloat16, seed)
        op(hidden, weight, data, weight_grad=buffer, backend=backend).backward()
        wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
        in_double = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
        if op is by_pairs:
            logprobs = linear_logprob(wide[0], wide[1], data["target"])
            sums = torch.stack([part.sum() for part in logprobs.split([5, 7, 6, 6])])
            loss = -torch.nn.functional.logsigmoid(0.1 * (sums[:2] - sums[2:])).sum()
        else:
            loss = op(*wide, in_double, backend="reference")
        exact += torch.autograd.grad(loss, wide[1])[0]
        (grad,) = torch.autograd.grad(op(hidden, weight, data, backend=backend), weight)
        rounded = grad if rounded is None else rounded + grad
    error, usual = ((x.double() - exact).abs().max() for x in (buffer, rounded))
    assert error < usual
    # dlogits are float32 on CPU, so that nothing but the sum is left to round
    assert error <= 2e-5 * exact.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_no_rows_and_no_grad_add_nothing(op, backend):
    buffer = torch.ones(VOCAB, WIDTH)
    hidden, weight, data = make(torch.float32, rows=ROWS)
    with torch.no_grad():
        op(hidden, weight, data, weight_grad=buffer, backend=backend)
    assert (buffer == 1).all()
    if op is not by_pairs:
        hidden, weight, data = make(torch.float32, rows=0)
        op(hidden, weight, data, weight_grad=buffer, backend=backend).backward()
        assert (buffer == 1).all() and weight.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
def test_loss_scale_is_a_factor_of_loss_and_gradients(backend, scale):
    hidden, weight, data = make(torch.float32)
    data["entropy_coef"] = 0.1
    loss = by_policy(hidden, weight, data, backend=backend)
    loss.backward()
    wanted = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None
    buffer = torch.zeros(VOCAB, WIDTH)
    scaled = by_policy(hidden, weight, data, loss_scale=scale, weight_grad=buffer, backend=backend)
    scaled.backward()
    torch.testing.assert_close(scaled, 0.25 * loss)
    torch.testing.assert_close(hidden.grad, 0.25 * wanted[0])
    torch.testing.assert_close(buffer, 0.25 * wanted[1])


def test_a_factor_that_comes_too_late_is_refused():
    hidden, weight, data = make(torch.float32)
    loss = by_policy(hidden, weight, data, weight_grad=torch.zeros(VOCAB, WIDTH))
    with pytest.raises(RuntimeError, match="ppo_head: with weight_grad .* got 0.5; .* pass the factor as loss_scale"):
        (loss * 0.5).backward()


@pytest.mark.parametrize("op", [by_logprobs, by_policy, by_pairs])
@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (torch.zeros(VOCAB, WIDTH - 1), r"weight_grad must have shape \(300, 20\), got \(300, 19\)"),
        (torch.zeros(VOCAB, WIDTH).bfloat16(), "weight_grad must be torch.float32, got torch.bfloat16"),
        (torch.zeros(WIDTH, VOCAB).T, r"weight_grad must be contiguous, got strides \(1, 300\)"),
        (torch.zeros(VOCAB, WIDTH).requires_grad_(), "weight_grad is a buffer and must not require a gradient"),
    ],
)
def test_wrong_buffers_are_named(op, buffer, message):
    hidden, weight, data = make(torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        op(hidden, weight, data, weight_grad=buffer)


@pytest.mark.parametrize("op", [by_logprobs, by_policy, by_pairs])
def test_a_frozen_weight_has_no_gradient_to_take(op):
    hidden, weight, data = make(torch.float32)
    with pytest.raises(ValueError, match="weight_grad needs a weight that requires a gradient, got a frozen one"):
        op(hidden, weight.detach(), data, weight_grad=torch.zeros(VOCAB, WIDTH))


def test_a_loss_scale_of_the_wrong_kind_is_named():
    hidden, weight, data = make(torch.float32)
    with pytest.raises(ValueError, match=r"ppo_head: loss_scale must have shape \(\), got \(1,\)"):
        by_policy(hidden, weight, data, loss_scale=torch.ones(1))
