"""Whether an optimizer step may be taken, decided on the device: the host is not made to wait for it.

AdamW's fused step takes `found_inf`, a number on the device: where it is not 0 neither weights nor moments move.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rto_fast.config import GuardConfig
from rto_fast.files.disk import replacing


class BadStep(FloatingPointError):
    """A loss or a gradient that is not finite; `batches` are the micro-batches since the host last looked."""

    def __init__(self, message: str, batches: list[Any]):
        super().__init__(message)
        self.batches = batches


class StepGuard:
    """Watches losses and gradient norms of a stage's steps."""

    def __init__(self, config: GuardConfig, device: torch.device):
        self.config = config
        self.first_bad = torch.zeros((), device=device)
        """Number of the first step (from 1) with a value that is not finite, 0 while there is none. From there on
        every step is refused, so that the weights stay those of the last good one."""
        self.worst_norm = torch.zeros((), device=device)
        """Largest gradient norm since the last report."""
        self.recent: list[Any] = []
        """Micro-batches since the last report."""

    def refuse(self, step: int, batches: list[Any], loss: Tensor, norms: list[Tensor]) -> Tensor:
        """() float32 on the device: not 0 when step number `step` (from 1) must not be taken."""
        self.recent += batches
        norm = torch.stack(norms).max()
        bad = ~torch.isfinite(torch.stack([loss, *norms])).all()
        self.first_bad = torch.where((self.first_bad == 0) & bad, float(step), self.first_bad)
        self.worst_norm = torch.maximum(self.worst_norm, norm)
        refused = self.first_bad > 0
        if self.config.grad_norm is not None and self.config.grad_norm_action != "warn":
            refused = refused | (norm > self.config.grad_norm)
        return refused.float()

    def report(self, loss: float) -> dict[str, float]:
        """What there is to log; the host waits here. Raises BadStep, and FloatingPointError for a norm above a limit
        that is to stop the run."""
        self.raise_if_broken(loss)
        worst, limit = float(self.worst_norm), self.config.grad_norm
        self.worst_norm, self.recent = torch.zeros_like(self.worst_norm), []
        if limit is None or worst <= limit:
            return {}
        if self.config.grad_norm_action == "stop":
            raise FloatingPointError(
                f"guards.grad_norm: a gradient norm of {worst:.3g} is above {limit:g}; the weights were left as they "
                "were before that step: lower the learning rate, or raise the limit"
            )
        return {"guard/grad_norm": worst}

    def raise_if_broken(self, loss: float | None = None) -> None:
        """Raises BadStep when any step so far was not finite."""
        if step := int(self.first_bad):
            shown = "" if loss is None else f" (loss {loss:g})"
            raise BadStep(
                f"step {step}: the gradient is not finite{shown}; the weights were left as they were before it: lower "
                "this stage's optim.lr or look at the batch",
                self.recent,
            )


def dump(file: Path, batches: list[Any]) -> str:
    """Write the micro-batches' tensors, by number and field, to `file`.safetensors; returns a clause that says so."""
    tensors: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        _collect(tensors, str(number), batch)
    target = file.with_name(file.name + ".safetensors")
    try:
        with replacing(target) as partial:
            save_file({name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}, partial)
    except (OSError, SafetensorError) as error:
        return f"the batches since the last logged step could not be written ({error})"
    return f"the batches since the last logged step are in {target}"


def _collect(tensors: dict[str, Tensor], name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        tensors[name] = value
    named = [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "_fields", ())
    for field in named:
        _collect(tensors, f"{name}.{field}", getattr(value, field))
