"""The experts of a mixture, registered with transformers under the name "rto_experts".

    y_t = sum_k w_tk down_e(act(gate_e x_t) * up_e x_t),    e = expert_tk, k <= top_k

transformers' grouped products do it, one GEMM a map over rows sorted by their experts: no wait for the device, and sums
in an order of their own (an index_add's is another at every run on a GPU). They know nothing of autocast, under which
they would multiply in float32; here its type is that of the products, as of any linear layer's, and gradients reach the
float32 weights.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

NAME = "rto_experts"


def experts(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """The function transformers calls: hidden (T, H), chosen (T, top_k) int64, weights (T, top_k) -> (T, H)."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device):
        return grouped_mm_experts_forward(module, hidden, chosen, weights)
    dtype = torch.get_autocast_dtype(device)
    cast = {name: p.to(dtype) for name, p in module.named_parameters()}
    with torch.autocast(device, enabled=False):
        return functional_call(module, cast, (hidden.to(dtype), chosen, weights))


def expert_maps(network: nn.Module) -> dict[str, nn.Parameter]:
    """The stacked maps (experts, out, in) of every mixture in a network, by their names."""
    return {name: p for name, p in network.named_parameters() if p.ndim == 3}


def register() -> str:
    """Make "rto_experts" known to transformers (safe to call again) and return that name."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts)
    return NAME
