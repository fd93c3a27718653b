"""Frozen models in the memory of the arithmetic's type."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rto_fast.model.experts import expert_maps


def cast_matrices(network: nn.Module, dtype: torch.dtype) -> None:
    """The weights and biases of linear layers, and experts, in `dtype`, where autocast to `dtype` would cast them at
    every forward.

    Under that autocast the network computes the same bits as before. Embeddings (a head that is tied to them too) and
    norms stay: autocast reads them in float32, and so keeps the residual stream in it. Costs no second copy.
    """
    kept = {id(p) for module in network.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for module in network.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for parameter in module.parameters():
                if id(parameter) not in kept:
                    parameter.data = parameter.data.to(dtype)
    for parameter in expert_maps(network).values():
        parameter.data = parameter.data.to(dtype)
