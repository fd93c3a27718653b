"""Where models and pairs come from: a run's folder, or a DPO model, its reference and a file."""

import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from rto_fast.config import DataConfig
from rto_fast.credit.options import Watch
from rto_fast.data.corpus import Corpus, load_corpus, template_of
from rto_fast.data.encode import EncodedPair, encode_pairs
from rto_fast.data.read import read_rows
from rto_fast.data.rows import Pair, to_pairs
from rto_fast.data.template import Template
from rto_fast.evaluate.policies import interval
from rto_fast.evaluate.stats import credit_auc
from rto_fast.evaluate.token_rewards import TokenRewards
from rto_fast.model.exact import check_packing
from rto_fast.rollout import Sampling, rollout
from rto_fast.runs.open import Run, eos_token_ids, open_run
from rto_fast.tasks import Oracle
from rto_fast.training.seeds import derive


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

    def corrupted(self, path: str | None, limit: int | None, seed: int | None) -> list[EncodedPair] | None:
        """So many rows with columns chosen and corrupted as pairs: the file's, or else made by the run's task with
        `seed` (None: the run's). None for 0, and where there are none but no number of them is asked for."""
        columns, rows = self.run.config.data.columns, None
        if path is not None and limit != 0:
            found = read_rows(path)
            rows = found[:limit] if "corrupted" in found[0] else None
        elif self.run.task is not None and limit != 0:
            columns = {}
            rows = self.run.task.corrupted_rows(limit or 200, self.run.config.seed if seed is None else seed)
        if rows is not None:
            return self.encode(to_pairs(rows, columns={**columns, "rejected": "corrupted"}).items)
        if limit:
            needed = "give --pairs with columns chosen and corrupted"
            raise ValueError(f"corrupted: only an embedded task can make corrupted answers; {needed}")
        return None

    def encode(self, pairs: list[Pair]) -> list[EncodedPair]:
        data = self.run.config.data
        return encode_pairs(pairs, self.template, max_length=data.max_length, max_prompt=data.max_prompt)[0]

    def oracle_auc(self, oracle: Oracle, limit: int) -> tuple[dict[str, Any], str]:
        """AUC of the token rewards against the oracle's signs, on answers that the reference policy gives to held-out
        questions: the figure of results.json, and as a line."""
        config = self.run.config
        prompts = self.corpus.evaluation[:limit]
        with tqdm(desc="sampling", total=len(prompts), leave=False, disable=not sys.stderr.isatty()) as bar:
            answers = rollout(
                self.scorer.reference.hf,
                prompts,
                Sampling(config.eval.temperature, None, config.eval.top_p, config.max_new_tokens),
                self.eos_token_ids,
                seed=derive(config.seed, "evaluation"),
                max_batch=config.rto.sampling.batch_size,
                progress=bar.update,
            )
        signs = [np.array(oracle.answer_signs(a.prompt, a.response)) for a in answers]
        auc = credit_auc(self.scorer.rewards(answers), signs)
        wrong = sum(int((s < 0).sum()) for s in signs)
        tokens = f"{wrong} wrong tokens in {len(answers)} sampled answers"
        figures = {**interval(auc), "answers": len(answers), "wrong_tokens": wrong}
        return figures, f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}], {tokens}"


def open_source(options: Watch) -> Source:
    """A finished run: its sft and dpo models, its data, its beta. Without one any two causal language models, in
    float32. ValueError when the folder is none of a run's, or the models do not share a tokenizer."""
    alone = not options.run
    dtype: Literal["float32"] | None = "float32" if alone else None
    run = open_run(options.run or None, device=options.device, dtype=dtype, trusted=options.trust_remote_code)
    given = {"dpo": options.dpo or run.stage_path("dpo"), "reference": options.reference or run.stage_path("sft")}
    paths = {name: os.path.expanduser(path) for name, path in given.items()}
    beta = run.config.dpo.beta if options.beta is None else options.beta
    if not beta > 0:
        raise ValueError(f"beta: must be positive, got {beta}")
    disable_progress_bar()
    dpo, reference = (run.load(path, name).requires_grad_(False).eval() for name, path in paths.items())
    tokenizer = run.shared_tokenizer(paths)
    ids = list(range(1, min(12, dpo.vocab_size)))
    examples = [(ids[:2], ids[2:]), (ids[:3], ids[3:6])]
    with run.precision():
        for model in (dpo, reference):
            check_packing(model, examples, run.autocast or run.dtype, run.config.workspace_mb)
    if alone:
        context = getattr(dpo.hf.config, "max_position_embeddings", None) or 2048
        data = DataConfig(template=options.template, max_length=context, max_prompt=max(1, context // 2), held_out=0)
        run = replace(run, config=replace(run.config, data=data))
    return Source(run, TokenRewards(dpo, reference, tokenizer, beta, **run.limits), *given.values())
