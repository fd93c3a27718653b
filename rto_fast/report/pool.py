"""Final figures of the policies, pooled over the seeds of a group."""

import math
from itertools import pairwise
from typing import Any

from rto_fast.evaluate.stats import over_seeds
from rto_fast.report.groups import Group
from rto_fast.report.read import Run, mapping, number
from rto_fast.report.series import points

MAX_POLICIES = 24
SINGLE = ("credit_auc", "preference_accuracy", "score_accuracy")
PHASES = ("rollout", "score", "update")

Pooled = dict[str, float]
"""mean, ci95 (half its 95 % interval, see `pool`), low and high seed, seeds."""


def pool(estimates: list[tuple[float, float]]) -> Pooled:
    """Mean of independent estimates (mean, ci95), one per seed.

    Its half-width is Student's over the seeds' means (`over_seeds`), so that it holds what another training would
    change; seeds that happen to agree do not make it smaller than the prompts' own, sqrt(sum ci95^2) / n, which is all
    that one seed has.
    """
    means = [m for m, _ in estimates]
    half = math.sqrt(sum(c * c for _, c in estimates)) / len(estimates)
    if len(means) > 1:
        half = max(half, over_seeds(means))
    return {
        "mean": sum(means) / len(means),
        "ci95": half,
        "low": min(means),
        "high": max(means),
        "seeds": len(estimates),
    }


def estimate(value: Any) -> tuple[float, float] | None:
    """(mean, ci95) of {"mean", "ci95"}; a bare number has no interval."""
    if (bare := number(value)) is not None:
        return bare, 0.0
    mean, half = number(mapping(value).get("mean")), number(mapping(value).get("ci95"))
    return None if mean is None else (mean, abs(half or 0.0))


def by_policy(group: Group, key: str) -> dict[str, dict[str, Pooled]]:
    """A table of results.json over every seed: {policy: {figure: pooled}} for "policies"; for "win_rate" and
    "length_controlled" {a: {b: pooled share of prompts on which a beats b}}."""
    tables = [mapping(run.results.get(key)) for run in group.runs]
    names = list(dict.fromkeys(name for table in tables for name in table))[:MAX_POLICIES]
    return {name: merge([mapping(table.get(name)) for table in tables]) for name in names}


def figures(group: Group) -> dict[str, Pooled]:
    """Figures of results.json that belong to no policy."""
    return merge([{name: run.results.get(name) for name in SINGLE} for run in group.runs])


def merge(tables: list[dict[str, Any]]) -> dict[str, Pooled]:
    """Figures by name, pooled over one table per seed."""
    keys = dict.fromkeys(key for table in tables for key in table)
    found = {key: [e for table in tables if (e := estimate(table.get(key))) is not None] for key in keys}
    return {key: pool(estimates) for key, estimates in found.items() if estimates}


def sweep(group: Group, most: int) -> tuple[int | None, list[dict[str, Any]]]:
    """The over-optimisation table of the first run that has one: its seed, and at most so many rows."""
    tables = ((run.seed, rows) for run in group.runs if isinstance(rows := run.results.get("sweep"), list))
    seed, rows = next(tables, (None, []))
    return seed, [mapping(row) for row in rows[:most]]


def timings(run: Run) -> list[dict[str, Any]]:
    """One row per stage: seconds (over restarts too), seconds per phase of an iteration, peak memory, tokens/s."""
    rows = []
    for stage, lines in run.metrics.items():
        clock = [0.0, *(number(line.get("seconds")) or 0.0 for line in lines)]
        # a stage that was interrupted counts from zero again
        seconds = sum(now - before if now >= before else now for before, now in pairwise(clock))
        peaks = [p for line in lines if (p := number(line.get("memory/peak_mb"))) is not None]
        speeds = sorted(s for line in lines if (s := number(line.get("tokens_per_second"))) is not None)
        logged = {phase: [y for _, y in points(run, stage, f"time/{phase}")] for phase in PHASES}
        # an iteration's update is logged with the next one: the last counts as the mean of the others
        rounds = max(len(times) for times in logged.values())
        phases = {phase: sum(times) * rounds / len(times) for phase, times in logged.items() if times}
        rows.append(
            {
                "stage": stage,
                "seconds": seconds,
                "steps": len(lines),
                "phases": {phase: s for phase, s in phases.items() if s > 0},
                "peak_mb": max(peaks, default=None),
                "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
            }
        )
    return rows
