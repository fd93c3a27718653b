"""Learning curves: one metric of one stage against rollouts, over the seeds of a group."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rto_fast.evaluate.stats import over_seeds
from rto_fast.report.groups import Group
from rto_fast.report.read import Run, number, setting

RETURN = "judge/return"
IMPLICIT = "implicit_reward"
"""beta log(pi_dpo/pi_ref) of an answer: reward/implicit_per_answer is logged without beta."""
MAX_POINTS = 120

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A mean over seeds with a band; all lists have one entry per point."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int
    band: str
    """What low and high are: "" for one seed, "min-max" for two or three, else "95 %" (Student's t)."""
    average: int = 1
    """Neighbouring points that were averaged into one."""
    behind: int = 0
    """Seeds left out because they have not got as far as the others."""


def points(run: Run, stage: str, metric: str) -> Points:
    """(rollouts, value) of a stage that rolls out, (step, value) of any other; in order, without repeats."""
    name, scale = metric, 1.0
    if metric == IMPLICIT:
        name, beta = "reward/implicit_per_answer", number(setting(run.config, "dpo.beta"))
        if beta is None:
            return []
        scale = beta
    found: dict[float, float] = {}
    for line in run.metrics.get(stage, []):
        # most lines of an iteration hold its losses alone
        if (y := number(line.get(name))) is not None and (x := _place(run, stage, line)) is not None:
            found[x] = y * scale
    return sorted(found.items())


def _place(run: Run, stage: str, line: dict[str, Any]) -> float | None:
    """answers/total; in logs that lack it, iteration x rollouts."""
    total, iteration = number(line.get("answers/total")), number(line.get("iteration"))
    if total is None and iteration is not None:
        rollouts = number(setting(run.config, f"{stage}.rollouts")) or number(setting(run.config, "rto.rollouts"))
        total = iteration * rollouts if rollouts else iteration
    return number(line.get("step")) if total is None else total


def curve(group: Group, stage: str, metric: str, most: int = MAX_POINTS) -> Curve | None:
    """The metric over all seeds that got the farthest, in at most `most` points; None where no seed logged it."""
    logged = sum(bool(points(run, stage, metric)) for run in group.runs)
    if not logged:
        return None
    seeds = [p for _, p in farthest(group, stage, metric)]
    start = max(p[0][0] for p in seeds)
    grid = sorted({x for p in seeds for x, _ in p if x >= start})
    columns = [interpolate(p, grid) for p in seeds]
    size = math.ceil(len(grid) / most)
    grid, columns = thin(grid, size), [thin(column, size) for column in columns]
    bands = [spread(values) for values in zip(*columns, strict=True)]
    mean, low, high = (list(part) for part in zip(*bands, strict=True))
    band = "" if len(seeds) < 2 else "min-max" if len(seeds) <= 3 else "95 %"
    return Curve(grid, mean, low, high, len(seeds), band, size, logged - len(seeds))


def farthest(group: Group, stage: str, metric: str) -> list[tuple[Run, Points]]:
    """The runs that logged the metric to the end. One that is still going would cut the others' curves short."""
    found = [(run, p) for run in group.runs if (p := points(run, stage, metric))]
    end = max((p[-1][0] for _, p in found), default=0.0)
    return [(run, p) for run, p in found if p[-1][0] == end]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and the ends of its band: min and max of up to three, else mean +- t s / sqrt(n)."""
    n = len(values)
    mean = sum(values) / n
    if n <= 3:
        return mean, min(values), max(values)
    half = over_seeds(values)
    return mean, mean - half, mean + half


def thin(values: list[float], size: int) -> list[float]:
    """Means of `size` neighbours."""
    return [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]


def interpolate(known: Points, grid: Sequence[float]) -> list[float]:
    """Values at every place of the sorted grid, straight between the known ones, constant outside."""
    x, y = zip(*known, strict=True)
    return np.interp(grid, x, y).tolist()


def crossing(known: Points, target: float) -> float | None:
    """The first place where straight lines between the points reach the target, or None."""
    if known and known[0][1] >= target:
        return known[0][0]
    for (x0, y0), (x1, y1) in pairwise(known):
        if y1 >= target:
            return x0 + (target - y0) / (y1 - y0) * (x1 - x0)
    return None


def trailing(known: Points, window: int) -> Points:
    """Each value averaged with the window - 1 before it, as far as there are."""
    values = [y for _, y in known]
    return [
        (x, sum(part) / len(part)) for i, (x, _) in enumerate(known) if (part := values[max(0, i - window + 1) : i + 1])
    ]
