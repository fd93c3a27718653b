"""python -m bench.report FILE.json ...: pytest-benchmark's files as Markdown tables and plots.

    python -m pytest bench/bench_ppo_head.py --benchmark-json=ppo.json
    python -m bench.report ppo.json                                   # tables on the screen
    python -m bench.report *.json --into bench/README.md --plots bench/results/plots

A device on which a suite was not run says "not measured". `--into` rewrites these suites' sections between the two
lines `<!-- bench.report -->` and `<!-- /bench.report -->` of a Markdown file; other suites' stay.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

BEGIN, END = "<!-- bench.report -->", "<!-- /bench.report -->"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
# what a table shows of an entry, beside shape and rival
COLUMNS = {
    "ms": "ms",
    "ratio": "x baseline",
    "tflops": "TFLOP/s",
    "gb_per_s": "GB/s",
    "tokens_per_s": "tokens/s",
    "speedup": "speed-up",
    "against": "speed-up over",
    "peak_mib": "peak MiB",
    "launches": "launches",
}


def read(paths: list[Path]) -> dict[str, list[dict]]:
    """Entries of each suite. Raises ValueError with a sentence for a file that pytest-benchmark did not write."""
    suites: dict[str, list[dict]] = defaultdict(list)
    for path in paths:
        try:
            benchmarks = json.loads(path.read_text())["benchmarks"]
            for entry in benchmarks:
                suite = Path(entry["fullname"].split("::")[0]).stem
                info = {"ms": 1e3 * entry["stats"]["median"], "rival": entry["name"], "shape": "", "device": "cpu"}
                suites[suite].append(info | entry["extra_info"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"bench.report: {path} is not a file of pytest --benchmark-json: {error!r}") from error
    return dict(sorted(suites.items()))


def number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(entries: list[dict]) -> list[str]:
    """Markdown lines: a row for each entry, a column for each thing that some entry measured."""
    shown = [name for name in COLUMNS if any(entry.get(name) is not None for entry in entries)]
    lines = ["| " + " | ".join(["shape", "rival", *(COLUMNS[name] for name in shown)]) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(shown))
    for entry in entries:
        cells = [
            f"{number(entry[name])} {entry['of']}"
            if name == "ratio" and "of" in entry
            else number(entry[name])
            if entry.get(name) is not None
            else "not measured"
            for name in shown
        ]
        lines.append("| " + " | ".join([entry["shape"], entry["rival"], *cells]) + " |")
    return lines


def where(entries: list[dict]) -> str:
    """Machine, versions and commit of entries, each set once."""
    seen = []
    for entry in entries:
        facts = entry.get("machine", {})
        words = [str(facts[k]) for k in ("device", "processor") if facts.get(k)]
        words += [f"{facts['threads']} threads"] if facts.get("threads") and entry["device"] == "cpu" else []
        words += [f"{k} {facts[k]}" for k in ("torch", "triton") if facts.get(k)]
        words += [f"commit {facts['commit']}"] if facts.get("commit") else []
        text = ", ".join(words)
        if text and text not in seen:
            seen.append(text)
    return "; ".join(seen)


def markdown(suites: dict[str, list[dict]], plots: dict[str, list[Path]]) -> str:
    lines: list[str] = []
    for suite, entries in suites.items():
        lines += [f"### {suite}", ""]
        for device, name in DEVICES.items():
            here = [entry for entry in entries if entry["device"] == device]
            lines += [f"{name}: {where(here)}", "", *table(here), ""] if here else [f"{name}: not measured.", ""]
        lines += [f"![{path.stem}]({path})" for path in plots.get(suite, ())] + [""] * bool(plots.get(suite))
    return "\n".join(lines).rstrip() + "\n"


def into(path: Path, text: str) -> None:
    """Put the text's sections between the two marks of a file, in place of those of the same names."""
    whole = path.read_text()
    if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
        raise ValueError(f"bench.report: {path} needs one line {BEGIN} and, after it, one line {END}")
    head, rest = whole.split(BEGIN)
    before, tail = rest.split(END)
    text = "\n".join(section + "\n" for _, section in sorted((sections(before) | sections(text)).items()))
    path.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")


def sections(text: str) -> dict[str, str]:
    """What stands under each `### name` of a Markdown text, its heading included."""
    parts = (part.strip() for part in re.split(r"(?m)^(?=### )", text))
    return {part.partition("\n")[0]: part for part in parts if part.startswith("### ")}


def draw(suites: dict[str, list[dict]], folder: Path) -> dict[str, list[Path]]:
    """A plot for each suite and axis of growth: milliseconds and peak memory over size, a line for each rival."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError('bench.report: --plots needs matplotlib: pip install -e ".[bench]"') from None
    matplotlib.use("svg")
    from matplotlib import pyplot

    # the same input gives the same file
    matplotlib.rcParams["svg.hashsalt"] = "rto_fast"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[Path]] = defaultdict(list)
    for suite, entries in suites.items():
        axes = dict.fromkeys((e["growth"], e["device"]) for e in entries if "growth" in e)
        for axis, device in axes:
            points = [e for e in entries if e.get("growth") == axis and e["device"] == device]
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
            for rival in dict.fromkeys(e["rival"] for e in points):
                line = sorted((e["size"], e["ms"], e.get("peak_mib")) for e in points if e["rival"] == rival)
                left.plot([x[0] for x in line], [1e3 * x[1] / x[0] for x in line], marker="o", label=rival)
                if all(x[2] is not None for x in line):
                    right.plot([x[0] for x in line], [x[2] for x in line], marker="o", label=rival)
            sizes = sorted({e["size"] for e in points})
            for plot, what in ((left, f"us per {axis.split()[0].removesuffix('s')}"), (right, "peak MiB")):
                plot.set(xscale="log", xlabel=axis, ylabel=what, ylim=(0, None))
                plot.set_xticks(sizes, [f"{size:,}" for size in sizes])
                plot.minorticks_off()
                plot.grid(alpha=0.3)
            left.legend(frameon=False)
            figure.suptitle(f"{suite.removeprefix('bench_')}, {DEVICES[device]}")
            path = folder / f"{suite.removeprefix('bench_')}_{axis.split()[-1]}_{device}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            made[suite].append(path)
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="what pytest --benchmark-json=FILE wrote")
    parser.add_argument("--into", type=Path, help="a Markdown file with the two marks; default: the screen")
    parser.add_argument("--plots", type=Path, help="folder for plots of growth (SVG)")
    given = parser.parse_args(arguments)
    try:
        suites = read(given.files)
        plots = draw(suites, given.plots) if given.plots else {}
        if given.into:
            base = given.into.parent
            plots = {suite: [Path(os.path.relpath(p, base)) for p in paths] for suite, paths in plots.items()}
            into(given.into, markdown(suites, plots))
        else:
            print(markdown(suites, plots), end="")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
