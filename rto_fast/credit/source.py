"""Where models and pairs come from: a run's folder, or a DPO model, its reference and a file."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from rto_fast.config import Config, DataConfig
from rto_fast.config.recipe import load_recipe
from rto_fast.config.trust import check_tool
from rto_fast.data.encode import EncodedPair, encode_pairs, encode_prompts
from rto_fast.data.fingerprint import check_same_tokenizer
from rto_fast.data.held_out import split
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_pairs, to_prompts
from rto_fast.data.template import Template
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.evaluate.token_rewards import TokenRewards
from rto_fast.model.exact import check_packing
from rto_fast.model.load import load_language_model
from rto_fast.tasks.quickstart.judge import Oracle


@dataclass(frozen=True)
class Source:
    """Models, how they read texts, and what is known about the answers."""

    scorer: TokenRewards
    template: Template
    data: DataConfig
    dpo_path: str
    reference_path: str
    run: Config | None = None
    folder: Path | None = None
    """The run's."""
    oracle: Oracle | None = None
    """The quickstart's."""
    trusted: bool = False
    """Whether Python code that comes with models may run."""

    def pairs(self, path: str | None, training: bool = False) -> list[EncodedPair]:
        """Pairs of a file; or of the run, those that it held out where it did, or those that it trained on.

        ValueError when there are none.
        """
        rows = self._rows(path)
        pairs = to_pairs(rows, columns=self.data.columns).items
        if path is None and self.data.held_out:
            pairs = split(pairs, self.data.held_out, self.run.seed)[0 if training else 1]
        return self.encode(pairs)

    def corrupted(self, path: str | None, limit: int | None) -> list[EncodedPair] | None:
        """The file's rows with columns chosen and corrupted, as pairs; None where it has no column `corrupted`."""
        rows = self._rows(path)
        if "corrupted" not in rows[0]:
            return None
        return self.encode(to_pairs(rows[:limit], columns={**self.data.columns, "rejected": "corrupted"}).items)

    def encode(self, pairs: list) -> list[EncodedPair]:
        limits = {"max_length": self.data.max_length, "max_prompt": self.data.max_prompt}
        return encode_pairs(pairs, self.template, **limits)[0]

    def evaluation(self, limit: int) -> list[list[int]]:
        """The quickstart's held-out prompts."""
        rows = to_prompts(read_rows(self.folder / "task" / "eval.jsonl", limit=limit)).items
        limits = {"max_length": self.data.max_length, "max_prompt": self.data.max_prompt}
        return encode_prompts(rows, self.template, **limits)[0]

    def _rows(self, path: str | None) -> list[dict]:
        if path is not None:
            return read_rows(path)
        if self.run is None:
            raise ValueError("pairs: no file given; use --pairs with preference pairs, or --run with a run's folder")
        if self.oracle is not None:
            return read_rows(self.folder / "task" / "pairs.jsonl")
        data = self.data
        return read_rows(data.path, subset=data.subset, split=data.split, limit=data.max_rows)


def from_run(folder: str, *, device: str = "auto", beta: float | None = None, trusted: bool = False) -> Source:
    """A finished run: its sft and dpo models, its data, its beta. ValueError when the folder is none.

    `trusted`: Python code that comes with the models may run; what the run's own settings say counts for nothing.
    """
    path = Path(folder).expanduser()
    if not (path / "config.toml").is_file():
        raise ValueError(f"run: no config.toml in {folder!r}; give the folder of a run of rto_fast.train")
    config = load_recipe(str(path / "config.toml"))
    check_tool(config, trusted, path)
    stages = {"sft": config.sft.model, "dpo": config.dpo.model}
    reference, dpo = (stages[s] or str(path / s) for s in ("sft", "dpo"))
    scorer = _scorer(dpo, reference, device, config.dpo.beta if beta is None else beta, config.workspace_mb, trusted)
    template = Template(scorer.tokenizer, config.data.template, config.data.parse_special)
    oracle = Oracle(scorer.tokenizer) if config.data.path == "quickstart" else None
    return Source(scorer, template, config.data, dpo, reference, config, path, oracle, trusted)


def from_models(
    dpo: str,
    reference: str,
    *,
    device: str = "auto",
    beta: float | None = None,
    template: str = "auto",
    trusted: bool = False,
) -> Source:
    """Any two causal language models of one tokenizer. ValueError when they do not share it."""
    scorer = _scorer(dpo, reference, device, 0.1 if beta is None else beta, None, trusted)
    context = getattr(scorer.dpo.hf.config, "max_position_embeddings", None) or 2048
    data = DataConfig(template=template, max_length=context, max_prompt=max(1, context // 2), held_out=0)
    return Source(scorer, Template(scorer.tokenizer, template), data, dpo, reference, trusted=trusted)


def _scorer(
    dpo: str, reference: str, device: str, beta: float, workspace_mb: int | None, trusted: bool
) -> TokenRewards:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} asked for, but torch sees no CUDA GPU; use --device cpu")
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    disable_progress_bar()
    models = [
        load_language_model(os.path.expanduser(p), device=device, field=name, trust_remote_code=trusted)
        for p, name in ((dpo, "dpo"), (reference, "reference"))
    ]
    tokenizer = load_tokenizer(dpo, "dpo", trusted)
    check_same_tokenizer(tokenizer, load_tokenizer(reference, "reference", trusted), "dpo", "reference")
    ids = list(range(1, min(12, models[0].vocab_size)))
    for model in models:
        check_packing(model, [(ids[:2], ids[2:]), (ids[:3], ids[3:6])], torch.float32, workspace_mb)
    return TokenRewards(*(m.requires_grad_(False).eval() for m in models), tokenizer, beta, workspace_mb=workspace_mb)
