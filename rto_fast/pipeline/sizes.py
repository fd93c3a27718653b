"""A model's sizes from its modules, with or without weights: what the arithmetic of footprint.py stands on."""

import re

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rto_fast.model.experts import expert_maps
from rto_fast.model.quantize import layer_maps
from rto_fast.pipeline.footprint import Sizes


def sizes_of(hf: PreTrainedModel) -> Sizes:
    """Of a causal language model, also on the meta device. Adapters on it do not count."""
    shape = hf.config.get_text_config()
    count = {name: p.numel() for name, p in hf.named_parameters() if ".lora_" not in name}
    output, embedding = hf.get_output_embeddings().weight, hf.get_input_embeddings().weight
    assert isinstance(output, Tensor) and isinstance(embedding, Tensor)
    head = 0 if output is embedding else output.numel()
    layers, hidden = shape.num_hidden_layers, shape.hidden_size
    heads = shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or hidden // heads
    kv = (getattr(shape, "num_key_value_heads", None) or heads) * width

    maps = _maps(hf)
    first = {name: sides for name, sides in maps.items() if re.search(r"\.0\.", name)}
    # a layer's maps between H and something that is neither queries nor values are its MLP's
    attention = {name for name in first if re.search(r"att", name.rpartition(".")[0].rpartition(".")[2])}
    mlp = {name: sides for name, sides in first.items() if name not in attention}
    down = next((sides for sides in reversed(mlp.values())), (4 * hidden, hidden))
    ups = sum(out for into, out in mlp.values() if into == hidden)
    experts = expert_maps(hf)
    chosen = getattr(shape, "num_experts_per_tok", 0) if experts else 0
    width_of_experts = chosen * next((p.shape[2] for name, p in experts.items() if name.endswith("down_proj")), 0)
    fused = any(out == heads * width + 2 * kv and kv for _, out in (first[name] for name in attention))
    names = {type(module).__name__ for module in hf.modules()}
    act = getattr(shape, "hidden_act", None) or getattr(shape, "activation_function", "")
    dtype = getattr(hf.config, "dtype", None)
    return Sizes(
        body=sum(count.values()) - head,
        head=head,
        matrices=sum(into * out for into, out in maps.values()) + sum(p.numel() for p in experts.values()),
        sides=tuple(
            (re.split(r"\.0\.", name, maxsplit=1)[1], into + out)
            for name, (into, out) in first.items()
            if name in attention or not experts  # which have no adapters
        ),
        layers=layers,
        hidden=hidden,
        query=heads * width,
        kv=kv,
        mlp=width_of_experts + down[0] * bool(mlp or not experts),
        chosen=chosen,
        idle=sum(p.numel() - p[0].numel() * chosen for p in experts.values()),
        vocab=embedding.shape[0],
        context=getattr(shape, "max_position_embeddings", None),
        gated=bool(experts) or ups >= 2 * down[0],
        fused=fused,
        rotary=any("Rotary" in name for name in names),
        rms=any("RMSNorm" in name for name in names),
        head_norms=any(name.endswith(("q_norm", "q_layernorm")) for name, _ in hf.named_modules()),
        parallel=bool(getattr(shape, "use_parallel_residual", False)),
        composed=act in ("gelu_new", "gelu_fast", "quick_gelu"),
        stored=dtype.itemsize if isinstance(dtype, torch.dtype) else None,
    )


def _maps(hf: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the layers' linear maps by name; the head is none of them."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in layer_maps(hf):
        if isinstance(module, nn.Linear):
            found[name.removesuffix(".base_layer")] = module.in_features, module.out_features
        else:
            found[name.removesuffix(".base_layer")] = int(module.weight.shape[0]), int(module.weight.shape[1])
    return found
