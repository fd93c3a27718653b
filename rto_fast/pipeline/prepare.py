"""Before the first step: the run's folder, device, tokenizer, data, and the checks that everything fits together."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.config import Config, member
from rto_fast.data.corpus import Corpus, load_corpus
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.digests import Damaged
from rto_fast.files.disk import new_folder, writing
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import DTYPES, load_language_model, stored_dtype
from rto_fast.pipeline.facts import check_given
from rto_fast.runs import inputs
from rto_fast.runs.export import is_finished
from rto_fast.runs.folder import check
from rto_fast.training.stall import StallGuard


@dataclass(frozen=True)
class Context:
    """What every stage needs of the run."""

    config: Config
    folder: Path
    device: torch.device
    dtype: torch.dtype
    """of the stored weights"""
    autocast: torch.dtype | None
    """of the arithmetic, where it differs"""
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    corpus: Corpus
    oracle: tasks.Oracle | None
    """The embedded task's judge of answers."""
    say: Callable[[str], None]
    """Tells the user a line."""

    def load(self, path: str, field: str = "model.path") -> LanguageModel:
        try:
            model = load_language_model(
                path,
                dtype=self.dtype,
                device=self.device,
                field=field,
                trust_remote_code=self.config.model.trust_remote_code,
                liger=self.config.model.liger,
            )
        except ValueError as error:
            if Path(path).parent != self.folder or isinstance(error, Damaged):
                raise
            raise ValueError(f"{error}; to make this stage anew, delete {path!r} and give the same command") from error
        if self.config.model.gradient_checkpointing:
            model.hf.gradient_checkpointing_enable()
        return model

    def stage_path(self, stage: str) -> str:
        """Where a stage's model is: given by the user, or made by this run. Without SFT the model is its own pi_ref."""
        made = self.folder / stage
        if stage == "sft" and "sft" not in self.config.stages and not is_finished(made):
            return self.given(stage) or self.config.model.path
        return self.given(stage) or str(made)

    def given(self, stage: str) -> str | None:
        """The model that the user gives in a stage's place."""
        config = self.config
        return {"sft": config.sft.model, "dpo": config.dpo.model, "rm": config.rm.model}.get(stage)

    def export_dtype(self, stage: str) -> torch.dtype:
        """Of the weights in a finished stage's folder (export.dtype)."""
        if self.config.export.dtype != "auto":
            return DTYPES[self.config.export.dtype]
        if stage in ("sft", "dpo", "rm"):
            return self.dtype
        stored = stored_dtype(self.config.model.path, self.config.model.trust_remote_code)
        # a wider type than the trained one would hold no more
        return stored if stored is not None and stored.itemsize < self.dtype.itemsize else self.dtype

    def precision(self) -> torch.autocast:
        """The arithmetic of every forward pass, as a context."""
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)

    @property
    def limits(self) -> dict[str, Any]:
        return {"microbatch_rows": self.config.microbatch_rows, "workspace_mb": self.config.workspace_mb}

    @property
    def stage_options(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "device": self.device, **self.limits}


