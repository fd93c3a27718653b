"""Settings of the supervised stages: SFT, DPO, the reward model, and their optimizer."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rto_fast.config.checks import Section


@dataclass(frozen=True)
class OptimConfig(Section, prefix="optim."):
    """AdamW with a warm-up and a decay."""

    lr: Annotated[float, "a positive number"] = 1e-5
    """Learning rate at the peak."""
    warmup: Annotated[float, "in [0, 1)"] = 0.03
    """Share of the steps over which the rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after the warm-up."""
    min_lr: Annotated[float, "in [0, 1]"] = 0.1
    """Rate at the end of the decay, as a share of lr."""
    betas: Annotated[tuple[float, float], "two numbers in [0, 1)"] = (0.9, 0.95)
    """Adam's averaging of gradient and squared gradient."""
    eps: Annotated[float, "in (0, 1]"] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, "in [0, 100]"] = 0.0
    """Decoupled weight decay of matrices (never of norms and biases)."""
    max_grad_norm: Annotated[float, "0 or more"] = 1.0
    """Gradients are scaled down to this norm; 0 = never."""


@dataclass(frozen=True)
class SFTConfig(Section, prefix="sft."):
    """Supervised fine-tuning; its result is the reference pi_ref."""

    model: str | None = None
    """A model that is fine-tuned already: used as pi_ref, and the stage is skipped."""
    epochs: Annotated[float, "positive"] = 1.0
    """Passes over the demonstrations."""
    batch_size: Annotated[int, "at least 1"] = 32
    """Demonstrations per optimizer step (v1: 32)."""
    average: Literal["token", "sequence"] = "token"
    """What counts alike in a batch: every token or every answer."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    """v1: 1e-5."""


@dataclass(frozen=True)
class DPOConfig(Section, prefix="dpo."):
    """Direct preference optimization; its result pi_dpo gives the token rewards."""

    model: str | None = None
    """A model trained by DPO from pi_ref already: used as pi_dpo, and the stage is skipped."""
    beta: Annotated[float, "positive"] = 0.1
    """KL weight of the DPO loss (v1: 0.1)."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: Rafailov et al. 2023, eq. 7. ipo: Azar et al. 2023, eq. 17."""
    label_smoothing: Annotated[float, "in [0, 0.5)"] = 0.0
    """Assumed share of wrong labels (conservative DPO)."""
    epochs: Annotated[float, "positive"] = 1.0
    """Passes over the pairs."""
    batch_size: Annotated[int, "at least 1"] = 32
    """Pairs per optimizer step (v1: 32)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-6))
    """v1: 5e-6."""


@dataclass(frozen=True)
class RMConfig(Section, prefix="rm."):
    """A Bradley-Terry reward model trained on the pairs (eq. 2.2); its score is what beta_3 weighs."""

    model: str | None = None
    """A reward model that is trained already: used in its place, and the stage is skipped. Its tokenizer may differ."""
    epochs: Annotated[float, "positive"] = 1.0
    """Passes over the pairs."""
    batch_size: Annotated[int, "at least 1"] = 32
    """Pairs per optimizer step (v1: 32)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    """v1: 1e-5."""
