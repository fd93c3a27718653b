"""A source that loses rows says so: above a tenth in a line of its own, above a half the run is refused."""

from collections import Counter
from typing import Any

from rto_fast.data.encode import EncodingReport, Limits
from rto_fast.data.held_out import HeldOut
from rto_fast.data.rows import Normalised

LOUD, MOST = 0.1, 0.5
_LARGEST = 3
"""So many reasons are named."""
_FIXES = {
    "response does not fit": (
        "raise --data.max-length (now {max_length}) as far as the model's context goes, or lower "
        "--data.max-prompt (now {max_prompt})"
    ),
    "no shared prompt": "name the column of the prompt with --data.columns prompt=YOURS",
    "refused by the chat template": "use --data.template plain",
    "message list written as text": "write the rows as .jsonl with message lists in them",
}


def dropped(source: Normalised[Any], report: EncodingReport) -> Counter[str]:
    """Rows lost by reason, in reading and in encoding; those whose prompt is held out are not lost but kept apart."""
    counts = Counter(source.dropped) + Counter(report.dropped)
    del counts[HeldOut.REASON]
    return counts


def loss(field: str, source: Normalised[Any], report: EncodingReport, limits: Limits, allowed: bool) -> str:
    """What to say loudly of a source, "" when at most a tenth of its rows is dropped.

    field    what the source is called
    allowed  data.allow_dropped

    Raises ValueError when more than half is dropped and that is not allowed.
    """
    counts = dropped(source, report)
    lost, rows = counts.total(), counts.total() + len(report.kept)
    if lost <= LOUD * rows:
        return ""
    largest = counts.most_common(_LARGEST)
    reasons = ", ".join(f"{count} {reason}" for reason, count in largest)
    reasons += f", {lost - sum(count for _, count in largest)} others" if len(counts) > _LARGEST else ""
    fix = next((_FIXES[reason].format(**limits) for reason, _ in largest if reason in _FIXES), "")
    said = f"{field}: {lost} of {rows} rows ({100 * lost / rows:.0f} %) are dropped: {reasons}"
    if lost > MOST * rows and not allowed:
        raise ValueError(f"{said}; {fix + ', or ' if fix else ''}accept it with --data.allow-dropped True")
    return f"{said}; {fix or 'python -m rto_fast.data shows what is left'}"