def prepare(config: Config, say: Callable[[str], None], scratch: Path) -> tuple[Context, LanguageModel]:
    """Load the model, its tokenizer and the data; the output folder is looked at and left as it is.

    scratch  an empty folder, for the embedded task where the output folder has none yet
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1":
        raise ValueError(f"WORLD_SIZE: rto_fast trains in one process, got {processes}; start it without torchrun")
    device = _device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {config.device!r} asked for, but torch sees no CUDA GPU; use --device cpu")
    automatic = config.model.dtype == "auto"
    dtype = torch.float32 if automatic else DTYPES[config.model.dtype]
    autocast = torch.bfloat16 if automatic and device.type == "cuda" else None
    folder = check(config)
    check_stages(config, folder)
    task = tasks.named(config.data.path)
    if task is not None:
        config = tasks.pointed(config, _written(task, config, scratch))
    began = inputs.read(folder)
    check_given(config)
    if began:
        inputs.check(began, inputs.of_models(config, say))
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=trusted)
    model = load_language_model(config.model.path, dtype=dtype, device=device, trust_remote_code=trusted)
    _check_context(config, model)
    with StallGuard(config.guards.stall_minutes, "reading the data"):
        corpus = load_corpus(config.data, tokenizer, config.seed)
    inputs.check(began, corpus.digests)
    _check_ids(corpus, tokenizer, model)
    eos = _eos_token_ids(corpus, model)
    oracle = task and task.make_oracle(tokenizer)
    context = Context(config, folder, device, dtype, autocast, tokenizer, eos, corpus, oracle, say)
    _check_data(context)
    return context, model


def check_stages(config: Config, folder: Path) -> None:
    """ValueError where a stage needs another one's model, which no listed stage makes, none has made and none is."""
    given = {"dpo": config.dpo.model, "rm": config.rm.model}
    needs: dict[str, str] = {}
    for stage in config.members:
        rl = member(config.rto, stage)
        if rl.reward.beta_1:
            needs.setdefault("dpo", stage)
        if rl.critic.model == "rm" or rl.reward.beta_3 and not (rl.score.rule or rl.score.server):
            needs.setdefault("rm", stage)
    missing = [n for n in needs if n not in config.stages and not given[n] and not is_finished(folder / n)]
    if missing:
        first = [] if config.sft.model or "sft" in config.stages else ["sft"]
        made = sorted([*first, *missing, *config.stages], key=lambda s: {"sft": 0, "dpo": 1, "rm": 1}.get(s, 2))
        flags = " and ".join(f"--{name}.model PATH" for name in missing)
        raise ValueError(
            f"stages: {needs[missing[0]]} needs the model of the stage {missing[0]}, which is not among the stages and "
            f"not finished in {folder}; add it with --stages {' '.join(made)}, or give {flags}"
        )


def _check_data(context: Context) -> None:
    """Every stage has something to learn from."""
    config, corpus = context.config, context.corpus
    wants = {
        "sft": ("demonstrations", corpus.demonstrations),
        "dpo": ("path", corpus.pairs),
        "rm": ("path", corpus.pairs),
    }
    for stage in config.stages:
        field, rows = wants.get(stage, ("prompts", corpus.prompts))
        if not rows and not context.given(stage):
            raise ValueError(f"data.{field}: the stage {stage} has nothing to learn from; give --data.{field}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (number.isascii() and number.isdigit() and len(number) < 4)):
        raise ValueError(f"device: must be auto, cpu, cuda, or cuda:1 and so on, got {name!r}")
    return torch.device(name)


def _written(task: tasks.Task, config: Config, scratch: Path) -> Path:
    """Where the task's files lie: in the run's folder, or, where they are not there yet, written to `scratch`."""
    if (kept := config.folder / tasks.FOLDER).exists():
        return kept
    with writing(folder := scratch / tasks.FOLDER):
        task.write_task(folder, config.seed)
    return folder


def keep_task(context: Context, config: Config) -> Context:
    """The embedded task in the run's folder, where evaluation and credit look for it; of other data nothing is kept.

    config  as `prepare` had it
    """
    if context.oracle is None:
        return context
    made, kept = Path(context.config.data.path).parent, context.folder / tasks.FOLDER
    if made != kept:
        with writing(kept), new_folder(kept) as partial:
            shutil.copytree(made, partial, dirs_exist_ok=True)
    return replace(context, config=tasks.pointed(config, kept))


def _eos_token_ids(corpus: Corpus, model: LanguageModel) -> tuple[int, ...]:
    """The template's and the tokenizer's EOS, and those of the model's generation config."""
    extra = model.hf.generation_config.eos_token_id if model.hf.generation_config else None
    extra = extra if isinstance(extra, list) else [extra] if extra is not None else []
    return tuple(dict.fromkeys([*corpus.eos_token_ids, *extra]))


def _check_ids(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, model: LanguageModel) -> None:
    largest = corpus.largest_id
    if largest >= model.vocab_size:
        raise ValueError(
            f"model.path: the tokenizer writes id {largest}, {tokenizer.convert_ids_to_tokens(largest)!r}, but the "
            f"model's vocabulary has {model.vocab_size} embeddings; use the tokenizer that belongs to the model"
        )


def _check_context(config: Config, model: LanguageModel) -> None:
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    need = max(config.data.max_length, config.data.max_prompt + config.max_new_tokens)
    if limit and need > limit:
        raise ValueError(
            f"data.max_length: prompt and answer may take {need} tokens, but the model's context is {limit}; "
            f"set --data.max-length {limit} and --data.max-prompt below it"
        )
