"""Where models and pairs come from: a run's folder, or a DPO model, its reference and a file."""

import os
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from rto_fast.config import DataConfig
from rto_fast.data.corpus import Corpus, load_corpus, template_of
from rto_fast.data.encode import EncodedPair, encode_pairs
from rto_fast.data.read import read_rows
from rto_fast.data.rows import Pair, to_pairs
from rto_fast.data.template import Template
from rto_fast.evaluate.token_rewards import TokenRewards
from rto_fast.model.exact import check_packing
from rto_fast.runs.open import Run, eos_token_ids, open_run
from rto_fast.tasks import Oracle


@dataclass(frozen=True)
class Source:
    """Models, how they read texts, and what is known about the answers."""

    run: Run
    """Without one, how models that are given by their paths are loaded."""
    scorer: TokenRewards
    dpo_path: str
    reference_path: str

    @cached_property
    def template(self) -> Template:
        return template_of(self.run.config.data, self.scorer.tokenizer)

    @cached_property
    def corpus(self) -> Corpus:
        """What the run learns from and is measured on, to the row."""
        return load_corpus(self.run.config.data, self.scorer.tokenizer, self.run.config.seed)

    @property
    def oracle(self) -> Oracle | None:
        return None if self.run.task is None else self.run.task.make_oracle(self.scorer.tokenizer)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return eos_token_ids(self.template.eos_token_ids, self.scorer.reference)

    def pairs(self, path: str | None) -> list[EncodedPair]:
        """Pairs of a file; or of the run, those that it held out where it did. ValueError when there are none."""
        if path is not None:
            return self.encode(to_pairs(read_rows(path), columns=self.run.config.data.columns).items)
        pairs = self.corpus.held_out or self.corpus.pairs
        if not pairs:
            raise ValueError("pairs: the run has none; use --pairs with preference pairs")
        return pairs

    def corrupted(self, path: str, limit: int | None) -> list[EncodedPair] | None:
        """The file's rows with columns chosen and corrupted, as pairs; None where it has no column `corrupted`."""
        rows, columns = read_rows(path), self.run.config.data.columns
        if "corrupted" not in rows[0]:
            return None
        return self.encode(to_pairs(rows[:limit], columns={**columns, "rejected": "corrupted"}).items)

    def encode(self, pairs: list[Pair]) -> list[EncodedPair]:
        data = self.run.config.data
        return encode_pairs(pairs, self.template, max_length=data.max_length, max_prompt=data.max_prompt)[0]


def from_run(folder: str, *, device: str = "auto", beta: float | None = None, trusted: bool = False) -> Source:
    """A finished run: its sft and dpo models, its data, its beta. ValueError when the folder is none.

    `trusted`: Python code that comes with the models may run; what the run's own settings say counts for nothing.
    """
    run = open_run(folder, device=device, trusted=trusted)
    dpo, reference = run.stage_path("dpo"), run.stage_path("sft")
    return Source(run, _scorer(run, dpo, reference, run.config.dpo.beta if beta is None else beta), dpo, reference)


def from_models(
    dpo: str,
    reference: str,
    *,
    device: str = "auto",
    beta: float | None = None,
    template: Literal["auto", "chat", "plain", "none"] = "auto",
    trusted: bool = False,
) -> Source:
    """Any two causal language models of one tokenizer, in float32. ValueError when they do not share it."""
    run = open_run(None, device=device, dtype="float32", trusted=trusted)
    scorer = _scorer(run, os.path.expanduser(dpo), os.path.expanduser(reference), 0.1 if beta is None else beta)
    context = getattr(scorer.dpo.hf.config, "max_position_embeddings", None) or 2048
    data = DataConfig(template=template, max_length=context, max_prompt=max(1, context // 2), held_out=0)
    return Source(replace(run, config=replace(run.config, data=data)), scorer, dpo, reference)


def _scorer(run: Run, dpo: str, reference: str, beta: float) -> TokenRewards:
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    disable_progress_bar()
    paths = {"dpo": dpo, "reference": reference}
    models = [run.load(path, name) for name, path in paths.items()]
    tokenizer = run.shared_tokenizer(paths)
    ids = list(range(1, min(12, models[0].vocab_size)))
    with run.precision():
        for model in models:
            examples = [(ids[:2], ids[2:]), (ids[:3], ids[3:6])]
            check_packing(model, examples, run.autocast or run.dtype, run.config.workspace_mb)
    ours, theirs = (model.requires_grad_(False).eval() for model in models)
    return TokenRewards(ours, theirs, tokenizer, beta, **run.limits)
