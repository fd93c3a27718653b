"""Settings of the supervised stages: SFT, DPO, the reward model, and their optimizer."""

import math
from dataclasses import dataclass, field
from typing import Literal

from rto_fast.config.checks import check


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up and a decay."""

    lr: float = 1e-5
    """Learning rate at the peak."""
    warmup: float = 0.03
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after the warm-up."""
    min_lr: float = 0.1
    """Rate at the end of the decay, as a share of lr."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's averaging of gradient and squared gradient."""
    eps: float = 1e-8
    """Adam's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (never of norms and biases)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 = never."""

    def __post_init__(self) -> None:
        check(self.lr > 0 and math.isfinite(self.lr), "optim.lr", "a positive number", self.lr)
        check(0 <= self.warmup < 1, "optim.warmup", "in [0, 1)", self.warmup)
        check(0 <= self.min_lr <= 1, "optim.min_lr", "in [0, 1]", self.min_lr)
        check(all(0 <= b < 1 for b in self.betas), "optim.betas", "two numbers in [0, 1)", self.betas)
        check(0 < self.eps <= 1, "optim.eps", "in (0, 1]", self.eps)
        check(0 <= self.weight_decay <= 100, "optim.weight_decay", "in [0, 100]", self.weight_decay)
        check(self.max_grad_norm >= 0, "optim.max_grad_norm", "0 or more", self.max_grad_norm)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning; its result is the reference pi_ref."""

    model: str | None = None
    """A model that is fine-tuned already: used as pi_ref, and the stage is skipped."""
    epochs: float = 1.0
    """Passes over the demonstrations."""
    batch_size: int = 32
    """Demonstrations per optimizer step (v1: 32)."""
    average: Literal["token", "sequence"] = "token"
    """What counts alike in a batch: every token or every answer."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    """v1: 1e-5."""

    def __post_init__(self) -> None:
        check(self.epochs > 0, "sft.epochs", "positive", self.epochs)
        check(self.batch_size >= 1, "sft.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimization; its result pi_dpo gives the token rewards."""

    model: str | None = None
    """A model trained by DPO from pi_ref already: used as pi_dpo, and the stage is skipped."""
    beta: float = 0.1
    """KL weight of the DPO loss (v1: 0.1)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: Rafailov et al. 2023, eq. 7. ipo: Azar et al. 2023, eq. 17."""
    label_smoothing: float = 0.0
    """Assumed share of wrong labels (conservative DPO)."""
    epochs: float = 1.0
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per optimizer step (v1: 32)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6))
    """v1: 5e-6."""

    def __post_init__(self) -> None:
        check(self.beta > 0, "dpo.beta", "positive", self.beta)
        check(0 <= self.label_smoothing < 0.5, "dpo.label_smoothing", "in [0, 0.5)", self.label_smoothing)
        check(self.epochs > 0, "dpo.epochs", "positive", self.epochs)
        check(self.batch_size >= 1, "dpo.batch_size", "at least 1", self.batch_size)


@dataclass(frozen=True)
class RMConfig:
    """A Bradley-Terry reward model trained on the pairs (eq. 2.2); its score is what beta_3 weighs."""

    model: str | None = None
    """A reward model that is trained already: used in its place, and the stage is skipped. Its tokenizer may differ."""
    epochs: float = 1.0
    """Passes over the pairs."""
    batch_size: int = 32
    """Pairs per optimizer step (v1: 32)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    """v1: 1e-5."""

    def __post_init__(self) -> None:
        check(self.epochs > 0, "rm.epochs", "positive", self.epochs)
        check(self.batch_size >= 1, "rm.batch_size", "at least 1", self.batch_size)
