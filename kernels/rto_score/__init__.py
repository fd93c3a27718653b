"""Token rewards and advantages straight from the hidden states of policy, reference and DPO model."""

import torch
from torch import Tensor

from rto_fast.kernels.common.checks import check_head, check_like, check_target
from rto_fast.kernels.common.chunked import HeadPlan, statistics
from rto_fast.kernels.common.dispatch import choose, row_functions
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
from rto_fast.kernels.token_reward_gae.checks import check_reward, check_rows
from rto_fast.kernels.token_reward_gae.library import flat

from . import library
from .reference import FactoredLogits, RTOScore, rto_score_reference

__all__ = ["FactoredLogits", "RTOScore", "rto_score", "rto_score_reference"]


def rto_score(
    policy: FactoredLogits,
    reference: FactoredLogits,
    dpo: FactoredLogits | None,
    target: Tensor,  # (T,) int64
    values: Tensor,  # (R,) float32
    cu_seqlens: Tensor,  # (S+1,) int32
    reward: RewardSpec,
    *,
    rows: Tensor | None = None,  # (R,) int64
    workspace_mb: int | None = None,
    backend: str | None = None,
) -> RTOScore:
    """Log-probs of the same answers under three models, then token reward, GAE and whitening sums in one launch.

        log pi_k(y_t) = z_y - log sum_j exp z_j,   z = softcap_k(h_t W_k^T + b_k) / temperature_k,   k = pi, ref, dpo
        r_t = clip(beta_1 (log pi_dpo - log pi_ref), -c, c) - beta_2 (log pi_old - log pi_ref) + 1[last] (...)

    Zhong et al., Reinforced Token Optimization, eq. 4.6 (arXiv:2404.18922); see `linear_logprob` for the log-probs and
    their precision, `token_reward_gae` for the whole reward, `reward` and its recursions. The policy is PPO's pi_old.

    Each model is a FactoredLogits(hidden (T, H), weight (V, H), bias, softcap, temperature); H and the dtype may differ
    from model to model. `rows` are the response rows among the T packed ones, None for all: they are compacted once, so
    that prompts cost nothing and a NaN on a prompt row goes nowhere. S sequences lie end to end in the R response rows,
    sequence i on cu_seqlens[i] ... cu_seqlens[i + 1]. Values, and all per-row results, are (R,).

    Models that share one head (the same weight, bias, softcap and temperature: adapters on a frozen base) are stacked
    into one GEMM of 3 R rows, which reads the weight once. With beta_1 = 0 or dpo=None the DPO model is not read.

    Not differentiable: every input is read detached. Cost: 2 R V H FLOPs a model. Memory: one buffer of logits of at
    most `workspace_mb`, used by all models in turn (default: 64 MiB on CPU, of which 4 are used, 2 GiB on CUDA); the
    response rows' hidden states of one model, of three when they are stacked; a few numbers per row. No waiting for the
    device.

    Raises ValueError as `linear_logprob` and `token_reward_gae` do, naming the model.
    """
    if torch.compiler.is_compiling():
        scored = [policy, reference, *([dpo] if dpo is not None and reward.beta_1 else [])]
        with torch.no_grad():
            rest = (target, values, cu_seqlens, rows, *flat(reward), workspace_mb, backend)
            old, ref, of_dpo, *rewards = library.forward(*library.flat(scored), *rest)
        return RTOScore(old, ref, of_dpo if len(scored) > 2 else None, values.detach(), *rewards)
    backend = choose("rto_score", values.device, backend, dtype=policy.hidden.dtype)
    dpo = dpo if reward.beta_1 else None
    num_rows, device = values.shape[0] if values.dim() else 0, values.device
    check_rows("rto_score", values, cu_seqlens)
    check_reward("rto_score", reward, num_rows, cu_seqlens.shape[0] - 1, device)
    check_like("rto_score", "target", target, policy.hidden.shape[:1], torch.int64, device)
    if rows is not None:
        check_like("rto_score", "rows", rows, (num_rows,), torch.int64, device)
        _check_indices(rows, target.shape[0])
    elif target.shape[0] != num_rows:
        raise ValueError(
            f"rto_score: without rows all T = {target.shape[0]} rows are scored, but values are ({num_rows},);"
            " pass the response rows' numbers as rows"
        )
    target = target if rows is None else target.index_select(0, rows)
    models = {"policy": policy, "reference": reference}
    if dpo is not None:
        models["dpo"] = dpo
    for name, model in models.items():
        if model.hidden.shape[:1] != policy.hidden.shape[:1]:
            raise ValueError(
                f"rto_score ({name}): hidden must have the policy's {policy.hidden.shape[0]} rows, got"
                f" {tuple(model.hidden.shape)}; score the same packed batch with every model"
            )
        op, options = f"rto_score ({name})", (model.bias, model.temperature, model.softcap, workspace_mb, backend)
        check_head(op, model.hidden, model.weight, *options)
        check_target(op, target, num_rows, model.weight.shape[0], model.hidden.device)

    with torch.no_grad():
        logprobs = _logprobs(list(models.values()), target, rows, workspace_mb, backend)
        logprobs = [x.to(values.dtype) for x in logprobs]
        dpo_logprobs = logprobs[2] if dpo is not None else None
        columns = (logprobs[0], logprobs[1], dpo_logprobs, values.detach())
        return RTOScore(*columns, *token_reward_gae(*columns, cu_seqlens, reward, backend=backend))


