"""Finished stages as Hugging Face folders."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rto_fast.files.digests import STAGE, seal
from rto_fast.files.disk import new_folder, writing
from rto_fast.files.foreign import read_object
from rto_fast.model.adapter_files import PREFIX, WEIGHTS, save_adapter
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import ScalarModel

Model = LanguageModel | ScalarModel


def save_stage(
    folder: Path,
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
    dtype: torch.dtype | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write `folder` whole or not at all: weights (safetensors), config, tokenizer, stage.json with `facts`, and
    manifest.json with the digest of each of them. transformers' from_pretrained(folder) loads it.

    It is on the disk when this returns. OSError when the disk refuses; nothing of this attempt stays.

    dtype    of the weights in the folder; None: as they are. The model itself is left alone.
    weights  in the place of the model's own
    """
    with writing(f"export: {folder}"), new_folder(folder) as partial:
        floats = {x.dtype for x in (weights or hf.state_dict()).values() if x.is_floating_point()}
        if dtype is None or floats == {dtype}:
            hf.save_pretrained(partial, state_dict=weights)
        else:
            hf.save_pretrained(partial, state_dict=rounded(weights or hf.state_dict(), dtype))
            config = read_object(partial / "config.json", "export") | {"dtype": str(dtype).removeprefix("torch.")}
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer.save_pretrained(partial)
        (partial / STAGE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        seal(partial)


def save_adapter_stage(
    folder: Path, model: Model, start: str, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]
) -> None:
    """As `save_stage`, but an adapter's matrices in place of a model's weights; PEFT loads it on the base at `start`.

    Read back and compared. It holds no config.json, which would make it a whole model for transformers.
    """
    base, name = model.base, model.adapter
    assert base is not None and name is not None  # an adapter
    head = model.head.weight if isinstance(model, ScalarModel) else None
    with writing(f"export: {folder}"), new_folder(folder) as partial:
        save_adapter(partial, base, name, start, head)
        tokenizer.save_pretrained(partial)
        (partial / STAGE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        seal(partial)
    written = load_file(folder / WEIGHTS)
    for key, x in base.parameters(name).items():
        if not torch.equal(written[PREFIX + key], x.detach().cpu()):
            raise ValueError(f"export: {folder} reads back to another {key}; check free disk space")


def rounded(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in another type, on the CPU; those that share memory still do. ValueError for one that is too large.

    Costs one copy of the weights in `dtype` in the machine's memory.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    weights = dict(weights)
    for name, weight in weights.items():
        if not weight.is_floating_point():
            continue
        place = (weight.data_ptr(), weight.shape)
        if place not in made:
            made[place] = weight.to("cpu", dtype)
            if made[place].isinf().any():
                raise ValueError(
                    f"export.dtype: {name} has a weight beyond what {dtype} holds; use bfloat16 or float32"
                )
        weights[name] = made[place]
    return weights


def is_finished(folder: Path) -> bool:
    return (folder / STAGE).is_file()


def as_classifier(model: ScalarModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A reward model as AutoModelForSequenceClassification has it: score.weight (1, H), mean and std in its config.

    It shares the weights given. That class gives the score before calibration: (score - mean) / std is ours.
    """
    config = copy.deepcopy(model.backbone.config)
    config.num_labels, config.mean, config.std = 1, model.mean, model.std
    if config.pad_token_id is None:  # it looks for the last token that is not padding
        config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.device("meta"):
        hf = AutoModelForSequenceClassification.from_config(config)
    if not hasattr(hf, "score"):
        raise ValueError(
            f"rm: {type(hf).__name__} keeps its head elsewhere than in score; no reward model of this kind"
        )
    setattr(hf, hf.base_model_prefix, model.backbone)
    # in its own type, not the backbone's: rounded, it would give other scores
    hf.score = torch.nn.Linear(model.head.in_features, 1, bias=False, dtype=model.head.weight.dtype)
    with torch.no_grad():
        hf.score.weight.copy_(model.head.weight)
    return hf
