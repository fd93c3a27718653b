"""The DPO stage: rewards and likelihoods of chosen and rejected answers."""

from rto_fast.report.chart import lines
from rto_fast.report.groups import Group, Study, each
from rto_fast.report.html import missing, section
from rto_fast.report.sections.learning import as_line, band_words
from rto_fast.report.series import curve

CHARTS = (
    ("Implicit reward", "β log(π/π<sub>ref</sub>) of an answer", ("reward_chosen", "reward_rejected")),
    ("Likelihood", "log π of an answer, nats", ("logp_chosen", "logp_rejected")),
    ("Accuracy", "share of pairs whose chosen answer has the higher reward", ("accuracy",)),
    ("Margin", "reward of chosen minus rejected", ("margin",)),
)
MAX_POINTS = 50
"""Single batches of pairs are noisy: neighbours are averaged down to so many points."""
STYLES = {"chosen": ("good", ""), "rejected": ("bad", "7 3"), "accuracy": ("dpo", ""), "margin": ("dpo", "")}
"""Colour and dashes."""


def preference(study: Study) -> str:
    lede = (
        "The loss looks at the difference alone: the likelihood of the chosen answers may fall as long as that of the "
        "rejected ones falls faster."
    )
    body = each(study.groups, _group)
    return section("dpo", "The DPO stage", lede, body, "metrics.jsonl holds no lines of a dpo stage.")


def _group(group: Group) -> str:
    if not any("dpo" in run.metrics for run in group.runs):
        return ""
    charts, absent = "", []
    for name, unit, metrics in CHARTS:
        found = {m: c for m in metrics if (c := curve(group, "dpo", m, MAX_POINTS)) is not None}
        if found:
            drawn = [as_line(label := m.split("_")[-1], c, *STYLES[label]) for m, c in found.items()]
            charts += lines(name, unit, "step", drawn, note=band_words(list(found.values())))
        else:
            absent.append(name.lower())
    without = missing(f"Not logged: {', '.join(absent)}.") if absent else ""
    return f'<div class="charts">{charts}</div>{without}'
