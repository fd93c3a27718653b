"""Adapters on disk, as PEFT has them: adapter_config.json and adapter_model.safetensors."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rto_fast.files.foreign import check_files, opening, read_object
from rto_fast.model.adapters import Base

if TYPE_CHECKING:
    from peft import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before the names of weights in PEFT's files."""
HEAD = "score"
"""A reward model's head, as AutoModelForSequenceClassification has it."""

_READ = {"r", "lora_alpha", "target_modules", "fan_in_fan_out", "base_model_name_or_path", "peft_type"}
_OF_NO_MATTER = {
    "task_type",
    "inference_mode",
    "peft_version",
    "revision",
    "auto_mapping",
    "lora_dropout",
    "loftq_config",
}
_PLAIN = {"init_lora_weights": (True, False, "gaussian"), "modules_to_save": (None, [], [HEAD])}


def lora(rank: int, alpha: float, targets: str | list[str], fan_in_fan_out: bool = False) -> "LoraConfig":
    """PEFT's settings of an adapter; without dropout, so that log-probs are a function of the weights."""
    from peft import LoraConfig

    # PEFT says int, and computes with any number
    return LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=targets, fan_in_fan_out=fan_in_fan_out)


def is_adapter(path: str | Path) -> bool:
    return (Path(path).expanduser() / CONFIG).is_file()


def base_of(path: str, field: str) -> str:
    """The base that an adapter's folder names: a hub id, or a folder; one that has moved with it lies beside it.

    Raises ValueError, one sentence with `field`, for a folder that names none, or another adapter.
    """
    check_files(Path(path).expanduser(), field)
    named = read_object(Path(path).expanduser() / CONFIG, field).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ValueError(f"{field}: {path!r} names no base (base_model_name_or_path in {CONFIG}); merge it first")
    beside = Path(path).expanduser().parent / Path(named).name
    start = str(beside) if not Path(named).exists() and beside.is_dir() else named
    if is_adapter(start):
        raise ValueError(f"{field}: the base of {path!r} is an adapter too, {start!r}; merge that one first")
    return start


def whole_of(path: str, field: str) -> str:
    """Where the configuration and most weights of a model lie: an adapter's base, else `path` itself."""
    return base_of(path, field) if is_adapter(path) else path


def is_policy(path: str | Path, field: str) -> bool:
    """Whether an adapter makes a language model, not a reward model."""
    return read_object(Path(path) / CONFIG, field).get("task_type") != "SEQ_CLS"


def save_adapter(folder: Path, base: Base, name: str, path: str, head: Tensor | None = None) -> None:
    """Write an adapter so that PEFT loads it on the base at `path`.

    head  (1, H): of a reward model, whose adapter is then one of AutoModelForSequenceClassification
    """
    config = copy.copy(base.config(name))
    config.base_model_name_or_path, config.inference_mode = path, True
    config.task_type = "CAUSAL_LM" if head is None else "SEQ_CLS"
    config.modules_to_save = None if head is None else [HEAD]
    assert config.target_modules is not None  # PEFT has found them
    config.target_modules = sorted(config.target_modules)  # a set has no order that lasts
    config.save_pretrained(str(folder))
    weights = {PREFIX + key: x.detach().cpu().contiguous() for key, x in base.parameters(name).items()}
    if head is not None:
        weights[f"{PREFIX}{HEAD}.weight"] = head.detach().cpu().contiguous()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def add_adapter(base: Base, name: str, path: str, field: str, *, trained: bool = False) -> Tensor | None:
    """Add the adapter at `path` to a base; the head that comes with a reward model's. ValueError where it does not fit.

    Its files are parsed; nothing in them is executed.
    """
    folder = Path(path).expanduser()
    said = read_object(folder / CONFIG, field)
    config = _config(said, path, field)
    with opening(field, path, "adapter"):
        weights = load_file(folder / WEIGHTS)
    try:
        base.add(name, config, trained=trained)
    except ValueError as error:
        raise ValueError(f"{field}: the adapter {path!r} does not fit its base: {error}") from None
    wanted = {PREFIX + key: parameter for key, parameter in base.parameters(name).items()}
    head = weights.pop(f"{PREFIX}{HEAD}.weight", None)
    if wrong := sorted(wanted.keys() ^ weights.keys()) or sorted(
        key for key, x in wanted.items() if weights[key].shape != x.shape
    ):
        raise ValueError(
            f"{field}: the adapter {path!r} is one for another base: {len(wrong)} of its weights differ in name or "
            f"shape, {wrong[0]} first"
        )
    with torch.no_grad():
        for key, parameter in wanted.items():
            if not weights[key].isfinite().all():
                raise ValueError(f"{field}: {key} in {path!r} is not finite; give an undamaged copy")
            parameter.copy_(weights[key])
    return head


def _config(said: dict[str, Any], path: str, field: str) -> "LoraConfig":
    """The adapter's own settings and no others of the file's."""
    if said.get("peft_type") != "LORA":
        raise ValueError(f"{field}: {path!r} is a {said.get('peft_type')!r} adapter; give a LoRA adapter, or merge it")
    usual = lora(8, 8, []).to_dict()
    for key, value in said.items():
        # what is not as usual would change what the adapter computes
        if key not in _READ | _OF_NO_MATTER and value and value != usual.get(key) and value not in _PLAIN.get(key, ()):
            raise ValueError(f"{field}: {path!r} has {key} = {value!r}, which is not supported; merge it first")
    rank, alpha, targets = said.get("r"), said.get("lora_alpha"), said.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= 2**16 or not isinstance(alpha, int | float):
        raise ValueError(f"{field}: {path!r} has r = {rank!r} and lora_alpha = {alpha!r}; give an undamaged copy")
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise ValueError(f"{field}: target_modules of {path!r} must be names of layers, got {targets!r}")
    fan = bool(said.get("fan_in_fan_out"))
    return lora(rank, alpha, targets, fan_in_fan_out=fan)
