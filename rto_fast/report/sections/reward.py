"""What the reward is made of over training, and what it costs in KL."""

from rto_fast.report import pool
from rto_fast.report.chart import Line, stack
from rto_fast.report.groups import Group, Study, by_ground
from rto_fast.report.html import missing, num, percent, section, table, text
from rto_fast.report.names import METRICS, colours, judge_words
from rto_fast.report.read import mapping
from rto_fast.report.scatter import Point, plane
from rto_fast.report.sections.learning import member_lines
from rto_fast.report.sections.results import sweep_label
from rto_fast.report.series import IMPLICIT, RETURN, Curve, curve

PARTS = {"dense": "tokens", "score": "score", "kl": "KL"}
MAX_CHARTS = 14


def components(study: Study) -> str:
    members = study.members()[:MAX_CHARTS]
    charts = [chart for group, stage, label in members if (chart := _shares(group, stage, text(label, 24)))]
    if not charts:
        line = "metrics.jsonl holds no reward/…_share of a stage that rolls out."
        return section("reward", "What the reward is made of", "", missing(line))
    lede = (
        "Each part's share of all reward that was paid, by magnitude: DPO's reward for tokens, the reward model's "
        "score and the KL penalty. Means over seeds."
    )
    return section(
        "reward",
        "What the reward is made of",
        lede,
        f'<div class="charts small">{"".join(charts)}</div>' + _table(study),
    )


def _shares(group: Group, stage: str, label: str) -> str:
    found = {part: c for part in PARTS if (c := curve(group, stage, f"reward/{part}_share")) is not None}
    if not found:
        return ""
    # seeds may log a part on other steps than the rest
    grid = next(iter(found.values())).x
    drawn = [Line(PARTS[p], grid, c.mean, f"part-{p}") for p, c in found.items() if c.x == grid]
    return stack(label, "share of the reward's magnitude", "rollouts", drawn)


def _table(study: Study) -> str:
    """Last values of every part, per token, and how often the clip cut."""
    rows = []
    for group, stage, label in study.members()[:MAX_CHARTS]:
        last = lambda name, g=group, s=stage: _last(curve(g, s, name))  # noqa: E731
        cells = [
            f"{num(last(f'reward/{part}_mean'))}<small>{num(last(f'reward/{part}_abs'))}</small>" for part in PARTS
        ]
        cut = last("reward/dense_clipped")
        rows.append([text(label, 24), *cells, "–" if cut is None else percent(cut), num(last("values/explained"))])
    head = ["", *(f"{name}<small>magnitude</small>" for name in PARTS.values()), "clipped", "critic explains"]
    said = '<p class="note">Means per token in the last batch, the mean magnitude below each.</p>'
    return table(head, rows, "Reward components in the last batch", "numbers") + said


def _last(found: Curve | None) -> float | None:
    return None if found is None else found.mean[-1]


def frontier(study: Study) -> str:
    body = ""
    for title, groups in by_ground(study):
        drawn = _held_out(study, groups) + _training(study, groups)
        body += (f"<h3>{text(title, 200)}</h3>" if title and drawn else "") + (
            f'<div class="charts">{drawn}</div>' if drawn else ""
        )
    absent = missing("Neither results.json nor metrics.jsonl holds a KL beside a reward.")
    lede = "Reward is bought with distance from the reference: higher at the same KL is better."
    return section("frontier", "KL against reward", lede, body or absent)


def _held_out(study: Study, groups: list[Group]) -> str:
    points = []
    judge = groups[0].judge or "implicit_reward"
    for group in groups:
        found = pool.policies(group)
        palette = colours(list(found))
        mark = f" {group.letter}" if len(groups) > 1 else ""
        for name, f in found.items():
            if judge in f and "kl" in f:
                x, y = f["kl"], f[judge]
                points.append(Point(text(name + mark, 24), x["mean"], y["mean"], palette[name], x["ci95"], y["ci95"]))
        points += _sweep(group, judge)
    if not points:
        return ""
    note = "Bars: 95 % intervals."
    note += " Hollow: short runs, named by b1/b2 and the clip c." if any(p.hollow for p in points) else ""
    y_name = judge_words(judge)
    return plane("On held-out prompts", f"{y_name} against KL to sft", "KL, nats per answer", y_name, points, note=note)


def _sweep(group: Group, judge: str) -> list[Point]:
    rows = next((r.results["sweep"] for r in group.runs if isinstance(r.results.get("sweep"), list)), [])
    points = []
    for row in map(mapping, rows[:20]):
        x, y = pool.estimate(row.get("kl")), pool.estimate(row.get(judge))
        if x and y:
            points.append(Point(sweep_label(row), x[0], y[0], "sft", x[1], y[1], hollow=True))
    return points


def _training(study: Study, groups: list[Group]) -> str:
    charts = ""
    for metric in (RETURN, IMPLICIT):
        paths, curves, _ = member_lines(study, groups, metric)
        drawn = []
        for path, (group, stage) in zip(paths, _logged(study, groups, metric), strict=True):
            kl = curve(group, stage, "kl/per_answer")
            if kl is not None and kl.x == list(path.x):
                drawn.append(Line(path.label, kl.mean, path.y, path.colour, dash=path.dash))
        if drawn:
            name, unit = METRICS[metric]
            note = "One dot per batch of rollouts, from the reference at the left on."
            charts += plane(f"During training: {name}", unit, "KL, nats per answer", name, [], drawn, note)
    return charts


def _logged(study: Study, groups: list[Group], metric: str) -> list[tuple[Group, str]]:
    members = [m for m in study.members() if any(m[0] is g for g in groups)]
    return [(g, stage) for g, stage, _ in members if curve(g, stage, metric) is not None]
