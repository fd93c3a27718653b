"""The DPO stage: rewards and likelihoods of chosen and rejected answers."""

from rto_fast.report.chart import Line, lines
from rto_fast.report.groups import Group, Study
from rto_fast.report.html import missing, section, text
from rto_fast.report.sections.learning import band_words
from rto_fast.report.series import Curve, curve

CHARTS = (
    (
        "Implicit reward",
        "β log(π/π<sub>ref</sub>) of an answer",
        {"reward_chosen": "chosen", "reward_rejected": "rejected"},
    ),
    ("Likelihood", "log π of an answer, nats", {"logp_chosen": "chosen", "logp_rejected": "rejected"}),
    ("Accuracy", "share of pairs whose chosen answer has the higher reward", {"accuracy": "accuracy"}),
    ("Margin", "reward of chosen minus rejected", {"margin": "margin"}),
)
MAX_POINTS = 50
"""Single batches of pairs are noisy: neighbours are averaged down to so many points."""
COLOURS = {"chosen": "good", "rejected": "bad", "accuracy": "dpo", "margin": "dpo"}


def preference(study: Study) -> str:
    body = "".join(_group(group) for group in study.groups)
    absent = missing("metrics.jsonl holds no lines of a dpo stage.")
    lede = (
        "The loss looks at the difference alone: the likelihood of the chosen answers may fall as long as that of the "
        "rejected ones falls faster."
    )
    return section("dpo", "The DPO stage", lede if body else "", body or absent)


def _group(group: Group) -> str:
    if not any("dpo" in run.metrics for run in group.runs):
        return ""
    title = f"<h3>{text(group.title, 80)}</h3>" if group.letter else ""
    charts, absent = "", []
    for name, unit, metrics in CHARTS:
        found = {m: c for m in metrics if (c := curve(group, "dpo", m, MAX_POINTS)) is not None}
        if found:
            drawn = [_line(metrics[m], c) for m, c in found.items()]
            charts += lines(name, unit, "step", drawn, note=band_words(list(found.values())))
        else:
            absent.append(name.lower())
    without = missing(f"Not logged: {', '.join(absent)}.") if absent else ""
    return f'{title}<div class="charts">{charts}</div>{without}'


def _line(label: str, c: Curve) -> Line:
    band = (c.low, c.high) if c.band else ((), ())
    return Line(label, c.x, c.mean, COLOURS[label], *band, dash="7 3" if label == "rejected" else "")
