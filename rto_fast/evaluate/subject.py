"""What is to be measured: the policies, models to measure them by, and prompts; from flags, or from a run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rto_fast.data.corpus import held_out_rows
from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_prompts
from rto_fast.evaluate.options import Options, named
from rto_fast.files.disk import no_links
from rto_fast.files.foreign import read_object
from rto_fast.model.adapter_files import is_adapter, is_policy
from rto_fast.runs.export import is_finished
from rto_fast.runs.open import Run, open_run
from rto_fast.runs.settings import is_run


@dataclass(frozen=True)
class Subject:
    run: Run
    """Without one, how models that are given by their paths are loaded, and the defaults."""
    policies: dict[str, str]
    """Path by name, in the order of the tables."""
    reference: str
    dpo: str | None
    beta: float
    reward_model: str | None
    conversations: Sequence[tuple[Message, ...]]
    """The prompts, not tokenised; repeats possible."""
    max_new_tokens: int
    judge: str
    """"oracle", "reward-model", "implicit" or "llm"."""
    folder: Path
    """Where results go."""
    kept: Path
    """Where answers and judgements are kept for a later call; shared by the judges of one run."""


def subject(options: Options) -> Subject:
    """Resolve the options. ValueError, one line naming the flag, for what is missing."""
    alone = options.run is None
    run = open_run(
        options.run,
        device=options.device,
        dtype=options.dtype,
        # a task's questions are whole prompts
        template=options.template or ("none" if alone and options.judge == "oracle" else None),
        trusted=options.trust_remote_code,
    )
    folder = Path("runs") if alone else run.folder
    policies = {} if alone else _policies(run)
    sft, dpo, rm = (None if alone else run.found(stage) for stage in ("sft", "dpo", "rm"))
    reference, dpo, reward_model = options.reference or sft, options.dpo or dpo, options.reward_model or rm
    for name, path in named(options.policies).items():
        if name in policies:
            raise ValueError(f"policies: {name!r} is a stage of {folder} already; give it another name")
        policies[name] = path
    if not policies:
        raise ValueError(f"run: {folder} holds no finished policy; train one first, or give NAME=PATH")
    judge = options.judge
    if judge == "auto":
        judge = "oracle" if run.task else "reward-model" if reward_model else "implicit"
    for wanted, model, flag, what in (
        ("implicit", dpo, "--dpo", "the model trained by DPO"),
        ("implicit", reference, "--reference", "the model that DPO started from"),
        ("reward-model", reward_model, "--reward-model", "a model with a scalar head"),
    ):
        if judge == wanted and model is None:
            raise ValueError(f"judge: {judge!r} needs {flag}, {what}; or choose another --judge")
    if reference is None:
        raise ValueError("reference: none given; use --reference with the model that KL is measured from (mostly sft)")
    output = Path(options.output).expanduser() if options.output else None
    if output and (is_run(output) or (output / "config.json").exists() or is_adapter(output)):
        raise ValueError(f"output: {output} is a run's or a model's folder; name another")
    kept = output or folder / "evaluation"
    # what the user names may be a link, what lies within may not
    no_links(*(kept.iterdir() if kept is output and kept.is_dir() else [kept]))
    return Subject(
        run,
        policies,
        reference,
        dpo,
        options.beta or run.config.dpo.beta,
        reward_model,
        _conversations(options, run),
        options.max_new_tokens or run.config.max_new_tokens,
        judge,
        output or kept / judge,
        kept,
    )


def _policies(run: Run) -> dict[str, str]:
    """Every language model of the run: its stages in their order, then others that lie there finished."""
    stages = run.config.stages
    # an adapter that was merged too is the same policy
    merged = {f"{stage}_merged" for stage in stages if is_adapter(run.folder / stage)}
    others = sorted(p.name for p in run.folder.iterdir() if is_finished(p) and p.name not in {*stages, *merged})
    found = {name: run.found(name) for name in [*stages, *others] if name != "rm"}
    return {name: path for name, path in found.items() if path and (run.config.given(name) or _writes(Path(path)))}


def _writes(folder: Path) -> bool:
    """Whether a stage's model is a language model, not a scalar one."""
    if is_adapter(folder):
        return is_policy(folder, "run")
    names = read_object(folder / "config.json", "run").get("architectures")
    return any("CausalLM" in str(name) or "LMHead" in str(name) for name in (names if isinstance(names, list) else []))


def _conversations(options: Options, run: Run) -> list[tuple[Message, ...]]:
    if options.prompts:
        # a file has no split to choose
        split_of = None if Path(options.prompts).expanduser().is_file() else options.split
        rows = read_rows(options.prompts, subset=options.subset, split=split_of, field="prompts")
        return [p.prompt for p in to_prompts(rows, columns=options.columns).items]
    if options.run is None:
        raise ValueError("prompts: none given; use --prompts with a file, a directory or a hub id")
    held_out = held_out_rows(run.config.data, run.config.seed)
    if not held_out:
        raise ValueError("run: it held out no prompts (data.held_out = 0); give some with --prompts")
    return [row.prompt for row in held_out]
