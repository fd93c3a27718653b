"""The rows of figures as text, and what they say of over-optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

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


def as_text(table: Table, rows: Sequence[Row], judge: str) -> list[str]:
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
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    families = [list(family) for _, family in groupby(rows, lambda row: _family(table, row))]
    notes = [found for family in families if (found := over_optimised(table, family, judge))]
    return ["", table.title, *(f"  {line.rstrip()}" for line in [*padded, *notes])]


def over_optimised(table: Table, rows: Sequence[Row], judge: str) -> str | None:
    """A sentence where the judge falls, beyond both 95 % intervals, while what was optimised goes on rising.

    rows: one family in the order of its setting. None where nothing fell, and where no oracle judges.
    """
    if judge == "implicit_reward":
        return None
    best, last = max(rows, key=lambda row: row[judge]["mean"]), rows[-1]
    sought = "likelihood" if "likelihood" in (last.get("search"), last.get("rank")) else "implicit_reward"
    falls = best[judge]["mean"] - best[judge]["ci95"] > last[judge]["mean"] + last[judge]["ci95"]
    if not falls or last[sought]["mean"] <= best[sought]["mean"]:
        return None
    what = {"likelihood": "log pi_dpo", "implicit_reward": "the DPO reward"}[sought]
    return (
        f"over-optimised: {_family(table, last)}: {judge.replace('_', ' ')} is {best[judge]['mean']:.2f} at "
        f"{table.symbol} = {best[table.setting]:g} and {last[judge]['mean']:.2f} at {table.symbol} = "
        f"{last[table.setting]:g}, while {what} goes from {best[sought]['mean']:.2f} to {last[sought]['mean']:.2f}"
    )


def _family(table: Table, row: Row) -> str:
    return ", ".join(("by " if key == "rank" else "") + row[key].replace("_", " ") for key in table.family)


def _figure(value: dict[str, float], scale: float, digits: int) -> str:
    return f"{scale * value['mean']:z.{digits}f} +- {scale * value['ci95']:.{digits}f}"
