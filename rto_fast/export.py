"""Finished stages as Hugging Face folders."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rto_fast.disk import writing
from rto_fast.model import LanguageModel, ScalarModel
from rto_fast.packing import pack, pack_whole

PROBE = range(1, 9)
"""Token ids (modulo the vocabulary) of the one sequence that an export must agree on."""


def save_stage(folder: Path, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]) -> None:
    """Write `folder` whole or not at all: weights (safetensors), config, tokenizer, and stage.json with `facts`.

    OSError when the disk refuses; nothing of this attempt stays.

    transformers' from_pretrained(folder) loads it. stage.json is what `is_finished` looks for.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(f"export: {folder}"):
        try:
            partial.mkdir(parents=True)
            hf.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            (partial / "stage.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except (OSError, SafetensorError):
            shutil.rmtree(partial, ignore_errors=True)
            raise


def is_finished(folder: Path) -> bool:
    return (folder / "stage.json").is_file()


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
def check_export(folder: Path, live: LanguageModel, load: Callable[[str], LanguageModel]) -> None:
    """Reload the folder with load(path) and compare one sequence's logits bit by bit; ValueError when they differ."""
    tokens = [i % live.vocab_size for i in PROBE]
    packed = pack([tokens[:1]], [tokens[1:]])[0].to(live.hf.device)
    saved = load(str(folder))
    _same(folder, "logits", *(m(packed, lambda hidden, head: hidden @ head.weight.T) for m in (saved, live)))


@torch.no_grad()
def check_scalar_export(folder: Path, live: ScalarModel, load: Callable[[str], ScalarModel]) -> None:
    """As `check_export`, for a reward model's score of one sequence."""
    tokens = [i % live.backbone.config.vocab_size for i in PROBE]
    packed, last = (x.to(live.head.weight.device) for x in pack_whole([tokens]))
    saved = load(str(folder))
    _same(folder, "scores", *(m.eval()(packed, last) for m in (saved, live)))


def _same(folder: Path, what: str, saved: Tensor, live: Tensor) -> None:
    if not torch.equal(saved, live):
        gap = (saved.float() - live.float()).abs().max().item()
        raise ValueError(
            f"export: {folder} reloads to other {what} (largest difference {gap:.3g}); check free disk space"
        )
