"""How many rollouts one algorithm needs to reach what another ends with."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from rto_fast.report.groups import Group, Study, ground, read_study
from rto_fast.report.series import IMPLICIT, RETURN, Points, crossing, curve, farthest, trailing

WINDOW = 3
"""Rollout batches that one value is averaged over with less than three seeds: a batch alone is noisy, and the first
lucky one would count. The mean over three seeds is a value of its own, and averaging would only lag behind it."""
EVERY = 1 << 60
"""No thinning: crossings are read from every batch."""
Row = dict[str, Any]
"""An entry of `rollouts_to_reach`."""


def rollouts_to_reach(runs: Study | Sequence[Path], metric: str | None = None, window: int | None = None) -> list[Row]:
    """For every ordered pair of RL members: the rollouts that one needs to reach the other's final return.

    Both are read from means over the seeds that got the farthest, averaged over the last `window` batches (None: 1 from
    three seeds on, else 3): `target` is the rival's last value, `rollouts` the place where the policy's first reaches
    it (straight lines between batches; the batch that shows it is counted), 0 where the first batch, made before any
    update, has it already. `metric` is judge/return where it was logged, else DPO's implicit reward; only members with
    the same judge and data are paired.
    Each entry: policy, rival, metric, window, target, rollouts (None: not reached), rival_rollouts and policy_rollouts
    (how far the two went), share = rollouts / rival_rollouts, seeds {seed: rollouts or None against the same target},
    and curves {name: {rollouts: [...], mean: [...]}}, the averaged curves that it was read from.
    """
    if window is not None and window < 1:
        raise ValueError(f"rollouts_to_reach: window must be at least 1, got {window}")
    study = runs if isinstance(runs, Study) else read_study(runs)
    if window is None:
        window = 1 if min((len(group.runs) for group in study.groups), default=0) >= 3 else WINDOW
    metric = metric or main_metric(study)
    known = {
        label: (group, stage, trailing(list(zip(found.x, found.mean, strict=True)), window))
        for group, stage, label in study.members()
        if (found := curve(group, stage, metric, EVERY)) is not None
    }
    rows = []
    for (name, (group, stage, ours)), (rival, (other, _, theirs)) in permutations(known.items(), 2):
        if ground(group) != ground(other):
            continue
        target, total = theirs[-1][1], theirs[-1][0]
        reached, both = _needed(ours, target), {name: ours, rival: theirs}
        seeds = farthest(group, stage, metric)
        rows.append(
            {
                "policy": name,
                "rival": rival,
                "metric": metric,
                "window": window,
                "target": target,
                "rollouts": reached,
                "rival_rollouts": total,
                "policy_rollouts": ours[-1][0],
                "share": None if reached is None or not total else reached / total,
                "seeds": {str(run.seed): _needed(trailing(own, window), target) for run, own in seeds},
                "curves": {n: {"rollouts": [x for x, _ in c], "mean": [y for _, y in c]} for n, c in both.items()},
            }
        )
    return rows


def rto_catches_up(study: Study, groups: Sequence[Group], metric: str | None = None) -> Iterator[tuple[str, Row]]:
    """(rival, its entry of `rollouts_to_reach`) for every group whose rto reaches the final return of ppo, then of
    sparse_dpo; a rival that is still going has no final return yet."""
    label = {(group.letter, stage): name for group, stage, name in study.members()}
    rows = {(r["policy"], r["rival"]): r for r in rollouts_to_reach(study, metric)}
    for rival in ("ppo", "sparse_dpo"):
        for group in groups:
            row = rows.get((label.get((group.letter, "rto")), label.get((group.letter, rival))))
            if row and row["share"] and row["rival_rollouts"] >= row["policy_rollouts"]:
                yield rival, row


def main_metric(study: Study) -> str:
    """What learning curves are judged by: the judge's return where any member logged it, else DPO's reward."""
    return RETURN if any(curve(group, stage, RETURN) for group, stage, _ in study.members()) else IMPLICIT


def _needed(curve: Points, target: float) -> float | None:
    """Where the curve reaches the target; 0 where it begins there."""
    return 0.0 if curve[0][1] >= target else crossing(curve, target)
