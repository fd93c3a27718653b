"""The networks of a stage: models of their own, or adapters on one base (adapter.rank)."""

import torch
from transformers import AutoModelForCausalLM

from rto_fast.files.text import one_line
from rto_fast.model.adapter_files import add_adapter, is_adapter, lora
from rto_fast.model.adapters import Base
from rto_fast.model.experts import expert_maps
from rto_fast.model.language import LanguageModel, zero_head
from rto_fast.model.liger import apply_liger
from rto_fast.model.load import calibration, scalar_head
from rto_fast.model.quantize import layer_maps
from rto_fast.model.scalar import ScalarModel, critic_from
from rto_fast.runs.open import Context
from rto_fast.training.seeds import derive


def adapted(context: Context, model: LanguageModel, name: str) -> LanguageModel:
    """The model itself to be trained, or with adapter.rank a new adapter on it."""
    if context.config.adapter.rank is None:
        return model
    base = _with_new(context, _shared(context, model), name)
    return LanguageModel(base.hf, base, name)


def frozen_on(context: Context, reference: LanguageModel, path: str, field: str, name: str) -> LanguageModel:
    """The model at `path`; where adapters are trained, one on `reference`'s weights shares them."""
    if context.config.adapter.rank is None or not context.lies_on_sft(path, field):
        return context.load(path, field, device=context.resting)
    base = _shared(context, reference)
    add_adapter(base, name, path, field)
    return LanguageModel(base.hf, base, name)


def scalar_on(context: Context, model: LanguageModel, name: str, bias: bool = True) -> ScalarModel:
    """A critic or reward model to be trained, from the model's weights and a head of zeros."""
    if context.config.adapter.rank is None:
        scalar = critic_from(model, bias)
        apply_liger(scalar.backbone, context.device, context.config.model.liger)
        context.checkpointed(scalar.backbone)
        return scalar
    base = _with_new(context, _shared(context, model), name)
    return ScalarModel.on(base, name, zero_head(base.hf.config.hidden_size, bias))


def critic_of(context: Context, reference: LanguageModel, path: str, field: str) -> ScalarModel:
    """A critic to be trained, from the reward model at `path`; from an adapter on `reference` one on it."""
    if context.config.adapter.rank is None:
        critic = context.load_scalar(path, field, trained=True)
        context.checkpointed(critic.backbone)
        return critic
    if not is_adapter(path):
        raise ValueError(
            f"{field}: {path!r} is a whole model, which would be trained whole beside the adapters; give an adapter's "
            "folder, or leave out adapter.rank"
        )
    base = _shared(context, reference)
    weight = add_adapter(base, "critic", path, field, trained=True)
    return ScalarModel.on(base, "critic", scalar_head(weight, path, field), *calibration(path, field))


def adapter_size(context: Context, model: LanguageModel) -> tuple[int, int]:
    """Numbers of a new adapter, and layers that have one. ValueError where there would be none; nothing is kept."""
    with torch.device("meta"):
        base = Base(AutoModelForCausalLM.from_config(model.hf.config, trust_remote_code=context.trusted))
        _with_new(context, base, "tried")
    return sum(p.numel() for p in base.parameters("tried").values()), len(base.layers)


def _with_new(context: Context, base: Base, name: str) -> Base:
    config = context.config.adapter
    assert config.rank is not None  # else nothing is added
    targets: str | list[str] = list(config.targets)
    if config.targets == ("all-linear",):
        # by its names for an MLP's maps PEFT would take experts too
        targets = _of_attention(base) if expert_maps(base.hf) else "all-linear"
    try:
        base.add(name, lora(config.rank, config.alpha, targets), seed=derive(context.config.seed, "adapter", name))
    except ValueError as error:
        raise ValueError(f"adapter.targets: {one_line(error, 300)}") from None
    return base


def _of_attention(base: Base) -> list[str]:
    """The names of linear maps in its attention."""
    names = (name.removesuffix(".base_layer").split(".") for name, _ in layer_maps(base.hf))
    return sorted({own for *_, parent, own in names if "att" in parent})


def _shared(context: Context, model: LanguageModel) -> Base:
    base = model.share()
    context.checkpointed(base.hf, base.recomputed)
    return base
