"""What the real shapes do not reach: every option of the heads, several chunks of rows, tiles beyond int32 offsets.

T rows, H hidden, V vocabulary. Here the logits fit, so that the operators' definitions in float64 are the oracle and,
in the operands' dtype, the measure of what rounding costs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu.log import Log
from bench.gpu.parity import NATS, compare
from bench.shapes import Shape, decisions, head_inputs
from rto_fast.kernels.common.workspace import chunk_rows, tile_shape
from rto_fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from rto_fast.kernels.ppo_head import ppo_head, ppo_head_reference


def no_worse(log: Log, name: str, got: tuple[Tensor, ...], usual: tuple[Tensor, ...], wanted: tuple[Tensor, ...]):
    """Gradients of hidden, weight and bias: at most twice eager's error, and the rounding of the result."""
    for part, g, u, w in zip(("hidden", "weight", "bias"), got, usual, wanted, strict=True):
        bound = 2 * (u.double() - w).abs().max().item() + 2**-8 * w.abs().max().item()
        compare(log, f"{name}, d {part}", g, w, bound)


def options(log: Log, device: str, rows: int, vocab: int, workspace_mb: int | None) -> None:
    """Bias, temperature, soft-cap, entropy and KL with their gradients, chunk after chunk of rows."""
    hidden, weight, target = head_inputs(Shape("options", 128, vocab), rows, device)
    bias = torch.linspace(-2, 2, vocab, device=device, dtype=hidden.dtype)
    chunked = dict(workspace_mb=workspace_mb)

    def leaves(dtype: torch.dtype) -> list[Tensor]:
        return [x.detach().to(dtype).requires_grad_() for x in (hidden, weight, bias)]

    def grad(loss: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, inputs)

    for temperature, softcap in ((1.0, None), (0.7, 20.0)):
        label = f"T={rows} V={vocab}, temperature {temperature}, softcap {softcap}"
        shaped = dict(temperature=temperature, softcap=softcap)
        with torch.no_grad():
            double = linear_logprob_reference(hidden.double(), weight.double(), target, bias=bias.double(), **shaped)
        given = decisions(double[0])
        ref = given.old_logprobs - 0.1

        def logprobs(op: Callable, dtype: torch.dtype, shaped=shaped, given=given, **more) -> tuple:
            h, w, b = inputs = leaves(dtype)
            out = op(h, w, target, bias=b, **shaped, **more)
            up, across = given.advantages.to(out[0].dtype), given.old_logprobs.to(out[0].dtype)
            return out, grad((up * out[0]).sum() + (across * out[1]).sum(), inputs)

        wanted, d_wanted = logprobs(linear_logprob_reference, torch.float64)
        _, d_usual = logprobs(linear_logprob_reference, hidden.dtype)
        got, d_got = logprobs(linear_logprob, hidden.dtype, return_stats=True, **chunked)
        for name, g, w in zip(("log-probs", "entropy", "lse"), got, wanted, strict=True):
            compare(log, f"linear_logprob {name}, {label}", g, w, NATS)
        no_worse(log, f"linear_logprob with entropy, {label}", d_got, d_usual, d_wanted)

        def ppo(op: Callable, dtype: torch.dtype, shaped=shaped, given=given, ref=ref, **more) -> tuple[Tensor, ...]:
            h, w, b = inputs = leaves(dtype)
            rows = [x.double() if dtype == torch.float64 else x for x in (*given, ref)]
            # no clipping: rounded logits would put rows on another side of it
            how = dict(clip=1e6, entropy_coef=0.01, kl_coef=0.1, kl="k3", ref_logprobs=rows[3])
            return grad(op(h, w, target, *rows[:3], bias=b, **how, **shaped, **more)[0], inputs)

        d_wanted, d_usual = (ppo(ppo_head_reference, dtype) for dtype in (torch.float64, hidden.dtype))
        d_got = ppo(ppo_head, hidden.dtype, return_entropy=True, **chunked)
        no_worse(log, f"ppo_head with entropy and KL, {label}", d_got, d_usual, d_wanted)


def edges(log: Log, device: str, vocab: int, workspace_mb: int) -> None:
    """Gradients where a chunk of rows is a single row: T = 1, and one row more than a chunk of either operator."""
    options(log, device, 1, vocab, workspace_mb)
    options(log, device, chunk_rows(vocab, torch.device(device), (workspace_mb << 20) // 4) + 1, vocab, workspace_mb)
    # few columns, so that float64 logits of linear_logprob's long chunks fit
    few = min(vocab, 5003)
    chunk, _ = tile_shape(few, torch.device(device), torch.float32, workspace_mb)
    options(log, device, chunk + 1, few, workspace_mb)


def far_logits(log: Log, device: str, vocab: int) -> None:
    """All logits about -130, and one column of -inf."""
    hidden, weight, target = head_inputs(Shape("far", 64, vocab), 9, device)
    bias = torch.full((vocab,), -130.0, device=device, dtype=hidden.dtype)
    bias[5] = -torch.inf
    target.clamp_(min=6)
    got = linear_logprob(hidden, weight, target, bias=bias, return_stats=True)
    wanted = linear_logprob_reference(hidden.double(), weight.double(), target, bias=bias.double())
    for name, g, w in zip(("log-probs", "entropy", "lse"), got, wanted, strict=True):
        compare(log, f"{name} of logits about -130 and one of -inf, V={vocab}", g, w, NATS)


def beyond_int32(log: Log, device: str, rows: int, vocab: int, workspace_mb: int) -> None:
    """One tile of more than 2^31 logits: the last rows, whose offsets overflow an int32, as in a batch of their own."""
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 3 * workspace_mb << 20:
        log.note(f"a tile of more than 2^31 logits: not checked, it needs {3 * workspace_mb} MiB of free memory")
        return
    hidden, weight, target = head_inputs(Shape("beyond", 64, vocab), rows, device)
    last = slice(max(0, rows - 64), rows)
    given = decisions(linear_logprob(hidden, weight, target))
    # no other row has a gradient, so that d weight too is that of the last rows alone
    given = given._replace(weights=(torch.arange(rows, device=device) >= last.start).float())

    def run(at: slice, megabytes: int | None) -> tuple[Tensor, ...]:
        h, w = hidden[at].detach().requires_grad_(), weight.detach().requires_grad_()
        scored = linear_logprob(h, w, target[at], workspace_mb=megabytes)
        d_scored = torch.autograd.grad((scored * given.weights[at]).sum(), (h, w))
        out = ppo_head(h, w, target[at], *(x[at] for x in given), workspace_mb=megabytes)
        d_loss = torch.autograd.grad(out.loss, (h, w))
        return scored[-64:], out.logprobs[-64:], d_scored[0][-64:], d_scored[1], d_loss[0][-64:], d_loss[1]

    ops = ("linear_logprob", "ppo_head")
    names = [*ops, *(f"{op} d {x}" for op in ops for x in ("hidden", "weight"))]
    for name, whole, alone in zip(names, run(slice(0, rows), workspace_mb), run(last, None), strict=True):
        bound = NATS if whole.dim() == 1 else 2**-6 * alone.abs().max().item()
        compare(log, f"{name}, the last rows of a tile of {rows} x {vocab}", whole, alone, bound)
