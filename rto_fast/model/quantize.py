"""A frozen base whose linear maps take 4 bits a number: NF4 (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

Blocks of 64 numbers keep the largest of them, and of each number the nearest of 16 quantiles of a normal distribution.
A forward makes a map's numbers of them anew, in the arithmetic's type. Embeddings, norms and the language head stay, so
that log-probs come of the same head as ever.
"""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rto_fast.model.experts import expert_maps

BLOCK = 64
"""Numbers that share their largest."""
BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * 256)
"""Of a number: 4 bits, of its block the largest in 8 bits, and of 256 blocks a float32."""


def layer_maps(hf: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """The layers' linear maps by name; the head is none of them."""
    head = hf.get_output_embeddings()
    for name, module in hf.named_modules():
        if module is not head and ".lora_" not in name and re.search(r"\.\d+\.", name):
            if isinstance(module, nn.Linear | Conv1D):
                yield name, module


def check_quantized(device: torch.device) -> None:
    """Raises ValueError where no base can be trained on in 4 bits."""
    if device.type != "cuda":
        raise ValueError(f"adapter.quantize: nf4 is for a CUDA GPU, got {device}; leave it out")
    _check_package()


def _check_package() -> None:
    if find_spec("bitsandbytes") is None:
        raise ValueError('adapter.quantize: nf4 needs bitsandbytes; pip install "rto_fast[quantized]"')


def quantize(hf: PreTrainedModel, field: str) -> None:
    """In place, on the device where the model is moved next; its own numbers are given up map by map.

    ValueError, naming `field`, where a layer's maps are not linear layers, or no whole number of blocks wide.
    """
    _check_package()
    from bitsandbytes.nn.modules import Linear4bit, Params4bit

    maps = dict(layer_maps(hf))
    if expert_maps(hf):
        raise ValueError(
            f"{field}: the experts of a {type(hf).__name__} are no nn.Linear, which nf4 wants; leave it out"
        )
    if not maps or any(isinstance(module, Conv1D) for module in maps.values()):
        raise ValueError(f"{field}: the maps of a {type(hf).__name__} are no nn.Linear, which nf4 wants; leave it out")
    odd = {name: x.in_features for name, x in maps.items() if isinstance(x, nn.Linear) and x.in_features % BLOCK}
    for name, width in odd.items():
        # bitsandbytes 0.50 takes them, and on a CPU makes other numbers of them
        raise ValueError(f"{field}: {name} is {width} wide, and nf4 wants multiples of {BLOCK}; leave it out")
    for name, module in maps.items():
        assert isinstance(module, nn.Linear)
        weight, bias = module.weight.detach(), module.bias
        made: Any = Linear4bit(
            module.in_features, module.out_features, bias is not None, weight.dtype, quant_type="nf4", device="meta"
        )
        made.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
        made.bias = bias
        made.support_avx512bf16_for_cpu = False  # it would pack the weights anew for sums in bfloat16, and for good
        made.register_forward_pre_hook(_as_multiplied)
        parent, _, own = name.rpartition(".")
        setattr(hf.get_submodule(parent), own, made)
    setattr(hf, "is_loaded_in_4bit", True)  # noqa: B010  (which PEFT asks for, and torch's stubs know nothing of)


def _as_multiplied(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What autocast does for any other linear map: its output too is then of the arithmetic's type."""
    return (inputs[0].to(module.compute_dtype),)
