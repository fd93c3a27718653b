"""The rivals: each turns hidden states into log-probs of targets, those libraries that import beside plain torch.

T rows, H hidden, V vocabulary.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from bench.shapes import Decisions

LogProb = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden (T, H), weight (V, H), target (T,)) -> log-probs (T,), differentiable in the first two."""


def eager(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """What a trainer without kernels does: logits in the weights' dtype, softmax in float32."""
    logits = (hidden @ weight.T).float()
    return torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]


def liger() -> LogProb:
    """linkedin/Liger-Kernel"""
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda hidden, weight, target: -loss(weight, hidden, target)


def liger_scaled() -> LogProb:
    """linkedin/Liger-Kernel's log-probs for RL, in hand-written kernels where it has them for the device"""
    function = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    function = function.LigerFusedLinearScaledCrossEntropyFunction
    return lambda hidden, weight, target: -function.apply(hidden, weight, target)


def cut_cross_entropy() -> LogProb:
    """apple/ml-cross-entropy"""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return lambda hidden, weight, target: -loss(hidden, weight, target, reduction="none")


def quack() -> LogProb:
    """Dao-AILab/quack; it gives the sum alone, so each row carries an equal share of it."""
    loss = importlib.import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy

    def summed(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return -loss(hidden, weight, target, reduction="sum") / max(1, len(target)) * torch.ones_like(hidden[:, 0])

    return summed


def quack_rows() -> LogProb:
    """Dao-AILab/quack's loss of each row, from whole logits"""
    loss = importlib.import_module("quack.linear_cross_entropy").linear_cross_entropy_func
    return lambda hidden, weight, target: -loss(hidden, weight, None, target, reduction="none")


def trl() -> LogProb:
    """huggingface/trl"""
    function = importlib.import_module("trl.kernels.chunked_logprob").ChunkedLogProbFunction
    return lambda hidden, weight, target: function.apply(hidden, weight, None, target, 1.0, 8192, None, 1.0, ())[0]


PEERS = {
    "liger-kernel": liger,
    "liger-kernel, scaled": liger_scaled,
    "cut-cross-entropy": cut_cross_entropy,
    "quack-kernels": quack,
    "quack-kernels, whole logits": quack_rows,
    "trl": trl,
}
SUMMED = ("quack-kernels",)


def available(device: str) -> tuple[dict[str, LogProb], dict[str, str]]:
    """(peers that import, why the others do not); all need a GPU."""
    if device != "cuda":
        return {}, dict.fromkeys(PEERS, "needs a GPU")
    found, missing = {}, {}
    for name, load in PEERS.items():
        try:
            found[name] = load()
        except Exception as error:  # a rival that breaks is a fact to report, whatever it raises
            missing[name] = f"{type(error).__name__}: {error}"
    return found, missing


def ppo_loss(logprob: LogProb, hidden: Tensor, weight: Tensor, target: Tensor, d: Decisions, clip: float) -> Tensor:
    """PPO's clipped loss on top of somebody's log-probs."""
    ratio = torch.exp(logprob(hidden, weight, target) - d.old_logprobs)
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return (d.weights * torch.maximum(-d.advantages * ratio, -d.advantages * clipped)).sum()
