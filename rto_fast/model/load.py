"""Models from folders and hub ids: safetensors only, checked before and after; every refusal names its field."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.hub import cached_file

from rto_fast.files.digests import STAGE, check_stage
from rto_fast.files.foreign import (
    check_config,
    check_files,
    check_finite,
    check_loaded,
    check_model_folder,
    opening,
    read_object,
)
from rto_fast.model import attention, experts
from rto_fast.model.adapter_files import add_adapter, base_of, is_adapter, whole_of
from rto_fast.model.adapters import Base
from rto_fast.model.families import check_family
from rto_fast.model.language import LanguageModel, zero_head
from rto_fast.model.liger import apply_liger
from rto_fast.model.precision import cast_matrices
from rto_fast.model.quantize import quantize
from rto_fast.model.scalar import ScalarModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_folder(path: str, field: str, trust_remote_code: bool, scalar: bool = False, *, weights: bool = True) -> None:
    """Raises ValueError, naming `field`, for what is no model that can be trained here; a hub id's weights apart.

    weights  False: the configuration alone is wanted
    """
    if weights:
        check_stage(Path(path).expanduser(), field)
    path = whole_of(path, field)
    folder = Path(path).expanduser()
    if (folder / "config.json").exists():
        if weights:
            check_model_folder(folder, field, trust_remote_code)
        else:
            check_files(folder, field)
            check_config(folder, field, trust_remote_code)
    elif path.startswith((".", "/", "~")) or path.count("/") > 1 or folder.exists():
        raise ValueError(
            f"{field}: no config.json in {path!r}; give a Hugging Face model folder or a hub id such as gpt2"
        )
    check_family(path, field, trust_remote_code=trust_remote_code, scalar=scalar)


def _loading(path: str, dtype: torch.dtype, trust_remote_code: bool) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": path,
        "dtype": dtype,
        "attn_implementation": attention.register(),
        "experts_implementation": experts.register(),
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        # reported by check_loaded, which names the first of them
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }


def load_language_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "model.path",
    trust_remote_code: bool = False,
    liger: bool | None = False,
    autocast: torch.dtype | None = None,
    quantized: bool = False,
) -> LanguageModel:
    """Load a Hugging Face causal language model (a folder or a hub id; safetensors only).

    An adapter's folder gives its base with the adapter merged into it. `liger` replaces norms, rotary embeddings and
    MLPs by liger-kernel's (None: where it can). `autocast` is of a frozen model, which then takes the memory of that
    type (`cast_matrices`) and is to run under that autocast; `quantized` of one that adapters lie on (`quantize`).
    Raises ValueError naming `field` when the folder holds no model, and for liger=True where liger-kernel has nothing
    for it.
    """
    if is_adapter(path):
        there, fused = ("cpu", False) if quantized else (device, liger)
        merged, _ = _merged(path, dtype, there, field, trust_remote_code, fused)
        _placed(merged, device, path, field, autocast, quantized)
        if quantized:
            apply_liger(merged, device, liger)
        return LanguageModel(merged)
    check_folder(path, field, trust_remote_code)
    with opening(field, path, "causal language model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(**_loading(path, dtype, trust_remote_code))
    hf, info = loaded
    check_loaded(info, field, path)
    _placed(hf, device, path, field, autocast, quantized)
    apply_liger(hf, device, liger)
    return LanguageModel(hf)


def _placed(
    hf: PreTrainedModel,
    device: torch.device | str,
    path: str,
    field: str,
    autocast: torch.dtype | None,
    quantized: bool = False,
) -> PreTrainedModel:
    """On its device, in the memory of what it computes with; its numbers are looked at."""
    if autocast is not None:
        cast_matrices(hf.requires_grad_(False), autocast)
    if quantized:  # before they are moved, so that the device never holds more
        check_finite(hf, field, path)
        quantize(hf.requires_grad_(False), "adapter.quantize")
    moved: nn.Module = hf  # whose own stubs want another type
    moved.to(device)
    if not quantized:
        check_finite(hf, field, path)
    return hf


def _merged(
    path: str, dtype: torch.dtype, device: torch.device | str, field: str, trust_remote_code: bool, liger: bool | None
) -> tuple[PreTrainedModel, Tensor | None]:
    """An adapter's base with the adapter merged into it, and a reward model's head."""
    check_stage(Path(path).expanduser(), field)
    whole = load_language_model(
        base_of(path, field), dtype=dtype, device=device, field=field, trust_remote_code=trust_remote_code, liger=liger
    )
    base = Base(whole.hf)
    head = add_adapter(base, "merged", path, field)
    return base.merge("merged"), head


def stored_dtype(path: str, trust_remote_code: bool = False) -> torch.dtype | None:
    """The type of a folder's or hub id's weights, as its configuration says it; None where that says nothing usable."""
    dtype = AutoConfig.from_pretrained(whole_of(path, "model.path"), trust_remote_code=trust_remote_code).dtype
    return dtype if dtype in DTYPES.values() else None


def load_scalar_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "rm.model",
    trust_remote_code: bool = False,
    liger: bool | None = False,
    autocast: torch.dtype | None = None,
) -> ScalarModel:
    """Load a reward model, as a scorer or as a critic's start: a backbone and a head `score` or `value_head` (1, H).

    `mean` and `std` in its config.json, or beside an adapter in its stage.json, calibrate the output; they default to
    0 and 1. `liger` and `autocast` as in `load_language_model`.
    """
    if is_adapter(path):
        merged, weight = _merged(path, dtype, device, field, trust_remote_code, liger)
        head = scalar_head(weight, path, field).to(device)
        base = _placed(merged, device, path, field, autocast).base_model
        assert isinstance(base, PreTrainedModel)
        return ScalarModel(base, head, *calibration(path, field))
    weights = read_head(path, field, trust_remote_code)
    with opening(field, path, "reward model"):
        backbone, info = AutoModel.from_pretrained(**_loading(path, dtype, trust_remote_code))
    check_loaded(info, field, path)
    head = loaded_head(weights["weight"], weights.get("bias"))
    mean, std = (float(getattr(backbone.config, name, default)) for name, default in (("mean", 0.0), ("std", 1.0)))
    model = ScalarModel(_placed(backbone, device, path, field, autocast), head, mean, std).to(device)
    check_finite(model.head, field, path)
    apply_liger(backbone, device, liger)
    return model


def scalar_head(weight: Tensor | None, path: str, field: str) -> nn.Linear:
    """The head that an adapter brings (`add_adapter`). ValueError, naming `field`, where it brings none."""
    if weight is None:
        raise ValueError(f"{field}: the adapter {path!r} brings no score.weight; give a reward model")
    return loaded_head(weight)


def loaded_head(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A float32 head of a (1, H) weight; without a bias it adds 0."""
    head = zero_head(weight.shape[1])
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head


