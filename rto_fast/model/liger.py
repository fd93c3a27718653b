"""liger-kernel's fused norms, rotary embeddings and MLPs in the place of a network's own."""

from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from rto_fast.model.experts import expert_maps


def unserved(model_type: str, device: torch.device | str) -> str | None:
    """Why liger-kernel changes no network of this family there; None where it does."""
    if torch.device(device).type != "cuda":
        return f"liger-kernel runs on CUDA only, got {device}"
    if find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return None if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN else f"liger-kernel has nothing for {model_type}"


def apply_liger(network: PreTrainedModel, device: torch.device | str, wanted: bool | None = True) -> None:
    """Of a language model, or of a backbone alone. wanted: model.liger, of which None is wherever it can be.

    Raises ValueError where it is wanted and cannot be: away from CUDA, and for a family that liger-kernel does not
    know, which it would leave as it is.
    """
    if wanted is False:
        return
    if reason := unserved(network.config.model_type, device):
        if wanted:
            raise ValueError(f"model.liger: {reason}; use --model.liger none")
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    # the losses stay ours: liger's would compute logits. So do experts
    own = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=network, **own, **({"swiglu": False} if expert_maps(network) else {}))
