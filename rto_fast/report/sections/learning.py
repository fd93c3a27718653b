"""Learning curves of all algorithms against rollouts (the paper's Figure 3), and who catches up with whom."""

from collections.abc import Callable
from typing import NamedTuple

from rto_fast.report.chart import Gap, Line, lines
from rto_fast.report.groups import Group, Study, by_ground
from rto_fast.report.html import note, num, section, table, text
from rto_fast.report.names import METRICS, colours, dash
from rto_fast.report.rivals import Row, main_metric, rollouts_to_reach, rto_catches_up
from rto_fast.report.sections.overview import ratio
from rto_fast.report.series import Curve, curve

CURVES = ("judge/return", "implicit_reward", "reward/per_answer")
MAX_LINES = 14


def learning(study: Study) -> str:
    body = comparable(study, lambda groups: "".join(_chart(study, groups, metric) for metric in CURVES))
    lede = "What each algorithm earns against the answers it has rolled out so far: equal places cost equal rollouts."
    absent = "metrics.jsonl holds no stage that rolls out, so there are no learning curves."
    return section("curves", "Learning curves", lede, body and body + _reach(study), absent)


def length(study: Study) -> str:
    metrics = ("answers/length", "answers/truncated")
    body = comparable(study, lambda groups: "".join(_chart(study, groups, metric) for metric in metrics))
    absent = "metrics.jsonl holds no answers/length of a stage that rolls out."
    return section("length", "Answer length", "", body, absent)


def comparable(study: Study, draw: Callable[[list[Group]], str]) -> str:
    """The charts of every set of groups that can be compared, under its title where there are several."""
    drawn = [(title, charts) for title, groups in by_ground(study) if (charts := draw(groups))]
    return "".join(
        (f"<h3>{text(title, 200)}</h3>" if title else "") + f'<div class="charts">{charts}</div>'
        for title, charts in drawn
    )


class Member(NamedTuple):
    """An RL member of a group, and its curve of one metric."""

    group: Group
    stage: str
    curve: Curve
    line: Line


def members_of(study: Study, groups: list[Group], metric: str) -> tuple[list[Member], list[str]]:
    """The RL members that logged the metric, so many as can be told apart, and the labels of those that did not."""
    members = [m for m in study.members() if any(m[0] is g for g in groups)][:MAX_LINES]
    palette = colours([stage for _, stage, _ in members])
    found, without = [], []
    for group, stage, label in members:
        if (c := curve(group, stage, metric)) is None:
            without.append(text(label, 24))
            continue
        style = dash(stage, next(i for i, g in enumerate(groups) if g is group))
        found.append(Member(group, stage, c, as_line(text(label, 24), c, palette[stage], style)))
    return found, without


def as_line(label: str, c: Curve, colour: str, dash: str) -> Line:
    low, high = (c.low, c.high) if c.band else ((), ())
    return Line(label, c.x, c.mean, colour, low, high, dash)


def _chart(study: Study, groups: list[Group], metric: str) -> str:
    members, without = members_of(study, groups, metric)
    drawn = [m.line for m in members]
    if not drawn:
        return ""
    if metric == "answers/truncated" and not any(y for line in drawn for y in line.y):
        return note("No answer was cut off at the limit.")
    title, unit = METRICS[metric]
    notes = [band_words([m.curve for m in members])]
    if sum(any(m[0] is g for g in groups) for m in study.members()) > MAX_LINES:
        notes.append(f"Only the first {MAX_LINES} are drawn.")
    if without:
        notes.append(f"Not logged by {', '.join(without)}.")
    first = metric == main_metric(study)
    gap = _gap(study, groups, metric) if first else None
    if gap:
        notes.append(f"Dotted: the rollouts that {gap.saved}, read from averages as in the table below.")
    zero, large = metric == "answers/truncated", first and len(drawn) > 1
    return lines(title, unit, "rollouts", drawn, zero=zero, note=" ".join(notes), gap=gap, large=large)


def _gap(study: Study, groups: list[Group], metric: str) -> Gap | None:
    """From where rto reaches ppo's (else sparse_dpo's) final value to where that member ends."""
    for rival, row in rto_catches_up(study, groups, metric):
        if row["share"] < 0.9:
            words = f"{ratio(row['share'])}<span> of {rival}’s rollouts</span>"
            saved = f"rto saves on its way to {rival}’s final value"
            return Gap(row["rollouts"], row["rival_rollouts"], row["target"], words, saved)
    return None


def band_words(curves: list[Curve]) -> str:
    """One sentence on what lines and bands are."""
    seeds = sorted({c.seeds for c in curves})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    kinds = {c.band for c in curves} - {""}
    said = "One seed, no band." if not kinds else f"Mean over {count} seeds; band: "
    names = {"min-max": "lowest to highest seed", "95 %": "95 % interval of the mean"}
    said += " or ".join(names[k] for k in names if k in kinds) + "." if kinds else ""
    said += " Seeds that have not got as far are left out." if any(c.behind for c in curves) else ""
    average = max(c.average for c in curves)
    return said + (f" Each point averages {average} logged ones." if average > 1 else "")


def _reach(study: Study) -> str:
    rows = rollouts_to_reach(study)
    if not rows:
        return ""
    names = list(dict.fromkeys(r["policy"] for r in rows))
    known = {(r["policy"], r["rival"]): r for r in rows}
    finals = {r["rival"]: r for r in rows}
    cells = [[text(a, 24), *(_reached(known.get((a, b)), a == b) for b in names)] for a in names]
    final = {n: f"<small>{num(finals[n]['target'])}</small>" if n in finals else "" for n in names}
    head = ["", *(text(n, 24) + final[n] for n in names)]
    metric, window = METRICS[main_metric(study)][0], rows[0]["window"]
    averaged = f", averaged over {window} batches" if window > 1 else ""
    return (
        "<h3>Rollouts to catch up</h3>"
        f'<p class="lede">How many rollouts the row needs to reach the final value of the column, and that number as a '
        f"share of the column's own. Read from the means over seeds of “{metric}”{averaged}; the "
        "small numbers under a name are its final value.</p>"
        + table(head, cells, "Rollouts to catch up", "numbers matrix")
    )


def _reached(row: Row | None, self: bool) -> str:
    if row is None:
        return '<td class="self">·</td>' if self else "–"
    if row["rollouts"] is None:
        return '<td class="never">never</td>'
    if row["rollouts"] == 0:
        return '<td class="never">from the start</td>'
    seeds, apart = list(row["seeds"].values()), ""
    if len(seeds) > 1:
        reached = [s for s in seeds if s is not None]
        ends = " to ".join(dict.fromkeys(f"{f(reached):,.0f}" for f in (min, max))) if reached else "no seed alone"
        never = f", {len(seeds) - len(reached)} never" if 0 < len(reached) < len(seeds) else ""
        apart = f"<br>{ends}{never}"
    return f"{row['rollouts']:,.0f}<small>{ratio(row['share']) if row['share'] else ''}{apart}</small>"
