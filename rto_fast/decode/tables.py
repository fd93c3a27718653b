"""The rows of figures as text, and what they say of over-optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rto_fast.files.text import in_columns

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    key: str
    """In decode.json."""
    title: str
    family: tuple[str, ...]
    """What names a family of rows, such as one search."""
    setting: str
    """What grows from row to row of a family."""
    symbol: str
    """The setting's short name."""
    columns: dict[str, str]
    """Figures and their headings."""


_COLUMNS = {"oracle_return": "oracle return", "implicit_reward": "DPO reward", "length": "tokens"}
_LIKELIHOOD = {**_COLUMNS, "likelihood": "log pi_dpo"}
TABLES = (
    Table("beam", "Beam search", ("search",), "beams", "beams", _LIKELIHOOD),
    Table("best_of", "Best of n samples", ("sampler", "rank"), "n", "n", _LIKELIHOOD),
    Table(
        "realignment",
        "Realignment: pi ~ pi_base (pi_dpo / pi_ref)^b",
        ("base",),
        "strength",
        "b",
        {**_COLUMNS, "kl": "KL to pi_ref"},
    ),
)


def as_text(table: Table, rows: Sequence[Row], findings: Sequence[Row], judge: str) -> list[str]:
    """One line per row: its figures with 95 % intervals and its win rates; then where a family over-optimises."""
    if not rows:
        return []
    columns = {c: heading for c, heading in table.columns.items() if c in rows[0]}
    baselines = list(rows[0]["win_rate"])
    lines = [["", *(f"beats {b}" for b in baselines), *columns.values(), "stops", "seconds"]]
    for row in rows:
        wins = [_figure(row["win_rate"][b], 100, 1) + " %" for b in baselines]
        figures = [_figure(row[c], 1, 3) for c in columns]
        name = f"{_family(table, row)}, {table.symbol} = {row[table.setting]:g}"
        lines.append([name, *wins, *figures, f"{100 * row['eos_rate']:.0f} %", f"{row['seconds']:.1f}"])
    notes = [f"  {over_optimised_text(table, finding, judge)}" for finding in findings]
    return ["", table.title, *in_columns(lines), *notes]


def over_optimised(rows: Sequence[Row], family: Sequence[str], setting: str, judge: str) -> list[Row]:
    """Where the judge falls, beyond both 95 % intervals, while what was optimised goes on rising.

    rows     in the order of `setting`, those with the same values of `family` side by side
    setting  the field that grows from row to row of a family

    One finding per family where that is so: its values of `family`, "sought" (what was optimised), and "best" and
    "last": the setting, the judge's mean and that of what was sought, where the judge is highest and at the end. Empty
    where nothing fell, and where the judge is what was optimised.
    """
    if judge == "implicit_reward":
        return []
    found = []
    for names, members in groupby(rows, lambda row: {name: row[name] for name in family}):
        some = list(members)
        best, last = max(some, key=lambda row: row[judge]["mean"]), some[-1]
        sought = "likelihood" if "likelihood" in (names.get("search"), names.get("rank")) else "implicit_reward"
        falls = best[judge]["mean"] - best[judge]["ci95"] > last[judge]["mean"] + last[judge]["ci95"]
        if falls and last[sought]["mean"] > best[sought]["mean"]:
            ends = {
                end: {setting: row[setting], **{name: row[name]["mean"] for name in (judge, sought)}}
                for end, row in (("best", best), ("last", last))
            }
            found.append({**names, "sought": sought, **ends})
    return found


def over_optimised_text(table: Table, finding: Row, judge: str) -> str:
    """A finding of `over_optimised` as a sentence."""
    best, last, sought = finding["best"], finding["last"], finding["sought"]
    what = {"likelihood": "log pi_dpo", "implicit_reward": "the DPO reward"}[sought]
    return (
        f"over-optimised: {_family(table, finding)}: {judge.replace('_', ' ')} is {best[judge]:.2f} at "
        f"{table.symbol} = {best[table.setting]:g} and {last[judge]:.2f} at {table.symbol} = "
        f"{last[table.setting]:g}, while {what} goes from {best[sought]:.2f} to {last[sought]:.2f}"
    )


def _family(table: Table, row: Row) -> str:
    return ", ".join(("by " if key == "rank" else "") + row[key].replace("_", " ") for key in table.family)


def _figure(value: dict[str, float], scale: float, digits: int) -> str:
    return f"{scale * value['mean']:z.{digits}f} +- {scale * value['ci95']:.{digits}f}"
