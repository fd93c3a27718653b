"""Bugs that other projects have had in these operators, each as a test that ours passes."""

import tempfile
from pathlib import Path

import pytest
import torch

from rto_fast.kernels.common import workspace
from rto_fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
from tests.kernels.backends import NATIVE

BACKENDS = ["reference", NATIVE, "triton"]


def problem(rows: int, width: int, vocab: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, width, generator=g), torch.randn(vocab, width, generator=g) / width**0.5
    return hidden, weight, torch.randint(vocab, (rows,), generator=g)


def exact(hidden, weight, target):
    """Float64 leaves and the log-probs of the definition."""
    leaves = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    return leaves, linear_logprob_reference(*leaves, target)[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [50, 1000, 1280])
def test_no_phantom_columns_beyond_the_vocabulary(backend, vocab):
    """verl #2656, #2899: V % 1024 != 0 counted zero logits in the log-sum-exp, log-probs up to +123."""
    hidden, weight, target = problem(5, 16, vocab)
    bias = torch.full((vocab,), -60.0)
    got = linear_logprob(hidden, weight, target, bias=bias, backend=backend)
    logits = hidden.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(got.double(), logits.log_softmax(1).gather(1, target[:, None])[:, 0], rtol=0, atol=1e-4)
    assert (got <= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_that_are_all_very_negative(backend):
    """verl's epilogue starts its maximum at 0: below about -104 the log-prob is +inf and the entropy NaN."""
    hidden, weight, target = problem(4, 16, 300)
    bias = torch.full((300,), -200.0)
    out = linear_logprob(hidden, weight, target, bias=bias, return_stats=True, backend=backend)
    plain = linear_logprob(hidden, weight, target, return_stats=True, backend=backend)
    torch.testing.assert_close(out.logprobs, plain.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.entropy, plain.entropy, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [64, 300, 1024])
def test_bias_counts_once_however_wide_the_hidden_state(backend, width):
    """cut-cross-entropy #52: the bias was subtracted once for every block of 256 hidden units."""
    hidden, weight, target = problem(3, width, 120)
    bias = torch.linspace(-3, 3, 120)
    got = linear_logprob(hidden, weight, target, bias=bias, backend=backend)
    logits = hidden.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(got.double(), logits.log_softmax(1).gather(1, target[:, None])[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_row_has_its_own_upstream_gradient(backend):
    """Liger #1298: reduction="none" scaled all gradients by the first row's; its tests used only ones."""
    hidden, weight, target = problem(6, 16, 90)
    upstream = torch.tensor([3.0, -1.0, 0.0, 0.5, -20.0, 1e-3])
    leaves, wanted = exact(hidden, weight, target)
    (wanted * upstream.double()).sum().backward()
    hidden.requires_grad_(), weight.requires_grad_()
    (linear_logprob(hidden, weight, target, backend=backend) * upstream).sum().backward()
    for got, want in ((hidden.grad, leaves[0].grad), (weight.grad, leaves[1].grad)):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    assert (hidden.grad[2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_has_a_gradient(backend):
    """TRL's chunked op dropped the entropy's gradient silently; prime-rl's asserts on it."""
    hidden, weight, target = problem(5, 16, 70)
    leaves = [x.double().requires_grad_() for x in (hidden, weight)]
    logp = (leaves[0] @ leaves[1].T).log_softmax(1)
    (-(logp.exp() * logp).sum()).backward()
    hidden.requires_grad_(), weight.requires_grad_()
    linear_logprob(hidden, weight, target, return_stats=True, backend=backend).entropy.sum().backward()
    for got, want in ((hidden.grad, leaves[0].grad), (weight.grad, leaves[1].grad)):
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sure_token_keeps_the_digits_of_its_gradient(backend):
    """fla rounds p to bf16 before it subtracts 1: at p = 1 - 1e-5 nothing is left. expm1 of the log-prob keeps it.

    What remains is the rounding of the float32 sum of exponentials, which is 1 + 1e-5 here.
    """
    hidden, weight, target = torch.eye(1, 4), torch.zeros(50, 4), torch.tensor([7])
    weight[7, 0] = 15.5
    leaves, wanted = exact(hidden, weight, target)
    wanted.sum().backward()
    hidden.requires_grad_()
    linear_logprob(hidden, weight, target, backend=backend).sum().backward()
    assert 0 < leaves[0].grad[0, 0] < 2e-4
    torch.testing.assert_close(hidden.grad.double(), leaves[0].grad, rtol=0.05, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_probabilities_count_under_a_large_weight(backend):
    """cut-cross-entropy skips tiles of tiny gradients before it multiplies by the upstream gradient."""
    hidden, weight, target = problem(3, 16, 400)
    weight *= 4
    leaves, wanted = exact(hidden, weight, target)
    (wanted * 1e6).sum().backward()
    weight.requires_grad_()
    (linear_logprob(hidden, weight, target, backend=backend) * 1e6).sum().backward()
    torch.testing.assert_close(weight.grad.double(), leaves[1].grad, rtol=1e-2, atol=1.0)
    assert (weight.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_head_still_trains_the_hidden_states(backend):
    """verl #6913: flattening inside the autograd function lost requires_grad, and with it the hidden gradient."""
    hidden, weight, target = problem(4, 16, 80)
    ones = torch.ones(4)
    hidden.requires_grad_()
    linear_logprob(hidden, weight, target, backend=backend).sum().backward()
    alone = hidden.grad.clone()
    hidden.grad = None
    old = linear_logprob(hidden.detach(), weight, target, backend=backend)
    ppo_head(hidden, weight, target, old, ones, ones, backend=backend).loss.backward()
    assert weight.grad is None and alone.abs().max() > 0
    torch.testing.assert_close(hidden.grad, -alone, rtol=1e-4, atol=1e-6)


def test_more_rows_and_sequences_than_a_grid_axis_holds():
    """Liger's GRPO dies at 65,536 (grid y); rows and sequences here are on the axis that holds 2^31."""
    hidden, weight, target = problem(70_000, 4, 8)
    got = linear_logprob(hidden, weight, target)
    torch.testing.assert_close(got, linear_logprob_reference(hidden, weight, target)[0], rtol=1e-4, atol=1e-5)
    cu_seqlens = torch.arange(70_001, dtype=torch.int32)
    out = token_reward_gae(got, got - 1, got + 1, torch.zeros(70_000), cu_seqlens, RewardSpec(0.1, 0.03))
    torch.testing.assert_close(out.advantages, out.rewards, rtol=1e-5, atol=1e-6)
    assert out.moments.shape == (70_000, 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_coefficient_of_zero_switches_its_term_off(backend):
    """The authors' `scale > 0` guard made a scale of 0 mean full strength; and 0 * NaN is NaN."""
    values, logp = torch.zeros(6), -torch.rand(6)
    cu_seqlens = torch.tensor([0, 4, 6], dtype=torch.int32)
    nan = torch.full((6,), torch.nan)
    out = token_reward_gae(logp, logp, nan, values, cu_seqlens, RewardSpec(0.0, 0.03), backend=backend)
    assert (out.rewards == 0).all()
    out = token_reward_gae(logp, logp - 1, logp, values, cu_seqlens, RewardSpec(0.1, 0.0), backend=backend)
    torch.testing.assert_close(out.rewards, torch.full((6,), 0.1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_token_rewards_on_packed_sequences(backend):
    """The authors' code raises NotImplementedError for token rewards with packing."""
    g = torch.Generator().manual_seed(0)
    lengths = [5, 1, 9]
    rows = [torch.randn(15, generator=g) for _ in range(4)]
    reward = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = token_reward_gae(*rows, offsets, reward, backend=backend)
    for s, n in enumerate(lengths):
        a = int(offsets[s])
        own = (*(r[a : a + n] for r in rows), torch.tensor([0, n]).int())
        alone = token_reward_gae(*own, reward, backend=backend)
        assert torch.equal(packed.advantages[a : a + n], alone.advantages)


def test_the_gradient_of_a_ppo_loss_is_taken_once_or_refused():
    """A gradient made in the forward and scaled in place is wrong the second time; better an error than that."""
    hidden, weight, target = problem(4, 8, 30)
    hidden.requires_grad_()
    old = linear_logprob(hidden.detach(), weight, target)
    loss = ppo_head(hidden, weight, target, old, torch.ones(4), torch.ones(4)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_gradients_do_not_decay_with_the_number_of_chunks(backend, monkeypatch):
    """cut-cross-entropy #14, Liger #1472, verl's torch path: dW summed in bf16, an error for every chunk."""
    monkeypatch.setattr(workspace, "CPU_TILE_BYTES", 4 * 8 * 512)
    hidden, weight, target = (x.bfloat16() if x.is_floating_point() else x for x in problem(400, 16, 40))
    weight.requires_grad_()
    (got,) = torch.autograd.grad(linear_logprob(hidden, weight, target, backend=backend).sum(), weight)
    leaves, wanted = exact(hidden, weight, target)
    (wanted,) = torch.autograd.grad(wanted.sum(), leaves[1])
    # one rounding to bf16 of the whole sum, however many chunks it has
    assert ((got.double() - wanted).abs() <= 2**-8 * wanted.abs() + 2e-3 * wanted.abs().mean()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_operands_do_not_round_the_logits(backend):
    """Liger, TRL and eager round logits to bf16: 0.02 to 0.15 nat of noise in a reward of about 0.2 nat."""
    hidden, weight, target = problem(16, 64, 1000)
    hidden, weight = (12 * hidden).bfloat16(), weight.bfloat16()
    wanted = exact(hidden, weight, target)[1]
    rounded = (hidden @ weight.T).float().log_softmax(1).gather(1, target[:, None])[:, 0]
    assert (linear_logprob(hidden, weight, target, backend=backend) - wanted).abs().max() <= 1e-3
    assert (rounded - wanted).abs().max() > 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_beyond_half_precision(backend):
    """Liger's CuTe epilogue stages logits in fp16, which ends at 65,504."""
    hidden, weight, target = problem(4, 16, 100)
    hidden = hidden * 1e5
    wanted = exact(hidden, weight, target)[1]
    torch.testing.assert_close(
        linear_logprob(hidden, weight, target, backend=backend).double(), wanted, rtol=1e-5, atol=0.1
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bits_every_time(backend):
    """cut-cross-entropy merges under locks and verl under atomics: the order of the threads is in the result."""
    hidden, weight, target = problem(40, 16, 700)

    def run():
        leaves = [x.detach().requires_grad_() for x in (hidden, weight)]
        out = linear_logprob(*leaves, target, return_stats=True, backend=backend)
        return [*out, *torch.autograd.grad(out.logprobs.sum() + out.entropy.sum(), leaves)]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropy_is_float32_beside_half_precision(backend):
    """Liger's CuTe kernel returns the entropy in bf16."""
    hidden, weight, target = problem(5, 16, 300)
    out = linear_logprob(hidden.bfloat16(), weight.bfloat16(), target, return_stats=True, backend=backend)
    assert {x.dtype for x in out} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_width_and_any_layout(backend):
    """verl requires H % 128 == 0 and contiguous operands."""
    hidden, weight, target = problem(5, 7, 300)
    wanted = exact(hidden, weight, target)[1]
    turned = linear_logprob(hidden.T.contiguous().T, weight.T.contiguous().T, target, backend=backend)
    torch.testing.assert_close(turned.double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_label_outside_the_vocabulary_is_never_garbage(backend):
    """verl leaves uninitialised memory for a label outside [0, V). On CUDA ours is NaN: see test_bad_input.py."""
    hidden, weight, target = problem(3, 8, 50)
    for wrong in (-1, 50):
        with pytest.raises(ValueError, match=r"target must lie in \[0, V\) = \[0, 50\)"):
            linear_logprob(hidden, weight, target.index_fill(0, torch.tensor([1]), wrong), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_that_is_kept_gives_its_gradient_twice(backend):
    """Liger's gradient-in-forward losses scale their one buffer again."""
    hidden, weight, target = problem(5, 8, 50)
    hidden.requires_grad_()
    loss = (linear_logprob(hidden, weight, target, backend=backend) * torch.arange(5)).sum()
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("vocab", [32000, 50304, 128256, 151936, 262144])
def test_chunks_on_a_gpu_are_sized_by_bytes(vocab):
    """Liger's chunk shrinks with V / H: 32 chunks that each read the weight and read, add to and write dW."""
    cuda = torch.device("cuda")
    rows, columns = workspace.tile_shape(vocab, cuda, torch.float32, None)
    limit = workspace.workspace_bytes(cuda, None)
    assert rows >= 8192 and 4 * rows * columns <= limit
    # ppo_head's hold all columns: each of its chunks reads and writes dW
    assert workspace.chunk_rows(vocab, cuda, limit // 4) >= (4096 if vocab <= 1 << 17 else 2048)


def test_half_precision_operands_stay_so_on_a_gpu():
    """Liger's GRPO, TRL, NeMo-RL and fla cast operands to float32 before the GEMM: an eighth of the speed."""
    from rto_fast.kernels.common.kernel import operand

    x = torch.empty(2, 2, dtype=torch.bfloat16, device="meta")
    assert operand(x) is x


def test_no_kernel_is_autotuned():
    """SkyRL #2141: autotuning runs a kernel that works in place many times over the same tensor."""
    sources = [path.read_text() for path in Path(__file__).parents[2].glob("kernels/*/*.py")]
    assert len(sources) > 20 and not any("autotune" in source for source in sources)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [1.0, 0.01])
def test_long_sequences_are_summed_not_filtered(backend, decay):
    """torchrl cuts its geometric filter at 1e-7; sums in log space underflow to NaN at strong decay."""
    length = 3000 if backend == "reference" else 1200
    values = torch.randn(length, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(length)
    cu_seqlens = torch.tensor([0, length]).int()
    reward = RewardSpec(beta_1=0, beta_2=0.5, gamma=decay, lam=1.0)
    out = token_reward_gae(zeros, zeros + 1, None, values, cu_seqlens, reward, backend=backend)
    wanted, total = torch.empty(length, dtype=torch.float64), 0.0
    for t in reversed(range(length)):
        total = 0.5 + decay * total
        wanted[t] = total - values[t].double()
    torch.testing.assert_close(out.advantages.double(), wanted, rtol=4e-6, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_operator_waits_for_the_device():
    """Liger reads the number of rows that count with .item()."""
    from bench.gpu import parity
    from bench.gpu.log import Log

    log = Log(Path(tempfile.mkdtemp()), 1e9, {}, smoke=False)
    parity.waits(log)
    assert not log.failed
