"""The page: every section, its style and its script in one file that asks the network for nothing."""

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from rto_fast.files.disk import write_whole
from rto_fast.report.groups import Study, read_study
from rto_fast.report.html import text
from rto_fast.report.sections import costs, learning, overview, preference, results, reward, tokens

HERE = Path(__file__).parent
SECTIONS = {
    "runs": ("Runs", overview.runs),
    "results": ("Results", results.policies),
    "wins": ("Win rates", results.matrix),
    "curves": ("Curves", learning.learning),
    "frontier": ("KL", reward.frontier),
    "reward": ("Reward", reward.components),
    "length": ("Length", learning.length),
    "dpo": ("DPO", preference.preference),
    "credit": ("Credit", tokens.heatmaps),
    "samples": ("Answers", tokens.samples),
    "costs": ("Time", costs.costs),
    "faults": ("Files", costs.faults),
}


def write_report(run_folders: Sequence[Path], output: Path) -> Path:
    """Read run folders and write the report to `output`, replacing it in one step; returns `output`.

    A comparison's folder stands for the runs inside it; runs of one configuration are pooled over their seeds. What is
    missing or broken in a run is said on the page. ValueError where a folder is no run or `output` cannot be a page,
    OSError where it cannot be written.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"report: output must be named .html, got {output}")
    if output.is_dir():
        raise ValueError(f"report: output must be a file, {output} is a folder")
    page = render(read_study(run_folders))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page)
    return output


def default_output(run_folders: Sequence[Path]) -> Path:
    """report.html in the one folder given, or in the folder that all of them share."""
    folders = [Path(f).expanduser() for f in run_folders]
    if len(folders) == 1:
        return folders[0] / "report.html"
    try:
        return Path(os.path.commonpath([f.resolve().parent for f in folders])) / "report.html"
    except ValueError:
        raise ValueError("report: the runs share no folder; say where the page goes with --output") from None


def render(study: Study) -> str:
    """The page as text, every character of which UTF-8 can hold."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # the browser itself refuses any other script and any request, whatever a run may have written
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    bodies = {key: body for key, (_, make) in SECTIONS.items() if (body := make(study))}
    links = "".join(f'<a href="#{key}">{SECTIONS[key][0]}</a>' for key in bodies)
    recipes = ", ".join(dict.fromkeys(group.recipe for group in study.groups))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{text(recipes, 100)} – rto_fast report</title><style>{style}</style></head><body>"
        '<a class="skip" href="#main">Skip to the findings</a>'
        f'<nav aria-label="Sections"><div>{links}</div>'
        '<button id="theme" type="button" hidden></button></nav>'
        f'<main id="main">{overview.headline(study)}{"".join(bodies.values())}</main>'
        f"<script>{script}</script></body></html>\n"
    )
