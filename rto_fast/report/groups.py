"""Runs of one configuration under several seeds are one group; figures are pooled within a group only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rto_fast.config.depends import flat
from rto_fast.report.html import text
from rto_fast.report.read import Run, expand, read_run, setting
from rto_fast.runs.folder import FREE

RL_MARK = "iteration"
"""Only lines of stages that roll out have it."""
SWEEP = "sweep-"
"""Short runs of the over-optimisation sweep; they are shown apart."""
MAX_MEMBERS = 40
"""More lines than anyone can tell apart; every pair of members is compared."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    letter: str
    """A, B, ... where there are several groups, else empty."""
    runs: list[Run]

    @property
    def recipe(self) -> str:
        return self.runs[0].recipe

    @property
    def title(self) -> str:
        return f"{self.letter}: {self.recipe}" if self.letter else self.recipe

    @property
    def judge(self) -> str | None:
        """What decides a comparison: oracle_return, implicit_reward or score."""
        return next((j for run in self.runs if isinstance(j := run.results.get("judge"), str)), None)

    @property
    def members(self) -> list[str]:
        """Names of the stages that roll out, in the order of the files."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics if not name.startswith(SWEEP))
        lines = {name: [line for run in self.runs for line in run.metrics.get(name, [])] for name in names}
        return [name for name in names if any(RL_MARK in line for line in lines[name])]


@dataclass(frozen=True)
class Study:
    """Everything that one report is about."""

    groups: list[Group]
    """Each with a letter of its own."""
    notes: list[str]
    """Lines about runs that were left out of the statistics."""

    def members(self) -> list[tuple[Group, str, str]]:
        """(group, stage, label) of every RL member; the label carries the group's letter where a name occurs twice."""
        found = [(group, name) for group in self.groups for name in group.members][:MAX_MEMBERS]
        names = [name for _, name in found]
        return [(g, n, f"{n} {g.letter}" if names.count(n) > 1 else n) for g, n in found]


def read_study(run_folders: Sequence[Path]) -> Study:
    """Read and group run folders. ValueError where one of them is no run."""
    groups: dict[str, list[Run]] = {}
    notes: list[str] = []
    for run in map(read_run, expand(run_folders)):
        # without a configuration nothing says that a run is comparable to another
        identity = repr(sorted(_settings(run).items())) if run.config else str(run.folder.resolve())
        same = groups.setdefault(identity, [])
        twin = next((r for r in same if r.seed == run.seed), None)
        if twin is None:
            same.append(run)
        else:
            notes.append(
                f"{run.folder} repeats the configuration and seed of {twin.folder}; only the latter is counted"
            )
    lists = [sorted(runs, key=lambda r: (r.seed is None, r.seed or 0)) for runs in groups.values()]
    return Study([Group(letter(i) if len(lists) > 1 else "", runs) for i, runs in enumerate(lists)], notes)


def each(groups: Sequence[Group], make: Callable[[Group], str]) -> str:
    """What `make` says of every group, under its name where there are several; nothing where it says nothing."""
    parts = [(group, make(group)) for group in groups]
    return "".join((f"<h3>{text(g.title, 80)}</h3>" if g.letter else "") + body for g, body in parts if body)


def ground(group: Group) -> tuple[object, ...]:
    """Judge, data and model: returns on different ground say nothing about each other."""
    config = group.runs[0].config
    return group.judge, *(setting(config, key) for key in ("data.path", "data.subset", "model.path"))


def by_ground(study: Study) -> list[tuple[str, list[Group]]]:
    """(title, groups) of every set of groups that can be compared; the title is empty where there is one set."""
    sets: dict[str, list[Group]] = {}
    for group in study.groups:
        sets.setdefault(repr(ground(group)), []).append(group)
    return [(", ".join(g.title for g in groups) if len(sets) > 1 else "", groups) for groups in sets.values()]


def letter(index: int) -> str:
    """A to Z, then AA, AB, ..."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(65 + index % 26)


def differences(groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """(setting, its value in each group) for every setting in which groups differ; None where a group lacks it."""
    configs = [_settings(group.runs[0]) for group in groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [(key, [config.get(key) for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _settings(run: Run) -> dict[str, Any]:
    skipped = {*FREE, "seed"} - {"stages"}
    return {k: v for k, v in flat(run.config).items() if k not in skipped and not k.startswith("checkpoint.")}
