"""Preference loss (DPO, conservative DPO, IPO) over packed pairs, from hidden states."""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.autograd import LinearLogprob
from rto_fast.kernels.common.checks import check_head, check_like, check_target, check_weight_grad
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.dispatch import choose, row_functions
from rto_fast.kernels.common.segments import sequence_sums
from rto_fast.kernels.common.workspace import accumulator
from rto_fast.kernels.linear_logprob import library

from .autograd import PairLoss
from .reference import pair_losses, preference_head_reference

__all__ = ["PreferenceHead", "preference_head", "preference_head_reference"]


class PreferenceHead(NamedTuple):
    """B pairs; all differentiable."""

    loss: Tensor
    """() float32: a sum over pairs."""
    logprobs: Tensor
    """(2B,) float32: log-prob of each sequence, B chosen and then B rejected."""
    margins: Tensor
    """(B,) float32: beta ((pi_c - ref_c) - (pi_r - ref_r)), the implicit reward's preference for the chosen one."""


def preference_head(
    hidden: Tensor,  # (R, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (R,) int64
    cu_seqlens: Tensor,  # (2B+1,) int32
    ref_logprobs: Tensor,  # (2B,) float32
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
    pair_weights: Tensor | None = None,  # (B,) float32
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    weight_grad: Tensor | None = None,  # (V, H) float32
    workspace_mb: int | None = None,
    backend: str | None = None,
) -> PreferenceHead:
    """Sum over pairs of the loss of DPO (arXiv:2305.18290, eq. 7) or IPO (arXiv:2310.12036, eq. 17):

        sigmoid: -(1 - label_smoothing) log sigmoid(m) - label_smoothing log sigmoid(-m)
        ipo:     (m / beta - 1 / (2 beta))^2
        m = beta ((pi_c - ref_c) - (pi_r - ref_r)), pi the sum of a sequence's log-probs under the head

    Sequences lie end to end in R rows, sequence i on rows cu_seqlens[i] ... cu_seqlens[i + 1]: 0 ... B-1 are the chosen
    ones, B ... 2B-1 the rejected ones of the same pairs. `ref_logprobs` holds the reference policy's sums; zeros make a
    reference-free loss. label_smoothing 0 < s < 0.5 is conservative DPO. `pair_weights` scale the losses.

    Log-probs are those of `linear_logprob`, whose dtypes, options, precision and weight_grad hold here; sums are
    float32 (added in float64 on CPU).

    Differentiable in hidden, weight and bias through every output. Cost: that of `linear_logprob`, 2 R V H FLOPs
    forward and 6 R V H backward (4 with a frozen weight), one bounded buffer of logits. Deterministic.

    Raises ValueError as `linear_logprob` does, for an unknown `loss`, and for sequences that are no pairs.
    """
    if torch.compiler.is_compiling() and weight_grad is None:
        given = (hidden, weight, target, bias, None, temperature, softcap, False, workspace_mb, backend)
        return _in_torch(
            library.forward(*given)[0], cu_seqlens, ref_logprobs, pair_weights, beta, label_smoothing, loss
        )
    backend = choose("preference_head", hidden.device, backend, dtype=hidden.dtype)
    check_head("preference_head", hidden, weight, bias, temperature, softcap, workspace_mb, backend)
    check_target("preference_head", target, hidden.shape[0], weight.shape[0], hidden.device)
    check_weight_grad("preference_head", weight_grad, weight)
    _check_pairs(hidden, cu_seqlens, ref_logprobs, pair_weights, beta, label_smoothing, loss)
    plan = HeadPlan(temperature, softcap, workspace_mb, row_functions(backend))
    rows, _, _ = LinearLogprob.apply(hidden, weight, bias, target.contiguous(), plan, False, weight_grad)
    if backend != "reference":
        if backend == "native":
            from .native import pairs
        else:
            from .kernel import pairs
        inputs = (None if x is None else x.contiguous() for x in (cu_seqlens, ref_logprobs, pair_weights))
        return PreferenceHead(*PairLoss.apply(rows, *inputs, beta, label_smoothing, loss, pairs))
    return _in_torch(rows, cu_seqlens, ref_logprobs, pair_weights, beta, label_smoothing, loss)


def _in_torch(
    rows: Tensor,
    cu_seqlens: Tensor,
    ref_logprobs: Tensor,
    pair_weights: Tensor | None,
    beta: float,
    label_smoothing: float,
    loss: str,
) -> PreferenceHead:
    """The pairs' losses by torch's own operators, from the log-probs of all rows."""
    sums = sequence_sums(rows, cu_seqlens)
    losses, margins = pair_losses(sums, ref_logprobs, beta, label_smoothing, loss)
    return PreferenceHead((losses if pair_weights is None else losses * pair_weights).sum(), sums, margins)


def _check_pairs(
    hidden: Tensor,
    cu_seqlens: Tensor,
    ref_logprobs: Tensor,
    pair_weights: Tensor | None,
    beta: float,
    label_smoothing: float,
    loss: str,
) -> None:
    op, device, dtype = "preference_head", hidden.device, accumulator(hidden.dtype)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] % 2 == 0:
        raise ValueError(
            f"{op}: cu_seqlens must be (2B+1,) for B pairs, got {tuple(cu_seqlens.shape)}; every chosen sequence needs"
            " its rejected one"
        )
    sequences = cu_seqlens.shape[0] - 1
    check_like(op, "cu_seqlens", cu_seqlens, (sequences + 1,), torch.int32, device)
    check_like(op, "ref_logprobs", ref_logprobs, (sequences,), dtype, device)
    if pair_weights is not None:
        check_like(op, "pair_weights", pair_weights, (sequences // 2,), dtype, device)
    if loss not in ("sigmoid", "ipo"):
        raise ValueError(f"{op}: loss must be 'sigmoid' or 'ipo', got {loss!r}")
    if not beta > 0.0:
        raise ValueError(f"{op}: beta must be > 0, got {beta}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"{op}: label_smoothing must lie in [0, 0.5), got {label_smoothing}")
    if loss == "ipo" and label_smoothing:
        raise ValueError(
            f"{op}: label_smoothing belongs to loss='sigmoid', got {label_smoothing} with 'ipo'; set it to 0"
        )
    # on CUDA the same check would wait for the device
    if device.type == "cpu":
        ends = (int(cu_seqlens[0]), int(cu_seqlens[-1]))
        if ends != (0, hidden.shape[0]) or bool((cu_seqlens.diff() < 0).any()):
            raise ValueError(
                f"{op}: cu_seqlens must rise from 0 to R = {hidden.shape[0]}, got {ends[0]} ... {ends[1]}"
                + (" with a step down" if ends == (0, hidden.shape[0]) else "")
            )
