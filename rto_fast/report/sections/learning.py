"""Learning curves of all algorithms against rollouts (the paper's Figure 3), and who catches up with whom."""

from collections.abc import Callable

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


Member = tuple[Group, str, Curve, Line]
"""An RL stage of a group, and its curve of one metric."""


def members_of(study: Study, groups: list[Group], metric: str) -> tuple[list[Member], list[str]]:
    """The RL members that logged the metric, so many as can be told apart, and what is to be said of the others."""
    every = [(group, stage, text(label, 24)) for group, stage, label in study.members() if group in groups]
    palette = colours([stage for _, stage, _ in every[:MAX_LINES]])
    found, without = [], []
    for group, stage, label in every[:MAX_LINES]:
        if c := curve(group, stage, metric):
            line = as_line(label, c, palette[stage], dash(stage, groups.index(group)))
            found.append((group, stage, c, line))
        else:
            without.append(label)
    notes = [f"Only the first {MAX_LINES} are drawn."] if len(every) > MAX_LINES else []
    return found, notes + ([f"Not logged by {', '.join(without)}."] if without else [])


def as_line(label: str, c: Curve, colour: str, dash: str) -> Line:
    low, high = (c.low, c.high) if c.band else ((), ())
    return Line(label, c.x, c.mean, colour, low, high, dash)


def _chart(study: Study, groups: list[Group], metric: str) -> str:
    members, others = members_of(study, groups, metric)
    drawn = [line for *_, line in members]
    if not drawn:
        return ""
    if metric == "answers/truncated" and not any(y for line in drawn for y in line.y):
        return note("No answer was cut off at the limit.")
    title, unit = METRICS[metric]
    notes = [band_words([c for _, _, c, _ in members]), *others]
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
    seeds = " to ".join(dict.fromkeys(str(end(c.seeds for c in curves)) for end in (min, max)))
    names = {"min-max": "lowest to highest seed", "95 %": "95 % interval of the mean"}
    kinds = " or ".join(words for band, words in names.items() if any(c.band == band for c in curves))
    said = f"Mean over {seeds} seeds; band: {kinds}." if kinds else "One seed, no band."
    said += " Seeds that have not got as far are left out." if any(c.behind for c in curves) else ""
    average = max(c.average for c in curves)
    return said + (f" Each point averages {average} logged ones." if average > 1 else "")


def _reach(study: Study) -> str:
    rows = rollouts_to_reach(study)
    if not rows:
        return ""
    names = list(dict.fromkeys(r["policy"] for r in rows))
    known = {(r["policy"], r["rival"]): r for r in rows}
    finals = {r["rival"]: num(r["target"]) for r in rows}
    cells = [[text(a, 24), *(_reached(known.get((a, b)), a == b) for b in names)] for a in names]
    head = ["", *(f"{text(n, 24)}<small>{finals[n]}</small>" for n in names)]
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
