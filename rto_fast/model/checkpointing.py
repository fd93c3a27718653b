"""Gradient checkpointing: a layer's activations are computed again in the backward pass instead of kept."""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel


def checkpoint_layers(hf: PreTrainedModel, context_fn: Callable[[], Any] | None = None) -> None:
    """Keep the inputs of layers alone. Gradients are the same, bit for bit; one forward pass more is computed.

    context_fn  torch.utils.checkpoint's: two contexts, of a layer's forward and of its recomputation
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if context_fn is not None:
        options["context_fn"] = context_fn
    # transformers 5.24 renamed it, and warns of the old name
    enable = getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable
    enable(options)
