"""Log-probs, entropy and log-sum-exp of targets under a language-model head, without the logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from rto_fast.kernels.common.autograd import LinearLogprob
from rto_fast.kernels.common.checks import check_weight_grad

from . import library
from .prepare import prepare
from .reference import linear_logprob_reference

__all__ = ["LogProbs", "linear_logprob", "linear_logprob_reference"]


class LogProbs(NamedTuple):
    """Per row, (T,) float32, in nats."""

    logprobs: Tensor
    """log softmax(z)[target]: differentiable."""
    entropy: Tensor
    """-sum_j p_j log p_j: differentiable."""
    lse: Tensor
    """log sum_j exp z_j: not differentiable."""


def linear_logprob(
    hidden: Tensor,  # (T, H)
    weight: Tensor,  # (V, H)
    target: Tensor,  # (T,) int64
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    mask: Tensor | None = None,  # (T,) bool
    return_stats: bool = False,
    weight_grad: Tensor | None = None,  # (V, H) float32
    workspace_mb: int | None = None,
    backend: str | None = None,
) -> Tensor | LogProbs:
    """Log-probability of each row's target: z = softcap(h W^T + b) / temperature, logprob = z_y - log sum_j exp z_j.

    softcap(x) = c tanh(x / c), as in Gemma 2 (arXiv:2408.00118, section 2), identity for None.

    hidden, weight and bias share one dtype: float32, bfloat16, float16 (float64 on the reference backend). Returns
    logprobs (T,) float32 (float64 for float64), or with `return_stats` a LogProbs. Rows where `mask` is False are
    dropped before the first GEMM: 0 comes out, a gradient of exactly 0 goes back, whatever they hold (NaN included).

    Differentiable in hidden, weight and bias, through logprobs and entropy; lse is a statistic without a gradient.
    Logits, sums and dW accumulate in float32 whatever the dtype, so that a difference of two log-probs keeps 1e-3 nat.

    `weight_grad` is the caller's buffer for dW (a main_grad): the backward adds to it in float32, once for every
    backward and whatever dtype the weight has, and leaves weight.grad alone. Micro-batches then cost one rounding in
    all, and no (V, H) temporary.

    Cost: 2 T V H FLOPs forward, 6 T V H backward (logits are recomputed; 4 T V H with a frozen weight). Memory: one
    buffer of logits, at most `workspace_mb` (default: 64 MiB on CPU, of which 4 are used, 2 GiB on CUDA), four numbers
    per row between forward and backward, and the gradients, that of hidden as a float32 sum before it is rounded. On
    CUDA, `mask` waits once for the device.

    torch.compile takes it as one node of its graph (`rto_fast::linear_logprob`); with `weight_grad`, which the backward
    writes to, it breaks the graph.

    Deterministic. The tiles' geometry depends on V, the device and `workspace_mb` only, and each row is summed by
    itself: a row's result depends on other rows only as far as the GEMM library picks its kernel by the number of rows.

    Raises ValueError for wrong shapes, dtypes or devices, for a target outside [0, V) on CPU (on CUDA its log-prob is
    NaN: a check would wait for the device), and for a backend that cannot run here.
    """
    if torch.compiler.is_compiling() and weight_grad is None:
        inputs = (hidden, weight, target, bias, mask, temperature, softcap, return_stats, workspace_mb, backend)
        logprobs, maximum, log_sum, entropy = library.forward(*inputs)
        return LogProbs(logprobs, entropy, (maximum + log_sum).detach()) if return_stats else logprobs
    options = (temperature, softcap, workspace_mb, backend)
    hidden, target, index, plan = prepare(hidden, weight, target, bias, mask, *options)
    check_weight_grad("linear_logprob", weight_grad, weight)
    logprobs, lse, entropy = LinearLogprob.apply(hidden, weight, bias, target, plan, return_stats, weight_grad)
    out = (logprobs, entropy, lse) if return_stats else (logprobs,)
    if mask is not None:
        out = tuple(x.new_zeros(mask.shape).index_copy(0, index, x) for x in out)
    return LogProbs(*out) if return_stats else out[0]
