"""Finished stages as Hugging Face folders."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from rto_fast.disk import writing
from rto_fast.model import LanguageModel
from rto_fast.packing import pack


def save_stage(folder: Path, model: LanguageModel, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]) -> None:
    """Write `folder` whole or not at all: weights (safetensors), config, tokenizer, and stage.json with `facts`.

    OSError when the disk refuses; nothing of this attempt stays.

    AutoModelForCausalLM.from_pretrained(folder) loads it. stage.json is what `is_finished` looks for.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(f"export: {folder}"):
        try:
            partial.mkdir(parents=True)
            model.hf.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            (partial / "stage.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except (OSError, SafetensorError):
            shutil.rmtree(partial, ignore_errors=True)
            raise


def is_finished(folder: Path) -> bool:
    return (folder / "stage.json").is_file()


@torch.no_grad()
def check_export(folder: Path, model: LanguageModel, load: Callable[[str], LanguageModel]) -> None:
    """Reload the folder with load(path) and compare one sequence's logits bit by bit; ValueError when they differ."""
    tokens = [i % model.vocab_size for i in range(1, 9)]
    device = model.hf.device
    packed = pack([tokens[:1]], [tokens[1:]])[0].to(device)
    saved, live = (m(packed, lambda hidden, head: hidden @ head.weight.T) for m in (load(str(folder)), model))
    if not torch.equal(saved, live):
        gap = (saved.float() - live.float()).abs().max().item()
        raise ValueError(
            f"export: {folder} reloads to other logits (largest difference {gap:.3g}); check free disk space"
        )
