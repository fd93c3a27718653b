"""What was run, and what came out, before anything else."""

from itertools import islice

from rto_fast.config.depends import flat
from rto_fast.report import pool
from rto_fast.report.groups import Group, Study, differences, each
from rto_fast.report.html import duration, figure, missing, note, percent, plural, section, table, text
from rto_fast.report.names import ALGORITHMS, judge_words
from rto_fast.report.read import Run, number, setting
from rto_fast.report.rivals import rto_catches_up

MAX_TILES = 4


def headline(study: Study) -> str:
    """The page's title and its findings, as large numbers with a sentence each."""
    recipes = list(dict.fromkeys(group.recipe for group in study.groups))
    runs = [run for group in study.groups for run in group.runs]
    title = text(", ".join(recipes), 120)
    seconds = sum(number(run.results.get("seconds")) or 0.0 for run in runs)
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    about = [
        plural(len(runs), "run"),
        f"seeds {', '.join(map(str, seeds[:12]))}{', …' if len(seeds) > 12 else ''}" if len(seeds) > 1 else "",
        plural(len(study.groups), "configuration") if len(study.groups) > 1 else "",
        f"{duration(seconds)} in all" if seconds else "",
    ]
    tiles = each(study.groups[:MAX_TILES], lambda group: _tiles(study, group))
    words = f'<p class="kicker">rto_fast report</p><h1>{title}</h1><p>{", ".join(filter(None, about))}</p>'
    return f'<header class="top">{words}{tiles}</header>'


def _tiles(study: Study, group: Group) -> str:
    found: list[tuple[str, str]] = []
    policies, judge = pool.by_policy(group, "policies"), group.judge
    ranked = {n: p[judge] for n, p in policies.items() if judge in p}
    if len(ranked) > 1:
        best = max(ranked, key=lambda n: ranked[n]["mean"])
        value = figure(ranked[best]["mean"], ranked[best]["ci95"])
        found.append((value, f"{judge_words(judge)} of <b>{text(best, 40)}</b>, the highest of {len(ranked)} policies"))
        hero = "rto" if "rto" in ranked else best
        wins = pool.by_policy(group, "win_rate").get(hero, {})
        beaten = next((r for r in ("dpo", "sparse_dpo", "ppo", "sft") if r != hero and r in wins), None)
        if beaten:
            value = percent(wins[beaten]["mean"], wins[beaten]["ci95"])
            found.append((value, f"of held-out prompts: <b>{text(hero, 40)}</b> beats <b>{text(beaten, 40)}</b>"))
    for rival, row in islice(rto_catches_up(study, [group]), 1):
        after = f"{row['rollouts']:,.0f} of {row['rival_rollouts']:,.0f}"
        words = f"of the rollouts: <b>rto</b> reaches {rival}'s final return after {after}"
        found.append((ratio(row["share"]), words))
    if auc := pool.figures(group).get("credit_auc"):
        value = figure(auc["mean"], auc["ci95"])
        found.append((value, "AUC: DPO's token reward tells right tokens from wrong ones"))
    tiles = "".join(f"<p><strong>{v}</strong> {words}</p>" for v, words in found)
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def ratio(share: float) -> str:
    """1/8 for 0.125; above a half as a percentage."""
    return f"1/{1 / share:.2g}" if share <= 0.5 else percent(share)


def runs(study: Study) -> str:
    members = [(group, run) for group in study.groups for run in group.runs]
    rows = [
        [
            text(run.folder, 200).replace("/", "/<wbr>"),
            text(group.title, 80),
            "–" if run.seed is None else str(run.seed),
            *(text(setting(run.config, key) or "–", 120) for key in ("model.path", "data.path")),
            text(", ".join(_stages(run)), 200),
            judge_words(group.judge) if group.judge else "–",
            duration(seconds) if (seconds := number(run.results.get("seconds"))) else "not finished",
        ]
        for group, run in members
    ]
    head = ["run", "recipe", "seed", "model", "data", "stages", "judge", "time"]
    body = table(head, rows, "Runs", "words wide")
    body += "".join(missing(text(line, 400)) for line in study.notes)
    if len(study.groups) > 1:
        body += _differences(study)
    names = {name for _, run in members for name in _stages(run)}
    known = "".join(f"<dt>{k}</dt><dd>{v}</dd>" for k, v in ALGORITHMS.items() if k in names)
    body += f'<h3>The algorithms</h3><dl class="words">{known}</dl>' if known else ""
    body += "".join(_configuration(group) for group in study.groups)
    lede = "Runs of one configuration under several seeds are pooled; their figures are means over the seeds."
    return section("runs", "What was run", lede if any(len(g.runs) > 1 for g in study.groups) else "", body)


def _stages(run: Run) -> list[str]:
    named = run.config.get("stages")
    logged = [name for name in run.metrics if not name.startswith("sweep-")]
    return [str(s) for s in named] if isinstance(named, list) else logged


def _differences(study: Study) -> str:
    changed = differences(study.groups)
    rows = [[text(key, 80), *(text("–" if v is None else v, 80) for v in values)] for key, values in changed[:40]]
    more = note(f"and {len(changed) - 40} more") if len(changed) > 40 else ""
    opened = " open" if len(changed) <= 12 else ""
    head = ["setting", *(text(g.title, 60) for g in study.groups)]
    return (
        f"<details{opened}><summary>Where they differ</summary>"
        f"{table(head, rows, 'Settings that differ', 'words')}{more}</details>"
    )


def _configuration(group: Group) -> str:
    values = flat(group.runs[0].config)
    if not values:
        return missing(f"{text(group.title, 80)}: config.toml is missing or broken, so its settings are not known.")
    rows = [[text(k, 100), text(v, 300)] for k, v in list(values.items())[:400]]
    name = f" of {text(group.title, 80)}" if group.letter else ""
    settings = table(["setting", "value"], rows, "Settings", "words")
    return f"<details><summary>Every setting{name}</summary>{settings}</details>"
