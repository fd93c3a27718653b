"""Every operator at real shapes against float64, and at the edges where kernels go wrong.

T rows, H hidden, V vocabulary. Bounds: log-probs within 1e-3 nat of float64 on the same bfloat16 operands; gradients
no further from it than twice what eager torch is in the same dtype, and a floor.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.gpu import exact
from bench.gpu.log import Log
from bench.shapes import Shape, decisions, head_inputs, offsets
from rto_fast.kernels.common.workspace import tile_shape
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae, token_reward_gae_reference

NATS = 1e-3
CLIP = 0.2


def compare(log: Log, name: str, got: Tensor, wanted: Tensor, bound: float) -> None:
    error = (got.double() - wanted.double()).abs().max().item() if got.numel() else 0.0
    log.check(name, error <= bound, f"error {error:.2e}, bound {bound:.2e}")


def heads(log: Log, shape: Shape, rows: int, device: str) -> None:
    """linear_logprob, ppo_head, preference_head and rto_score on one large batch, gradients included."""
    label = f"{shape.name} {shape.width}x{shape.vocab} T={rows}"
    inputs = head_inputs(shape, rows, device)
    exact_logprobs, lse = exact.logprobs(*inputs)
    chunk, _ = tile_shape(shape.vocab, torch.device(device), torch.float32, None)
    at = exact.samples(rows, (chunk,), 256, device)
    columns = exact.samples(shape.vocab, (4096, shape.vocab // 2), 128, device)
    given = decisions(exact_logprobs)

    def gradients(d_logprobs: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(float64, eager in the operands' dtype) gradients of hidden and weight, at the samples."""
        wanted = exact.gradients(*inputs, lse, d_logprobs, at, columns)
        return wanted, exact.eager_gradients(*inputs, d_logprobs, at, columns)

    def backward(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        hidden, weight = (x.detach().requires_grad_() for x in inputs[:2])
        d_hidden, d_weight = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
        return d_hidden[at], d_weight[columns]

    def judge(op: str, got: tuple[Tensor, Tensor], d_logprobs: Tensor) -> None:
        wanted, usual = gradients(d_logprobs)
        for name, g, w, u in zip(("d hidden", "d weight"), got, wanted, usual, strict=True):
            scale = w.abs().max().item()
            bound = 2 * (u.double() - w).abs().max().item() + 2**-8 * scale
            compare(log, f"{op} {name}, {label}", g, w, bound)

    d_logprobs = given.advantages * given.weights
    compare(log, f"linear_logprob, {label}", linear_logprob(*inputs), exact_logprobs, NATS)
    judge("linear_logprob", backward(lambda h, w: (linear_logprob(h, w, inputs.target) * d_logprobs).sum()), d_logprobs)

    old, advantages, weights = (x.double() for x in given)
    free = -advantages * torch.exp(exact_logprobs - old)
    clipped = -advantages * torch.exp(exact_logprobs - old).clamp(1 - CLIP, 1 + CLIP)
    out = ppo_head(*inputs, *given, clip=CLIP)
    compare(log, f"ppo_head log-probs, {label}", out.logprobs, exact_logprobs, NATS)
    wanted_loss = (weights * torch.maximum(free, clipped)).sum()
    compare(log, f"ppo_head loss, {label}", out.loss, wanted_loss, 1e-3)
    # a ratio within rounding of the clip's edge falls on either side of it
    edge = ((exact_logprobs - old).exp() - 1).abs().sub(CLIP).abs() < 4 * NATS
    masked = given._replace(weights=given.weights.masked_fill(edge, 0.0))
    slope = torch.where(free >= clipped, free, 0.0) * masked.weights
    judge("ppo_head", backward(lambda h, w: ppo_head(h, w, inputs.target, *masked, clip=CLIP).loss), slope)

    cu_seqlens = offsets(rows, 8, device)
    sums = torch.stack([part.sum() for part in exact_logprobs.split(cu_seqlens.diff().tolist())])
    ref_logprobs = (sums - torch.linspace(-2, 2, 8, device=device)).float()
    margins = 0.1 * ((sums[:4] - ref_logprobs[:4]) - (sums[4:] - ref_logprobs[4:]))
    pairs = preference_head(*inputs, cu_seqlens, ref_logprobs)
    # rounding of each row's log-prob adds up over a sequence
    bound = 2 * 0.1 * NATS * int(cu_seqlens.diff().max()) ** 0.5
    compare(log, f"preference_head margins, {label}", pairs.margins, margins, bound)
    coefficient = -0.1 * torch.sigmoid(-margins)
    d_rows = torch.cat((coefficient, -coefficient)).repeat_interleave(cu_seqlens.diff().long()).float()
    judge(
        "preference_head",
        backward(lambda h, w: preference_head(h, w, inputs.target, cu_seqlens, ref_logprobs).loss),
        d_rows,
    )

    rto = _three_models(log, label, inputs, exact_logprobs, device)
    log.check(f"rto_score finite, {label}", all(bool(x.isfinite().all()) for x in rto), "all outputs")


def _three_models(log: Log, label: str, inputs, exact_logprobs: Tensor, device: str):
    """rto_score with a shared head, where reference and DPO model are moved copies of the policy."""
    rows = len(inputs.target)
    cu_seqlens = offsets(rows, max(1, rows // 256), device)
    values = torch.linspace(-1, 1, rows, device=device)
    models = [inputs.hidden, inputs.hidden * 0.97, inputs.hidden * 1.02]
    logits = [FactoredLogits(hidden, inputs.weight) for hidden in models]
    reward = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05)
    out = rto_score(*logits, inputs.target, values, cu_seqlens, reward)
    apart = [linear_logprob(hidden, inputs.weight, inputs.target) for hidden in models]
    compare(log, f"rto_score log-probs, {label}", out.old_logprobs, exact_logprobs, NATS)
    for name, got, alone in zip(("reference", "dpo"), out[1:3], apart[1:], strict=True):
        compare(log, f"rto_score {name} against linear_logprob, {label}", got, alone, NATS)
    wanted = token_reward_gae(*out[:4], cu_seqlens, reward)
    for name, got, alone in zip(wanted._fields, out[4:], wanted, strict=True):
        compare(log, f"rto_score {name} against token_reward_gae, {label}", got, alone, 0.0)
    return out


def edges(log: Log, device: str, vocab: int, chunk: int | None = None) -> None:
    """Rows about the edge of a chunk, a vocabulary that is no multiple of anything, NaN in masked rows."""
    chunk = chunk or tile_shape(vocab, torch.device(device), torch.float32, None)[0]
    for rows in (0, 1, 7, chunk - 1, chunk, chunk + 1):
        inputs = head_inputs(Shape("edge", 64, vocab), rows, device)
        wanted, _ = exact.logprobs(*inputs)
        compare(log, f"linear_logprob, edge T={rows} V={vocab}", linear_logprob(*inputs), wanted, NATS)
        given = decisions(wanted)
        compare(log, f"ppo_head, edge T={rows} V={vocab}", ppo_head(*inputs, *given).logprobs, wanted, NATS)
    inputs = head_inputs(Shape("edge", 64, vocab), 9, device)
    mask = torch.arange(9, device=device) % 3 > 0
    hidden = inputs.hidden.masked_fill(~mask[:, None], torch.nan).requires_grad_()
    linear_logprob(hidden, inputs.weight, inputs.target, mask=mask).sum().backward()
    clean = bool((hidden.grad[~mask] == 0).all() & hidden.grad.isfinite().all())
    log.check("linear_logprob, NaN in masked rows", clean, "gradients are exactly 0 there and finite elsewhere")
    given = decisions(torch.zeros(9, device=device))._replace(weights=mask.float())
    hidden.grad = None
    loss = ppo_head(hidden, inputs.weight, inputs.target, *given).loss
    loss.backward()
    clean = bool((hidden.grad[~mask] == 0).all() & hidden.grad.isfinite().all() & loss.isfinite())
    log.check("ppo_head, NaN in rows of weight 0", clean, "gradients are exactly 0 there and finite elsewhere")
    if device == "cuda":
        target = inputs.target.clone()
        target[4] = vocab
        bad = linear_logprob(inputs.hidden, inputs.weight, target).isnan().nonzero()[:, 0].tolist()
        log.check("linear_logprob, target outside [0, V)", bad == [4], f"NaN in rows {bad}, wanted [4]")


def sequences(log: Log, device: str, cases: tuple[tuple[int, int], ...]) -> None:
    """token_reward_gae over (rows, sequences), against the row-by-row definition in float64 on a sample of them."""
    reward = RewardSpec(beta_1=0.05, beta_2=0.01, clip=0.05)
    for rows, count in cases:
        generator = torch.Generator().manual_seed(rows)
        columns = [torch.randn(rows, generator=generator) for _ in range(4)]
        cu_seqlens = offsets(rows, count, "cpu")
        got = token_reward_gae(*(x.to(device) for x in columns), cu_seqlens.to(device), reward)
        longest = int(cu_seqlens.diff().argmax())
        error = 0.0
        for s in {0, 1 % count, longest, count // 2, count - 1}:
            a, b = cu_seqlens[s : s + 2].tolist()
            part = [x[a:b].double() for x in columns]
            wanted = token_reward_gae_reference(*part, torch.tensor([0, b - a]), reward)
            for x, y in zip(got[:3], wanted[:3], strict=True):
                error = max(error, (x[a:b].cpu().double() - y).abs().max().item() if b > a else 0.0)
        log.check(f"token_reward_gae, {count} sequences in {rows} rows", error <= 2e-4, f"error {error:.2e}")


def waits(log: Log) -> None:
    """No operator may wait for the device."""
    inputs = head_inputs(Shape("edge", 64, 1000), 40, "cuda")
    cu_seqlens = offsets(40, 4, "cuda")
    logprobs = linear_logprob(*inputs)
    given = decisions(logprobs)
    logits = [FactoredLogits(inputs.hidden, inputs.weight)] * 3
    leaf = inputs.hidden.detach().requires_grad_()
    scale = torch.ones((), device="cuda")
    reward = RewardSpec(0.1, 0.1)
    runs = {
        "linear_logprob": lambda: linear_logprob(leaf, *inputs[1:]).sum().backward(),
        "ppo_head": lambda: ppo_head(leaf, *inputs[1:], *given, loss_scale=scale).loss.backward(),
        "preference_head": lambda: preference_head(
            leaf, *inputs[1:], cu_seqlens, torch.zeros(4, device="cuda")
        ).loss.backward(),
        "rto_score": lambda: rto_score(*logits, inputs.target, logprobs, cu_seqlens, reward),
        "token_reward_gae": lambda: token_reward_gae(*[logprobs] * 4, cu_seqlens, reward),
    }
    for name, run in runs.items():
        try:
            run()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            run()
            log.check(f"{name} never waits for the device", True, "no synchronisation")
        except RuntimeError as error:
            log.check(f"{name} never waits for the device", False, str(error).splitlines()[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
