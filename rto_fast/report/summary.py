"""A report's content as plain data: what the page shows, without the page."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rto_fast.report import pool
from rto_fast.report.groups import Group, differences, read_study
from rto_fast.report.rivals import rollouts_to_reach
from rto_fast.report.series import IMPLICIT, RETURN, curve

CURVES = (
    RETURN,
    IMPLICIT,
    "reward/per_answer",
    "kl/per_answer",
    "answers/length",
    "answers/truncated",
    "reward/dense_share",
    "reward/kl_share",
    "reward/score_share",
)


def summarise(run_folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that a report says, as lists, dicts, strings and numbers that json can write.

    {"groups": [{"title", "recipe", "seeds", "folders", "judge", "policies", "win_rate", "curves", "timings", "faults",
    "credit_auc"?, "preference_accuracy"?, "score_accuracy"?}], "differences": [[setting, [value in each group]]],
    "rollouts_to_reach": [...], "notes": [...]}. Runs of one configuration are one group; figures are pooled over its
    seeds. ValueError where a folder is no run.
    """
    study = read_study(run_folders)
    return {
        "groups": [_group(group) for group in study.groups],
        "differences": [[key, [_plain(v) for v in values]] for key, values in differences(study.groups)],
        "rollouts_to_reach": rollouts_to_reach(study),
        "notes": [*study.notes],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "recipe": group.recipe,
        "seeds": [run.seed for run in group.runs],
        "folders": [str(run.folder) for run in group.runs],
        "judge": group.judge,
        "policies": pool.by_policy(group, "policies"),
        "win_rate": pool.by_policy(group, "win_rate"),
        **pool.figures(group),
        "curves": {stage: _curves(group, stage) for stage in group.members},
        "timings": {str(run.folder): pool.timings(run) for run in group.runs},
        "faults": {str(run.folder): run.faults for run in group.runs},
    }


def _curves(group: Group, stage: str) -> dict[str, Any]:
    return {
        metric: {"rollouts": c.x, "mean": c.mean, "low": c.low, "high": c.high, "band": c.band, "seeds": c.seeds}
        for metric in CURVES
        if (c := curve(group, stage, metric))
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):  # JSON has no infinity
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
