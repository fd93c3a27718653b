"""Final figures on held-out prompts and who beats whom (the paper's Table 1)."""

from typing import Any

from rto_fast.report import pool
from rto_fast.report.groups import Group, Study, each
from rto_fast.report.html import figure, missing, note, percent, section, span, table, text
from rto_fast.report.names import FIGURES, judge_words
from rto_fast.report.pool import Pooled
from rto_fast.report.read import mapping, number

MAX_COLUMNS = 12


def policies(study: Study) -> str:
    lede = "Every policy answers the same held-out prompts; figures are means ± half their 95 % interval."
    return section("results", "Results", lede, each(study.groups, _policies))


def _policies(group: Group) -> str:
    found = pool.by_policy(group, "policies")
    if not found:
        return missing("results.json holds no policies: the run was not evaluated, or is not finished.")
    known = dict.fromkeys(key for figures in found.values() for key in figures)
    keys = [key for key in dict.fromkeys([*FIGURES, *known]) if key in known][:MAX_COLUMNS]
    best = max(found, key=lambda n: found[n].get(group.judge or "", {}).get("mean", float("-inf")))
    rows = [
        [text(name, 40), *(_cell(key, figures.get(key), name == best and key == group.judge) for key in keys)]
        for name, figures in found.items()
    ]
    head = ["policy", *(text(FIGURES.get(k, k), 40) for k in keys)]
    return table(head, rows, "Policies", "numbers") + _pooling(group, found) + _extra(group) + _sweep(group)


def _cell(key: str, value: Pooled | None, best: bool = False) -> str:
    if value is None:
        return "–"
    if key == "answers":
        return f"{value['mean'] * value['seeds']:,.0f}"
    shown = percent(value["mean"]) if key == "eos_rate" else figure(value["mean"], value["ci95"])
    shown = f"<b>{shown}</b>" if best else shown
    apart = "" if key == "eos_rate" else span(value["low"], value["high"], value["ci95"])
    return shown + (f"<small>{apart}</small>" if apart else "")


def _pooling(group: Group, tables: dict[str, dict[str, Pooled]]) -> str:
    seeds = max((value["seeds"] for figures in tables.values() for value in figures.values()), default=0)
    if len(group.runs) < 2:
        given = "given these trained models; another training can differ by more."
        return note(f"One seed: ± covers prompts and answers, {given}")
    if seeds < 2:
        return note(f"{seeds} of {len(group.runs)} seeds has been evaluated.")
    of = "" if seeds == len(group.runs) else f" of {len(group.runs)}"
    return note(
        f"{seeds}{of} seeds pooled: ± covers training and prompts (Student's t over the seeds, never "
        "less than the prompts alone); the small numbers are the lowest and the highest seed."
    )


def _extra(group: Group) -> str:
    found = pool.figures(group)
    said = {
        "credit_auc": "DPO's token reward tells right tokens from wrong ones with AUC {}.",
        "preference_accuracy": "DPO's reward agrees with {} of the held-out labels.",
        "score_accuracy": "The reward model's score agrees with {} of the held-out labels.",
    }
    return "".join(
        f"<p>{said[k].format(figure(v['mean'], v['ci95']) if k == 'credit_auc' else percent(v['mean'], v['ci95']))}</p>"
        for k, v in found.items()
    )


def _sweep(group: Group) -> str:
    """The over-optimisation table of the first run that has one."""
    seed, rows = pool.sweep(group, 60)
    keys = [k for k in FIGURES if any(k in row for row in rows) and k != "answers"]
    if not rows or not keys:
        return ""
    found = [pool.merge([row]) for row in rows]
    cells = [[sweep_label(row), *(_cell(k, f.get(k)) for k in keys)] for row, f in zip(rows, found, strict=True)]
    return (
        f'<h3>Over-optimisation</h3><p class="lede">Short runs over the ratio b1/b2 and the clip c'
        f"{f', seed {seed}' if len(group.runs) > 1 else ''}: a return that falls while the DPO reward grows.</p>"
        + table(["b1/b2, clip", *(FIGURES[k] for k in keys)], cells, "Over-optimisation", "numbers")
    )


def sweep_label(row: dict[str, Any]) -> str:
    """The settings of one row of a sweep, e.g. 3, c 0.1."""
    ratio, clip = number(row.get("ratio")), number(row.get("clip"))
    label = f"{'?' if ratio is None else f'{ratio:g}'}, {'no c' if clip is None else f'c {clip:g}'}"
    return label.replace(" ", "\u00a0")  # a narrow column would part the letter from its number


def matrix(study: Study) -> str:
    lede = "How often the policy of the row gives the better answer than the policy of the column; ties count one half."
    return section("wins", "Win rates", lede, each(study.groups, _matrix))


def _matrix(group: Group) -> str:
    wins, even = (pool.by_policy(group, kind) for kind in ("win_rate", "length_controlled"))
    if len(wins) < 2:
        return missing("results.json holds no win rates: they need two policies and an evaluation.")
    judged = f"<p>Judged by {judge_words(group.judge)}{_asked(group)}. Bold: the 95 % interval excludes 50 %.</p>"
    body = judged + _wins(group, wins, "Win rates") + _pooling(group, wins)
    if len(even) > 1:
        body += "<h3>At equal length</h3>" + _wins(group, even, "Win rates at equal length")
    return body


def _wins(group: Group, wins: dict[str, dict[str, Pooled]], caption: str) -> str:
    names = [n for n in dict.fromkeys([*pool.by_policy(group, "policies"), *wins]) if n in wins]
    rows = [[text(a, 40), *(_win(wins[a].get(b), a == b) for b in names)] for a in names]
    return table(["", *(text(n, 40) for n in names)], rows, caption, "numbers matrix")


def _asked(group: Group) -> str:
    """What the judge was and how its answers came out, where results.json says so."""
    said = [
        f"{text(key, 40)} {text(value, 60)}"
        for key, value in mapping(group.runs[0].results.get("judgements")).items()
        if isinstance(value, str | int | float)
    ]
    return f" ({', '.join(said[:8])})" if said else ""


def _win(value: Pooled | None, self: bool) -> str:
    if value is None:
        return '<td class="self">·</td>' if self else "–"
    shown = percent(value["mean"])
    sure = abs(value["mean"] - 0.5) > value["ci95"] > 0
    shown = f"<b>{shown}</b>" if sure else shown
    small = f"± {100 * value['ci95']:.1f}"
    if value["seeds"] > 1:
        ends = f"{100 * value['low']:.0f}", f"{100 * value['high']:.0f}"
        small += f"<br>{' to '.join(ends)}" if ends[0] != ends[1] else ""
    lead = max(-1.0, min(1.0, 2 * value["mean"] - 1))
    return f'<td class="win" style="--v:{lead:.2f}">{shown}<small>{small}</small></td>'
