"""liger-kernel's fused norms, rotary embeddings and MLPs in the place of a network's own."""

import torch
from transformers import PreTrainedModel


def apply_liger(network: PreTrainedModel, device: torch.device | str) -> None:
    """Of a language model, or of a backbone alone.

    Raises ValueError away from CUDA, and for a family that liger-kernel does not know, which it would leave as it is.
    """
    if torch.device(device).type != "cuda":
        raise ValueError(f"model.liger: liger-kernel runs on CUDA only, got {device}; use --model.liger False")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if network.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(
            f"model.liger: liger-kernel has nothing for {type(network).__name__} ({network.config.model_type}); use "
            "--model.liger False"
        )
    # the losses stay ours: liger's would compute logits
    _apply_liger_kernel_to_instance(model=network, cross_entropy=False, fused_linear_cross_entropy=False)
