"""What the reward is made of over training, and what it costs in KL."""

from rto_fast.report import pool
from rto_fast.report.chart import Line, stack
from rto_fast.report.groups import Group, Study
from rto_fast.report.html import missing, note, num, percent, section, table, text
from rto_fast.report.names import METRICS, colours, judge_words
from rto_fast.report.scatter import Point, plane
from rto_fast.report.sections.learning import comparable, members_of
from rto_fast.report.sections.results import sweep_label
from rto_fast.report.series import IMPLICIT, RETURN, curve

PARTS = {"dense": "tokens", "score": "score", "kl": "KL"}
MAX_CHARTS = 14


def components(study: Study) -> str:
    members = study.members()[:MAX_CHARTS]
    charts = "".join(_shares(group, stage, text(label, 24)) for group, stage, label in members)
    body = f'<div class="charts small">{charts}</div>{_table(study)}' if charts else ""
    lede = (
        "Each part's share of all reward that was paid, by magnitude: DPO's reward for tokens, the reward model's "
        "score and the KL penalty. Means over seeds."
    )
    absent = "metrics.jsonl holds no reward/…_share of a stage that rolls out."
    return section("reward", "What the reward is made of", lede, body, absent)


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
        names = [f"reward/{part}_{kind}" for part in PARTS for kind in ("mean", "abs")]
        *parts, cut, explained = (_last(group, stage, n) for n in (*names, "reward/dense_clipped", "values/explained"))
        cells = [f"{num(mean)}<small>{num(size)}</small>" for mean, size in zip(parts[::2], parts[1::2], strict=True)]
        rows.append([text(label, 24), *cells, "–" if cut is None else percent(cut), num(explained)])
    head = ["", *(f"{name}<small>magnitude</small>" for name in PARTS.values()), "clipped", "critic explains"]
    said = note("Means per token in the last batch, the mean magnitude below each.")
    return table(head, rows, "Reward components in the last batch", "numbers") + said


def _last(group: Group, stage: str, metric: str) -> float | None:
    found = curve(group, stage, metric)
    return None if found is None else found.mean[-1]


def frontier(study: Study) -> str:
    body = comparable(study, lambda groups: _held_out(groups) + _training(study, groups))
    absent = missing("Neither results.json nor metrics.jsonl holds a KL beside a reward.")
    lede = "Reward is bought with distance from the reference: higher at the same KL is better."
    return section("frontier", "KL against reward", lede, body or absent)


def _held_out(groups: list[Group]) -> str:
    points = []
    judge = groups[0].judge or "implicit_reward"
    for group in groups:
        found = pool.by_policy(group, "policies")
        palette = colours(list(found))
        mark = f" {group.letter}" if len(groups) > 1 else ""
        for name, f in found.items():
            if judge in f and "kl" in f:
                x, y = f["kl"], f[judge]
                points.append(Point(text(name + mark, 24), x["mean"], y["mean"], palette[name], x["ci95"], y["ci95"]))
        points += _sweep(group, judge)
    if not points:
        return ""
    said = "Bars: 95 % intervals."
    said += " Hollow: short runs, named by b1/b2 and the clip c." if any(p.hollow for p in points) else ""
    y_name = judge_words(judge)
    return plane("On held-out prompts", f"{y_name} against KL to sft", "KL, nats per answer", y_name, points, note=said)


def _sweep(group: Group, judge: str) -> list[Point]:
    pairs = [(row, pool.estimate(row.get("kl")), pool.estimate(row.get(judge))) for row in pool.sweep(group, 20)[1]]
    return [Point(sweep_label(row), x[0], y[0], "sft", x[1], y[1], hollow=True) for row, x, y in pairs if x and y]


def _training(study: Study, groups: list[Group]) -> str:
    charts = ""
    for metric in (RETURN, IMPLICIT):
        drawn = []
        for group, stage, found, path in members_of(study, groups, metric)[0]:
            if (kl := curve(group, stage, "kl/per_answer")) and kl.x == found.x:
                drawn.append(Line(path.label, kl.mean, path.y, path.colour, dash=path.dash))
        if drawn:
            name, unit = METRICS[metric]
            said = "One dot per batch of rollouts, from the reference at the left on."
            charts += plane(f"During training: {name}", unit, "KL, nats per answer", name, [], drawn, said)
    return charts
