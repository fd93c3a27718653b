"""Learning curves of all algorithms against rollouts (the paper's Figure 3), and who catches up with whom."""

from rto_fast.report.chart import Gap, Line, lines
from rto_fast.report.groups import Group, Study, by_ground
from rto_fast.report.html import missing, num, section, table, text
from rto_fast.report.names import METRICS, colours, dash
from rto_fast.report.rivals import main_metric, rollouts_to_reach
from rto_fast.report.sections.overview import ratio
from rto_fast.report.series import Curve, curve

CURVES = ("judge/return", "implicit_reward", "reward/per_answer")
MAX_LINES = 14


def learning(study: Study) -> str:
    body = _sets(study, CURVES)
    if not body:
        line = "metrics.jsonl holds no stage that rolls out, so there are no learning curves."
        return section("curves", "Learning curves", "", missing(line))
    lede = "What each algorithm earns against the answers it has rolled out so far: equal places cost equal rollouts."
    return section("curves", "Learning curves", lede, body + _reach(study))


def length(study: Study) -> str:
    body = _sets(study, ("answers/length", "answers/truncated"))
    absent = missing("metrics.jsonl holds no answers/length of a stage that rolls out.")
    return section("length", "Answer length", "", body or absent)


def _sets(study: Study, metrics: tuple[str, ...]) -> str:
    body = ""
    for title, groups in by_ground(study):
        drawn = [chart for metric in metrics if (chart := _chart(study, groups, metric))]
        if drawn:
            body += (f"<h3>{text(title, 200)}</h3>" if title else "") + f'<div class="charts">{"".join(drawn)}</div>'
    return body


def member_lines(study: Study, groups: list[Group], metric: str) -> tuple[list[Line], list[Curve], list[str]]:
    """A line per RL member that logged the metric, their curves, and the labels of those that did not."""
    members = [m for m in study.members() if any(m[0] is g for g in groups)][:MAX_LINES]
    palette = colours([stage for _, stage, _ in members])
    drawn, curves, without = [], [], []
    for group, stage, label in members:
        found = curve(group, stage, metric)
        if found is None:
            without.append(text(label, 24))
            continue
        band = (found.low, found.high) if found.band else ((), ())
        style = dash(stage, next(i for i, g in enumerate(groups) if g is group))
        drawn.append(Line(text(label, 24), found.x, found.mean, palette[stage], *band, dash=style))
        curves.append(found)
    return drawn, curves, without


def _chart(study: Study, groups: list[Group], metric: str) -> str:
    drawn, curves, without = member_lines(study, groups, metric)
    if not drawn:
        return ""
    if metric == "answers/truncated" and not any(y for line in drawn for y in line.y):
        return '<p class="note">No answer was cut off at the limit.</p>'
    title, unit = METRICS[metric]
    notes = [band_words(curves)]
    if sum(any(m[0] is g for g in groups) for m in study.members()) > MAX_LINES:
        notes.append(f"Only the first {MAX_LINES} are drawn.")
    if without:
        notes.append(f"Not logged by {', '.join(without)}.")
    first = metric == main_metric(study)
    gap = _gap(study, groups, metric) if first else None
    if gap:
        notes.append(f"Dotted: the rollouts that {gap.saved}, read from averages as in the table below.")
    zero = metric == "answers/truncated"
    return lines(
        title, unit, "rollouts", drawn, note=" ".join(notes), zero=zero, gap=gap, large=first and len(drawn) > 1
    )


def _gap(study: Study, groups: list[Group], metric: str) -> Gap | None:
    """From where rto reaches ppo's (else sparse_dpo's) final value to where that member ends."""
    label = {(i, stage): name for g, stage, name in study.members() for i, h in enumerate(groups) if g is h}
    rows = {(r["policy"], r["rival"]): r for r in rollouts_to_reach(study, metric)}
    for rival in ("ppo", "sparse_dpo"):
        for i in range(len(groups)):
            row = rows.get((label.get((i, "rto")), label.get((i, rival))))
            if row and row["share"] and row["share"] < 0.9 and row["rival_rollouts"] >= row["policy_rollouts"]:
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
    head = [
        "",
        *(f"{text(n, 24)}<small>{num(finals[n]['target'])}</small>" if n in finals else text(n, 24) for n in names),
    ]
    metric, window = METRICS[main_metric(study)][0], rows[0]["window"]
    averaged = f", averaged over {window} batches" if window > 1 else ""
    return (
        "<h3>Rollouts to catch up</h3>"
        f'<p class="lede">How many rollouts the row needs to reach the final value of the column, and that number as a '
        f"share of the column's own. Read from the means over seeds of “{metric}”{averaged}; the "
        "small numbers under a name are its final value.</p>"
        + table(head, cells, "Rollouts to catch up", "numbers matrix")
    )


def _reached(row: dict | None, self: bool) -> str:
    if row is None:
        return '<td class="self">·</td>' if self else "–"
    if row["rollouts"] is None:
        return '<td class="never">never</td>'
    if row["rollouts"] == 0:
        return '<td class="never">from the start</td>'
    seeds = list(row["seeds"].values())
    apart = ""
    if len(seeds) > 1:
        reached = [s for s in seeds if s is not None]
        ends = " to ".join(dict.fromkeys(f"{f(reached):,.0f}" for f in (min, max))) if reached else "no seed alone"
        apart = f"<br>{ends}" + (
            f", {len(seeds) - len(reached)} never" if reached and len(reached) < len(seeds) else ""
        )
    return f"{row['rollouts']:,.0f}<small>{ratio(row['share']) if row['share'] else ''}{apart}</small>"