def calibration(path: str, field: str) -> tuple[float, float]:
    """Mean and std that an adapter's reward model is calibrated by; 0 and 1 where nothing says them."""
    stage = Path(path).expanduser() / STAGE
    said = read_object(stage, field) if stage.is_file() else {}
    return float(said.get("mean", 0.0)), float(said.get("std", 1.0))


def read_head(path: str, field: str, trust_remote_code: bool = False) -> dict[str, Tensor]:
    """The weight (1, H) and the bias, if any, of a reward model's head alone. Raises ValueError as the whole would."""
    check_folder(path, field, trust_remote_code, scalar=True)
    with opening(field, path, "reward model"):
        index = Path(path).expanduser() / "model.safetensors.index.json"
        listed = read_object(index, field)["weight_map"].values() if index.is_file() else ["model.safetensors"]
        found: dict[str, Tensor] = {}
        for name in sorted(set(listed)):
            with safe_open(cached_file(path, name), framework="pt") as file:
                for key in file.keys():
                    match key.split("."):
                        case [*_, "score" | "value_head", "weight" | "bias" as kind]:
                            found[kind] = file.get_tensor(key).float()
        if "weight" not in found or found["weight"].ndim != 2 or found["weight"].shape[0] != 1:
            raise ValueError(
                f"{field}: {path!r} holds no score.weight or value_head.weight of shape (1, hidden); give a reward "
                "model"
            )
    return found
