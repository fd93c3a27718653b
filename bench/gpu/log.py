"""What was found so far: kept as JSON and Markdown, written after every section, so that a time-out keeps the rest."""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Log:
    """Results by section, and the clock that says whether another section may begin."""

    def __init__(self, folder: Path, budget_s: float, facts: dict[str, object], smoke: bool):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.budget_s, self.began = folder, budget_s, time.monotonic()
        self.results: dict[str, object] = {"machine": facts, "smoke": smoke, "checks": [], "tables": {}, "notes": []}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def section(self, name: str, run: Callable[[], None]) -> None:
        """Run a section unless the budget is spent; what it raises becomes a failed check, and the rest goes on."""
        if self.elapsed_s > self.budget_s:
            self.note(f"{name}: skipped, the budget of {self.budget_s:.0f} s was spent")
        else:
            print(f"[{self.elapsed_s:5.0f} / {self.budget_s:.0f} s] {name}", flush=True)
            try:
                run()
            except Exception as error:  # one broken section must not lose the others
                self.check(name, False, f"{type(error).__name__}: {error}")
                traceback.print_exc()
        self.results["seconds"] = round(self.elapsed_s, 1)
        self.write()

    def check(self, name: str, passed: bool, detail: str) -> None:
        self.results["checks"].append({"name": name, "passed": bool(passed), "detail": detail})
        print(f"    {'ok  ' if passed else 'FAIL'} {name}: {detail}", flush=True)

    def note(self, text: str) -> None:
        self.results["notes"].append(text)
        print(f"    note: {text}", flush=True)

    def row(self, table: str, **columns: object) -> None:
        self.results["tables"].setdefault(table, []).append(columns)
        print("    " + "  ".join(f"{k}={_short(v)}" for k, v in columns.items()), flush=True)

    def find(self, table: str, **wanted: object) -> dict | None:
        """The first row of a table with these columns, None when it was not measured."""
        rows = self.results["tables"].get(table, ())
        return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)

    @property
    def failed(self) -> list[dict]:
        return [check for check in self.results["checks"] if not check["passed"]]

    def write(self) -> None:
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.folder / "RESULTS.md").write_text(markdown(self.results))


def _short(value: object) -> str:
    return "not measured" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict]) -> list[str]:
    """Markdown lines of rows that may lack columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return lines + ["| " + " | ".join(_short(row.get(name)) for name in names) + " |" for row in rows]


def markdown(results: dict) -> str:
    checks = results["checks"]
    failed = [check for check in checks if not check["passed"]]
    lines = ["# rto_fast on a GPU", ""]
    if results["smoke"]:
        lines += ["**A smoke run: tiny shapes, no GPU. Nothing here is a measurement.**", ""]
    lines += table([{"": name, "value": value} for name, value in results["machine"].items()])
    for name, rows in results["tables"].items():
        lines += ["", f"## {name}", "", *table(rows)]
    lines += ["", "## Checks", "", f"{len(checks) - len(failed)} passed, {len(failed)} failed."]
    if failed:
        lines += ["", *table(failed)]
    lines += ["", "<details><summary>all</summary>", "", *table(checks), "", "</details>"] if checks else []
    if results["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in results["notes"])]
    return "\n".join(lines) + "\n"
