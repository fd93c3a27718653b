"""A run's folder without the training: the quickstart task, an untrained reference, and a DPO model beside it."""

from pathlib import Path

import tomli_w
import torch

from rto_fast.config import Config
from rto_fast.config.recipe import load_recipe, plain
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model.load import load_language_model
from rto_fast.tasks.quickstart.task import write_task


def write_run(folder: Path, num_pairs: int | None = None) -> Path:
    config: Config = load_recipe("quickstart")
    folder.mkdir()
    (folder / "config.toml").write_text(tomli_w.dumps(plain(config)))
    write_task(folder / "task", config.seed)
    if num_pairs is not None:
        rows = (folder / "task/pairs.jsonl").read_text().splitlines(keepends=True)
        (folder / "task/pairs.jsonl").write_text("".join(rows[:num_pairs]))
    base = str(folder / "task" / "model")
    model, tokenizer = load_language_model(base), load_tokenizer(base)
    for stage in ("sft", "dpo"):
        model.hf.save_pretrained(folder / stage)
        tokenizer.save_pretrained(folder / stage)
        # the DPO model's log-ratios are noise, but not zero
        torch.manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p += 0.02 * torch.randn_like(p)
    return folder
