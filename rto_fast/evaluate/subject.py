"""What is to be measured: the policies, models to measure them by, and prompts; from flags, or from a run's folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rto_fast import tasks
from rto_fast.config import Config, DataConfig
from rto_fast.config.recipe import build, read_toml
from rto_fast.config.trust import check_tool
from rto_fast.data.held_out import split
from rto_fast.data.parse import Message
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_pairs, to_prompts
from rto_fast.evaluate.options import Options, named
from rto_fast.files.disk import no_links
from rto_fast.files.foreign import read_object
from rto_fast.runs.export import is_finished


@dataclass(frozen=True)
class Subject:
    policies: dict[str, str]
    """Path by name, in the order of the tables."""
    reference: str
    dpo: str | None
    beta: float
    reward_model: str | None
    conversations: Sequence[tuple[Message, ...]]
    """The prompts, not tokenised; repeats possible."""
    template: str
    parse_special: bool
    max_prompt: int
    max_new_tokens: int
    judge: str
    """"oracle", "reward-model", "implicit" or "llm"."""
    task: tasks.Task | None
    """The run's, of a run on one."""
    folder: Path
    """Where results go."""
    kept: Path
    """Where answers and judgements are kept for a later call; shared by the judges of one run."""


@dataclass(frozen=True)
class _Run:
    """What a run's folder says by itself; without one, the defaults."""

    folder: Path = Path("runs")
    policies: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    dpo: str | None = None
    reward_model: str | None = None
    beta: float = 0.1
    data: DataConfig | None = None
    seed: int = 0
    template: str = "auto"
    max_prompt: int = 256
    max_new_tokens: int = 256
    task: tasks.Task | None = None


def subject(options: Options) -> Subject:
    """Resolve the options. ValueError, one line naming the flag, for what is missing."""
    run = _Run() if options.run is None else _read_run(Path(options.run).expanduser(), options.trust_remote_code)
    policies = dict(run.policies)
    for name, path in named(options.policies).items():
        if name in policies:
            raise ValueError(f"policies: {name!r} is a stage of {run.folder} already; give it another name")
        policies[name] = path
    if not policies:
        raise ValueError(f"run: {run.folder} holds no finished policy; train one first, or give NAME=PATH")
    reference, dpo = options.reference or run.reference, options.dpo or run.dpo
    reward_model = options.reward_model or run.reward_model
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
    if output and any((output / name).exists() for name in ("config.toml", "config.json")):
        raise ValueError(f"output: {output} is a run's or a model's folder; name another")
    kept = output or run.folder / "evaluation"
    # what the user names may be a link, what lies within may not
    no_links(*(kept.iterdir() if kept is output and kept.is_dir() else [kept]))
    # a task's questions are whole prompts
    template = "none" if judge == "oracle" and run.data is None else run.template
    return Subject(
        policies,
        reference,
        dpo,
        options.beta or run.beta,
        reward_model,
        _conversations(options, run),
        options.template or template,
        run.data is not None and run.data.parse_special,
        options.max_prompt or run.max_prompt,
        options.max_new_tokens or run.max_new_tokens,
        judge,
        run.task,
        output or kept / judge,
        kept,
    )


def _read_run(folder: Path, trusted: bool) -> _Run:
    config = _config(folder)
    check_tool(config, trusted, folder)
    given = {"sft": config.sft.model, "dpo": config.dpo.model}
    task = tasks.named(config.data.path)
    data = (tasks.pointed(config, folder / tasks.FOLDER) if task else config).data
    return _Run(
        folder,
        _policies(folder, given, config.stages),
        given["sft"] or _stage(folder, "sft"),
        given["dpo"] or _stage(folder, "dpo"),
        _stage(folder, "rm"),
        config.dpo.beta,
        data,
        config.seed,
        data.template,
        data.max_prompt,
        config.max_new_tokens,
        task,
    )


def _config(folder: Path) -> Config:
    file = folder / "config.toml"
    if not file.is_file():
        raise ValueError(f"run: no config.toml in {str(folder)!r}; give the folder of a run, such as runs/quickstart")
    return build(Config, read_toml(file, f"run: {file}"), str(file))


def _stage(folder: Path, name: str) -> str | None:
    return str(folder / name) if is_finished(folder / name) else None


def _policies(folder: Path, given: dict[str, str | None], stages: Sequence[str]) -> dict[str, str]:
    """Every language model of the run: its stages in their order, then others that lie there."""
    others = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in stages)
    found = {name: given.get(name) or _stage(folder, name) for name in [*stages, *others]}
    return {name: path for name, path in found.items() if path and (given.get(name) or _writes(Path(path)))}


def _writes(folder: Path) -> bool:
    """Whether a stage's model is a language model, not a scalar one."""
    names = read_object(folder / "config.json", "run").get("architectures")
    return any("CausalLM" in str(name) or "LMHead" in str(name) for name in (names if isinstance(names, list) else []))


def _conversations(options: Options, run: _Run) -> list[tuple[Message, ...]]:
    if options.prompts:
        # a file has no split to choose
        split_of = None if Path(options.prompts).expanduser().is_file() else options.split
        rows = read_rows(options.prompts, subset=options.subset, split=split_of, field="prompts")
        return [p.prompt for p in to_prompts(rows, columns=options.columns).items]
    if run.data is None:
        raise ValueError("prompts: none given; use --prompts with a file, a directory or a hub id")
    return _held_out(run.data, run.seed)


def _held_out(data: DataConfig, seed: int) -> list[tuple[Message, ...]]:
    """The prompts that the run itself is evaluated on, in its order."""
    if data.evaluation:
        return [p.prompt for p in to_prompts(read_rows(data.evaluation), columns=data.columns).items]
    if not data.held_out:
        raise ValueError("run: it held out no prompts (data.held_out = 0); give some with --prompts")
    rows = read_rows(data.path, subset=data.subset, split=data.split, limit=data.max_rows)
    return [p.prompt for p in split(to_pairs(rows, columns=data.columns).items, data.held_out, seed)[1]]
