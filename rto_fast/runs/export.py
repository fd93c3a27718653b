"""Finished stages as Hugging Face folders."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rto_fast.files.digests import STAGE, seal
from rto_fast.files.disk import new_folder, writing
from rto_fast.model.language import LanguageModel
from rto_fast.model.scalar import ScalarModel
from rto_fast.packing import pack, pack_whole

PROBE = range(1, 9)
"""Token ids (modulo the vocabulary) of the one sequence that an export must agree on."""


def save_stage(
    folder: Path,
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Write `folder` whole or not at all: weights (safetensors), config, tokenizer, stage.json with `facts`, and
    manifest.json with the digest of each of them.

    It is on the disk when this returns. OSError when the disk refuses; nothing of this attempt stays.

    transformers' from_pretrained(folder) loads it. stage.json is what `is_finished` looks for.

    dtype  of the weights in the folder; None: as they are. The model itself is left alone.
    """
    with writing(f"export: {folder}"), new_folder(folder) as partial:
        _save_model(partial, hf, dtype)
        tokenizer.save_pretrained(partial)
        (partial / STAGE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        seal(partial)


def _save_model(folder: Path, hf: PreTrainedModel, dtype: torch.dtype | None) -> None:
    if dtype in (None, hf.dtype):
        hf.save_pretrained(folder)
        return
    hf.save_pretrained(folder, state_dict=rounded(hf, dtype))
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n", encoding="utf-8"
    )


def rounded(network: torch.nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Its weights in another type, on the CPU; those that share memory still do. ValueError for one that is too large.

    Costs one copy of the weights in `dtype` in the machine's memory.
    """
    made: dict[tuple[int, torch.Size], Tensor] = {}
    weights = network.state_dict()
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
    hf.score = torch.nn.Linear(model.head.in_features, 1, bias=False).to(model.backbone.dtype)
    with torch.no_grad():
        hf.score.weight.copy_(model.head.weight)
    return hf


@torch.no_grad()
def check_export(
    folder: Path, live: LanguageModel, load: Callable[[str], LanguageModel], dtype: torch.dtype | None = None
) -> None:
    """Reload the folder with load(path) and compare one sequence's logits bit by bit; ValueError when they differ.

    dtype  the one that the folder was written in; where it is not the model's own, weights are compared, rounded.
    """
    saved = load(str(folder))
    if dtype not in (None, live.hf.dtype):
        _same_weights(folder, saved.hf, live.hf, dtype)
        return
    tokens = [i % live.vocab_size for i in PROBE]
    packed = pack([tokens[:1]], [tokens[1:]]).to(live.hf.device)
    _same(folder, "logits", *(m(packed, lambda hidden, head: hidden @ head.weight.T) for m in (saved, live)))


@torch.no_grad()
def check_scalar_export(
    folder: Path, live: ScalarModel, load: Callable[[str], ScalarModel], dtype: torch.dtype | None = None
) -> None:
    """As `check_export`, for a reward model's score of one sequence."""
    saved = load(str(folder))
    if dtype not in (None, live.backbone.dtype):
        _same_weights(folder, saved, live, dtype)
        return
    tokens = [i % live.backbone.config.vocab_size for i in PROBE]
    packed = pack_whole([tokens]).to(live.head.weight.device)
    _same(folder, "scores", *(m.eval()(packed) for m in (saved, live)))


def _same_weights(folder: Path, saved: torch.nn.Module, live: torch.nn.Module, dtype: torch.dtype) -> None:
    found, wanted = saved.state_dict(), rounded(live, dtype)
    for name, weight in wanted.items():
        _same(folder, name, found[name].cpu().to(weight.dtype), weight)


def _same(folder: Path, what: str, saved: Tensor, live: Tensor) -> None:
    if not torch.equal(saved, live):
        gap = (saved.float() - live.float()).abs().max().item()
        raise ValueError(
            f"export: {folder} reloads to other {what} (largest difference {gap:.3g}); check free disk space"
        )
