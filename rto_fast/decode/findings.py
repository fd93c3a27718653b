"""What the rows of figures say of over-optimisation."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

Row = dict[str, Any]


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
