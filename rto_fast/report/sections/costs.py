"""Seconds per phase and memory, and what the report could not read."""

from typing import Any

from rto_fast.report import pool
from rto_fast.report.groups import SWEEP, Group, Study, each
from rto_fast.report.html import duration, missing, num, section, table, text
from rto_fast.report.names import colours

MAX_STAGES = 40
WORDS = {"rollout": "rolling out", "score": "scoring", "update": "updating", "other": "the rest"}


def costs(study: Study) -> str:
    lede = "Seconds of every stage as its log has them, evaluation not included; means over seeds."
    return section("costs", "Time and memory", lede, each(study.groups, _group), "metrics.jsonl holds no stages.")


def _group(group: Group) -> str:
    stages: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for i, run in enumerate(group.runs):
        for row in pool.timings(run):
            name = "sweep" if row["stage"].startswith(SWEEP) else row["stage"]
            stages.setdefault(name, []).append((i, row))
    if not stages:
        return ""
    # several sweep stages of one run add up, seeds that came to the stage are averaged
    seeds = {stage: len({i for i, _ in parts}) for stage, parts in stages.items()}
    seconds = {stage: sum(r["seconds"] for _, r in parts) / seeds[stage] for stage, parts in stages.items()}
    longest = max(seconds.values()) or 1.0
    palette = colours(list(stages))
    rows, phased = [], False
    for stage, parts in list(stages.items())[:MAX_STAGES]:
        phases = {p: sum(r["phases"].get(p, 0.0) for _, r in parts) / seeds[stage] for p in pool.PHASES}
        whole, split = duration(seconds[stage]), any(phases.values())
        phases["other"] = max(0.0, seconds[stage] - sum(phases.values()))
        phased |= split
        said = ", ".join(f"{WORDS[p]} {duration(s)}" for p, s in phases.items()) if split else whole
        shown = {f"phase-{p}": s for p, s in phases.items()} if split else {f"whole c-{palette[stage]}": seconds[stage]}
        bar = "".join(f'<i class="{c}" style="width:{100 * s / longest:.2f}%"></i>' for c, s in shown.items())
        peaks, speeds = ([r[n] for _, r in parts if r[n] is not None] for n in ("peak_mb", "tokens_per_second"))
        rows.append(
            [
                text(stage, 40),
                f"{whole}<small>{said}</small>" if split else whole,
                f'<td class="barcell"><div class="bar" role="img" aria-label="{said}">{bar}</div></td>',
                num(sum(speeds) / len(speeds)) if speeds else "–",
                f"{max(peaks):,.0f} MB" if peaks else "–",
            ]
        )
    body = table(["stage", "time", "", "tokens/s", "peak memory"], rows, "Time and memory", "numbers bars")
    if not phased:
        return body + missing("Not logged: time/rollout, time/score, time/update.")
    legend = "".join(f'<span><i class="phase-{p}"></i>{w}</span>' for p, w in WORDS.items())
    return f'<p class="legend" aria-hidden="true">{legend}</p>{body}'


def faults(study: Study) -> str:
    rows = [(run, fault) for group in study.groups for run in group.runs for fault in run.faults]
    if not rows:
        return ""
    items = "".join(f"<li><b>{text(run.folder, 200)}</b>: {text(fault, 300)}</li>" for run, fault in rows[:200])
    lede = "The sections above do without these."
    return section("faults", "Missing or broken files", lede, f"<ul>{items}</ul>")
