"""Answers that were drawn from another distribution than the policy's, and what makes up for it.

    rho_t = pi_old(y_t | s_t) / mu(y_t | s_t)

mu is what the sampler drew from: another program's kernels, rounded logits, another temperature, or older weights.
PPO's surrogate is an expectation under pi_old, so a token's advantage A_t becomes w_t A_t with a weight that is cut:

    tis    w = min(rho, C)                            truncated importance sampling, Ionides 2008
    mask   w = rho where low <= rho <= high, else 0   what is further apart teaches nothing (IcePop)

A token's weight knows nothing of the tokens before it (its state was reached under mu) or after it (its return was), so
what is left is of second order in the gap. R response rows.
"""

import torch
from torch import Tensor

from rto_fast.config import CorrectionConfig


def corrected(
    advantages: Tensor,  # (R,) float32
    old_logprobs: Tensor,  # (R,) float32, log pi_old of the training forward
    sampled: Tensor,  # (R,) float32, log mu as the sampler gave it
    config: CorrectionConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(R,) float32 w A, and what there is to log, on the device:

    sampler_gap/mean, /max    |log rho|, in nats
    sampler_gap/ess           (sum rho)^2 / (R sum rho^2): the share of the tokens that the weights leave; 1 = no gap
    sampler_gap/cut           share of the tokens whose weight is not rho, with a correction
    """
    log_rho = old_logprobs - sampled
    gap = log_rho.abs()
    # of the largest, which no sum then overflows
    share = (log_rho - log_rho.max()).double().exp() if log_rho.numel() else log_rho.double()
    ess = share.sum().square() / (share.square().sum() * share.numel())
    stats = {"sampler_gap/mean": gap.mean(), "sampler_gap/max": gap.max(), "sampler_gap/ess": ess.float()}
    if config.kind == "off":
        return advantages, stats
    rho = log_rho.exp()
    cut = rho > config.cap if config.kind == "tis" else (rho < config.low) | (rho > config.high)
    weight = rho.clamp(max=config.cap) if config.kind == "tis" else torch.where(cut, 0.0, rho)
    return advantages * weight, stats | {"sampler_gap/cut": cut.float().mean()}
