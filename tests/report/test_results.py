"""What the report's two tables of results make bold, and how many answers they count."""

import json
import re
from pathlib import Path

from rto_fast.report.groups import read_study
from rto_fast.report.sections import results


def study(tmp_path: Path, seeds: int = 2):
    policies = {
        name: {"oracle_return": {"mean": mean, "ci95": 0.1}, "eos_rate": 1.0, "answers": 500}
        for name, mean in (("sft", 0.1), ("dpo", 0.9), ("rto", 0.7))
    }
    wins = {"sft": {"dpo": 0.2, "rto": 0.47}, "dpo": {"sft": 0.8, "rto": 0.52}, "rto": {"sft": 0.53, "dpo": 0.48}}
    table = {a: {b: {"mean": mean, "ci95": 0.04} for b, mean in row.items()} for a, row in wins.items()}
    folders = []
    for seed in range(seeds):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "config.toml").write_text(f"recipe = 'made up'\nseed = {seed}\n")
        (folder / "metrics.jsonl").write_text("")
        found = {"policies": policies, "win_rate": table, "judge": "oracle_return"}
        (folder / "results.json").write_text(json.dumps(found))
        folders.append(folder)
    return read_study(folders)


def bold(html: str) -> list[str]:
    return re.findall(r"<b>(.*?)</b>", html)


def test_the_best_policy_of_the_judge_is_bold(tmp_path):
    html = results.policies(study(tmp_path))
    (best,) = bold(html)
    assert best.startswith("0.9")
    assert html.count(">1,000<") == 3  # two seeds of 500 answers


def test_win_rates_are_bold_where_the_interval_excludes_a_half(tmp_path):
    html = results.matrix(study(tmp_path, seeds=1))
    assert sorted(re.sub(r"\D", "", shown)[:2] for shown in bold(html)) == ["20", "80"]
