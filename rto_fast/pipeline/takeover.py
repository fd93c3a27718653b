"""Stages that another run has finished, taken over: what would come out the same is not trained again.

A stage is the same when its settings are (`depends`), the token ids that it learns from, and every file of the model
that it starts from; a stage of the RTO family also depends on the models that pay it. A folder that takes a stage over
holds a copy of it, of its metrics and of its events, and needs the other run no more.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from rto_fast.config import Config
from rto_fast.config.depends import builds_on, differences, section
from rto_fast.files.digests import check_stage
from rto_fast.files.disk import new_folder, writing
from rto_fast.runs import inputs
from rto_fast.runs.export import is_finished
from rto_fast.runs.folder import finished
from rto_fast.runs.open import Context
from rto_fast.runs.settings import is_run, read_config
from rto_fast.training.metrics import take_stage


class Other(NamedTuple):
    """The run that stages are taken from."""

    folder: Path
    config: Config
    record: dict[str, Any]
    """Its inputs.json."""


def open_other(name: str, config: Config) -> Other:
    """The run's folder of `--from`. ValueError, one sentence, where there is nothing to take over."""
    folder = Path(name).expanduser()
    if not is_run(folder):
        raise ValueError(f"from: {name!r} is no run of rto_fast, it holds no config.toml; give --from a run's folder")
    if config.folder.exists() and config.folder.samefile(folder):
        raise ValueError(f"from: {name!r} is this run's own folder; name another with --output, or leave out --from")
    old = read_config(folder, "from")
    if not (done := finished(folder)):
        raise ValueError(f"from: no stage of {name!r} is finished, so there is nothing to take over; leave out --from")
    record = inputs.read(folder, "from")
    if record is None:
        known = [f"--{stage}.model {folder / stage}" for stage in done if section(stage) != "rto"]
        raise ValueError(
            f"from: {name!r} holds no {inputs.INPUTS}, an older version made it, so that its data cannot be compared; "
            f"give its models, {' '.join(known) or '--sft.model and --dpo.model'}, in place of --from"
        )
    return Other(folder, old, record)


def take_over(context: Context, other: Other, now: inputs.Digests, learns: dict[str, str], only_say: bool) -> None:
    """Copy the finished stages that are the same, and say which, and why the rest is not. only_say: copy nothing."""
    taken: list[str] = []
    for stage in context.config.stages:
        if context.config.given(stage) or is_finished(context.folder / stage):
            continue
        if reason := _another(context, other, now, learns, stage, taken):
            context.say(f"{stage}: not taken from {other.folder}, {reason}")
            continue
        taken.append(stage)
        context.say(f"{stage}: {'could be taken' if only_say else 'taken'} over from {other.folder / stage}")
        if not only_say:
            _copy(context, other.folder, stage)


def _another(
    context: Context, other: Other, now: inputs.Digests, learns: dict[str, str], stage: str, taken: list[str]
) -> str:
    """Why the other run's stage is not this run's, "" when it is."""
    if not is_finished(other.folder / stage):
        return "where it is not finished"
    check_stage(other.folder / stage, f"from: {stage}")
    config, own = context.config, section(stage)
    before, changed = other.record["inputs"], differences(stage, other.config, config)
    # paths may differ where contents are the same
    about_data = [text for text in changed if text.startswith("data.")]
    changed = [text for text in changed if not text.startswith(("data.", "model.path ", "rto.critic.model "))]
    if changed:
        return "; ".join(changed[:3])
    if learns[own] != other.record["learns_from"].get(own):
        files = [field for field in now if field.startswith("data.") and now[field] != before.get(field)]
        return f"it learns from other data ({'; '.join(about_data[:3]) or ', '.join(files) or 'as it is encoded'})"
    if now["model.path"] != before.get("model.path"):
        return "model.path holds another model or tokenizer"
    if own == "rto" and now.get("rto.critic.model") != before.get("rto.critic.model"):
        return "rto.critic.model holds another model"
    for start in builds_on(stage, config):
        if start in taken:
            continue
        ours = _model_of(context.folder, config, now, start)
        if ours is None:
            return f"it builds on {start}, which is trained anew"
        if ours != _model_of(other.folder, other.config, before, start):
            return f"it builds on another {start}"
    return ""


def _model_of(folder: Path, config: Config, known: inputs.Digests, stage: str) -> dict[str, str] | None:
    """The digests of a stage's model as a run has it: given, made, or without SFT the base; None before it is made."""
    if known.get(f"{stage}.model"):
        return known[f"{stage}.model"]
    if is_finished(folder / stage):
        return inputs.digests(inputs.files_of(str(folder / stage), stage, config.model.trust_remote_code))
    return known.get("model.path") if stage == "sft" and "sft" not in config.stages else None


def _copy(context: Context, old: Path, stage: str) -> None:
    """The stage's folder comes last, whole: it is what makes the stage finished."""
    with writing(context.folder / stage):
        take_stage(context.folder, old, stage)
        for name in (f"{stage}_best", stage) if context.config.checkpoint.best else (stage,):
            if is_finished(old / name):
                with new_folder(context.folder / name) as partial:
                    shutil.copytree(old / name, partial, dirs_exist_ok=True)
