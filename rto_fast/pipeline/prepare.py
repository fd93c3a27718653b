"""Before the first step: a run's models and data read, and the checks that everything fits together."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rto_fast import tasks
from rto_fast.config import Config
from rto_fast.config.depends import builds_on
from rto_fast.data.corpus import Corpus, load_corpus
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.files.disk import new_folder, writing
from rto_fast.model.language import LanguageModel
from rto_fast.model.load import load_language_model
from rto_fast.model.quantize import check_quantized
from rto_fast.pipeline.facts import check_given
from rto_fast.runs import inputs
from rto_fast.runs.export import is_finished
from rto_fast.runs.folder import check
from rto_fast.runs.open import Context, eos_token_ids, run_of
from rto_fast.training import mesh
from rto_fast.training.adamw8 import check_adam8
from rto_fast.training.stall import StallGuard


def prepare(config: Config, say: Callable[[str], None], scratch: Path) -> tuple[Context, LanguageModel]:
    """Load the model, its tokenizer and the data; the output folder is looked at and left as it is.

    scratch  an empty folder, for the embedded task where the output folder has none yet
    """
    run = run_of(config, config.folder, config.device)
    run = replace(run, device=mesh.start(run.device))
    if config.model.dtype == "float16":
        raise ValueError(
            "model.dtype: float16 is for looking at models only, for small gradients vanish in it and no loss scaler "
            "is here; train with bfloat16, or auto"
        )
    if run.quantized:
        check_quantized(run.device)
    if config.adam_bits == 8:
        check_adam8(run.device)
    check_stages(config, check(config))
    if run.task is not None:
        config = tasks.pointed(config, _written(run.task, config, scratch))
        run = replace(run, config=config)
    began = inputs.read(run.folder)
    check_given(config)
    if began:
        inputs.check(began, inputs.of_models(config, say))
    start, trusted = config.model.path, config.model.trust_remote_code
    tokenizer = load_tokenizer(start, trust_remote_code=trusted)
    model = load_language_model(
        start,
        device=run.device,
        trust_remote_code=trusted,
        # as the stages compute: a whole one may not fit
        autocast=run.autocast if run.quantized else None,
        quantized=run.quantized,
    )
    _check_context(config, model)
    with StallGuard(config.guards.stall_minutes, "reading the data"):
        corpus = load_corpus(config.data, tokenizer, config.seed)
    inputs.check(began, corpus.digests)
    _check_ids(corpus, tokenizer, model)
    eos = eos_token_ids(corpus.eos_token_ids, model)
    context = Context(**vars(run), tokenizer=tokenizer, eos_token_ids=eos, corpus=corpus, say=say)
    _check_data(context)
    return context, model


def check_stages(config: Config, folder: Path) -> None:
    """ValueError where a stage needs another one's model, which no listed stage makes, none has made and none is."""
    needs: dict[str, str] = {}
    for stage in config.members:
        needs |= {name: stage for name in builds_on(stage, config)[1:] if name not in needs}
    missing = [n for n in needs if n not in config.stages and not config.given(n) and not is_finished(folder / n)]
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
    pairs = ("path", corpus.pairs)
    wants = {"sft": ("demonstrations", corpus.demonstrations), "dpo": pairs, "rm": pairs}
    for stage in config.stages:
        field, rows = wants.get(stage, ("prompts", corpus.prompts))
        if not rows and not context.config.given(stage):
            raise ValueError(f"data.{field}: the stage {stage} has nothing to learn from; give --data.{field}")


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
    if context.task is None:
        return context
    made, kept = Path(context.config.data.path).parent, context.folder / tasks.FOLDER
    if made != kept:
        mesh.first_does(lambda: _copy(made, kept))
    there = tasks.pointed(config, kept)
    model = replace(context.config.model, path=there.model.path)
    return replace(context, config=replace(context.config, data=there.data, model=model))


def _copy(made: Path, kept: Path) -> None:
    with writing(kept), new_folder(kept) as partial:
        shutil.copytree(made, partial, dirs_exist_ok=True)


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
