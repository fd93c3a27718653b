"""Credit, token by token, and answers side by side."""

from contextlib import suppress
from typing import Any

from rto_fast.evaluate.heatmap import Heatmap, scale_of
from rto_fast.evaluate.heatmap_html import html
from rto_fast.report.groups import Group, Study, each
from rto_fast.report.html import missing, note, num, plural, section, text
from rto_fast.report.names import colours
from rto_fast.report.read import number

MAX_MAPS = 24
MAX_PROMPTS = 24
MAX_POLICIES = 12


def heatmaps(study: Study) -> str:
    lede = (
        'DPO\'s reward of every token, <span class="key plus">above</span> and <span class="key minus">below</span> '
        "zero. Point at, tap or focus a token for its number; the arrow keys go on from there. Tokens known to be "
        "wrong are underlined with a wave."
    )
    return section("credit", "Token credit", lede, each(study.groups, _maps), "heatmaps.json is missing or empty.")


def _maps(group: Group) -> str:
    """The heat maps of the first run that has any, all on one scale."""
    run = next((r for r in group.runs if r.heatmaps), None)
    if run is None:
        return ""
    shown, drawn = run.heatmaps[:MAX_MAPS], []
    for entry in shown:
        fields: list[Any] = [entry.get(name) for name in ("title", "prompt", "tokens", "rewards", "signs")]
        with suppress(TypeError, ValueError):
            drawn.append(Heatmap(*fields))
    scale = scale_of(drawn)
    seed = f"From seed {run.seed}, one of {len(group.runs)}. " if len(group.runs) > 1 else ""
    body = note(f"{seed}Full colour at ± {num(scale, 2)}.") if drawn else ""
    body += "".join(html(drawn_map, scale=scale) for drawn_map in drawn)
    body += _more(len(run.heatmaps) - MAX_MAPS, "more heat map", "heatmaps.json")
    if left_out := len(shown) - len(drawn):
        body += missing(f"{plural(left_out, 'heat map')} of another shape left out: one reward per token is wanted.")
    return body


def samples(study: Study) -> str:
    lede = "What the policies say to the same held-out prompts."
    body = each(study.groups, _group)
    return section("samples", "Answers side by side", lede, body, "answers.jsonl is missing or empty.")


def _group(group: Group) -> str:
    run = next((r for r in group.runs if r.answers), None)
    if run is None:
        return ""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for answer in run.answers:
        if isinstance(answer.get("response"), str):
            prompts.setdefault(f"{answer.get('index')!r:.40}", []).append(answer)
    body = note(f"From seed {run.seed}, one of {len(group.runs)}.") if len(group.runs) > 1 else ""
    body += "".join(_prompt(i, answers) for i, answers in enumerate(list(prompts.values())[:MAX_PROMPTS]))
    return body + _more(len(prompts) - MAX_PROMPTS, "more prompt", "answers.jsonl")


def _more(count: int, what: str, file: str) -> str:
    return note(f"and {plural(count, what)} in {file}") if count > 0 else ""


def _prompt(place: int, answers: list[dict[str, Any]]) -> str:
    judged = [j for a in answers if (j := number(a.get("judged"))) is not None]
    palette = colours([str(a.get("policy")) for a in answers])
    best = max(judged) if judged and min(judged) < max(judged) else None
    cards = "".join(_answer(a, palette, best) for a in answers[:MAX_POLICIES])
    return (
        f'<details class="sample"{" open" if place < 3 else ""}><summary>{text(answers[0].get("prompt", ""), 600)}'
        f'</summary><div class="answers">{cards}</div></details>'
    )


def _answer(answer: dict[str, Any], palette: dict[str, str], best: float | None) -> str:
    name, judged = str(answer.get("policy")), number(answer.get("judged"))
    facts = [f"<b>{num(judged)}</b>"] if judged is not None else []
    facts += ["best"] if judged is not None and judged == best else []
    facts += [f"KL {num(kl, 2)}"] if (kl := number(answer.get("kl"))) is not None else []
    facts += [plural(int(count), "token")] if (count := number(answer.get("tokens"))) is not None else []
    facts += ["cut off"] if answer.get("finish") == "length" else []
    return (
        f'<article class="c-{palette[name]}"><h4>{text(name, 40)}</h4><p class="facts">{" · ".join(facts)}</p>'
        f'<p class="said">{text(answer["response"])}</p></article>'
    )