def _logprobs(
    models: list[FactoredLogits], target: Tensor, rows: Tensor | None, workspace_mb: int | None, backend: str
) -> list[Tensor]:
    """(R,) log-probs of each model."""
    first = models[0]
    plan = HeadPlan(first.temperature, first.softcap, workspace_mb, row_functions(backend))
    if len(models) > 1 and all(_same_head(model, first) for model in models[1:]):
        hidden = _stacked(models, rows)
        stats = statistics(hidden, first.weight, first.bias, target.repeat(len(models)), plan, False)
        return list(stats.logprobs.view(len(models), -1) if len(target) else [stats.logprobs] * len(models))
    # one after the other: each finds the buffer that the one before gave back
    out = []
    for model in models:
        hidden = model.hidden if rows is None else model.hidden.index_select(0, rows)
        plan = plan._replace(temperature=model.temperature, softcap=model.softcap)
        out.append(statistics(hidden, model.weight, model.bias, target, plan, False).logprobs)
    return out


def _same_head(a: FactoredLogits, b: FactoredLogits) -> bool:
    return (
        _same_tensor(a.weight, b.weight)
        and _same_tensor(a.bias, b.bias)
        and (a.softcap, a.temperature, a.hidden.dtype) == (b.softcap, b.temperature, b.hidden.dtype)
    )


def _same_tensor(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are views of the same numbers."""
    if a is None or b is None:
        return a is b
    return a is b or (a.data_ptr() == b.data_ptr() and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype))


def _stacked(models: list[FactoredLogits], rows: Tensor | None) -> Tensor:
    """(len(models) R, H): the response rows of all models, gathered straight into place."""
    first = models[0].hidden
    count = first.shape[0] if rows is None else rows.shape[0]
    out = first.new_empty(len(models), count, first.shape[1])
    for part, model in zip(out, models, strict=True):
        if rows is None:
            part.copy_(model.hidden)
        else:
            torch.index_select(model.hidden, 0, rows, out=part)
    return out.flatten(0, 1)


def _check_indices(rows: Tensor, num_rows: int) -> None:
    # on CUDA the same check would wait for the device; index_select asserts there
    if rows.device.type == "cpu" and len(rows):
        low, high = (int(x) for x in rows.aminmax())
        if low < 0 or high >= num_rows:
            raise ValueError(f"rto_score: rows must lie in [0, T) = [0, {num_rows}), got values from {low} to {high}")
