"""python -m rto_fast.credit: what it shows, what it writes, and how it refuses."""

import json
import os
import subprocess
import sys

import pytest

from rto_fast.credit.__main__ import main
from rto_fast.evaluate.heatmap import from_json
from rto_fast.tasks.quickstart.corrupt import corrupted_answers


def test_a_run_is_shown_measured_and_written(run, tmp_path, capsys):
    arguments = ["--run", str(run), "--answers", "40", "--corrupted", "30", "--rows", "2", "5", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    maps = from_json((tmp_path / "heatmaps.json").read_text())
    titles = [f"{name}, {kind}" for name in ("pair 2", "pair 5") for kind in ("chosen", "rejected")]
    titles += [f"{name}, {kind}" for name in ("case 1", "case 2") for kind in ("right", "corrupted")]
    assert [m.title for m in maps] == titles and all(m.title in out for m in maps)
    rows = [json.loads(line) for line in (run / "task/pairs.jsonl").read_text().splitlines()[:5]]
    assert maps[1].prompt == rows[1]["prompt"] and "".join(maps[1].tokens) == rows[1]["rejected"] + " <eos>"
    answer = corrupted_answers(30, 0)[0]
    assert "".join(maps[5].tokens) == answer.corrupted + " <eos>"
    assert tuple(i for i, s in enumerate(maps[5].signs) if s) == answer.swapped
    figures = json.loads((tmp_path / "credit.json").read_text())
    assert figures["corrupted"]["answers"] == 30 and 0 <= figures["corrupted"]["lowest"]["mean"] <= 1
    assert figures["credit_auc"]["answers"] == 40
    html = (tmp_path / "credit.html").read_text()
    assert html.count('class="hm"') == len(maps) and "swapped tokens are the lowest" in html
    assert f"{100 * figures['corrupted']['lowest']['mean']:.1f} %" in out
    assert "\033" not in out


def test_any_models_and_a_file_with_corrupted_answers(run, tmp_path, capsys):
    rows = [answer.row for answer in corrupted_answers(12, 3)]
    rows.append({"prompt": "say the sound of the dog .", "chosen": "it says woof .", "corrupted": "it says ."})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = ["--dpo", str(run / "dpo"), "--reference", str(run / "sft"), "--template", "none", "--device", "cpu"]
    assert main([*models, "--pairs", str(file), "--examples", "1", "--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "corrupted answers: 12" in out and "1 without some tokens of their own left out" in out
    maps = from_json((tmp_path / "out" / "heatmaps.json").read_text())
    assert [m.title for m in maps] == ["case 1, right", "case 1, corrupted"]


def test_equal_models_give_rewards_of_zero(run, tmp_path, capsys):
    arguments = ["--dpo", str(run / "sft"), "--reference", str(run / "sft"), "--template", "none", "--device", "cpu"]
    arguments += ["--pairs", str(run / "task/pairs.jsonl"), "--rows", "1", "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert all(r == 0 for m in from_json((tmp_path / "heatmaps.json").read_text()) for r in m.rewards)


@pytest.mark.parametrize(
    "arguments, wanted",
    [
        ([], "run: nothing to look at"),
        (["--run", "nowhere"], "run: no config.toml in 'nowhere'"),
        (["--run", "RUN", "--dpo", "x"], "either --run, or --dpo"),
        (["--run", "RUN", "--rows", "0"], "numbered from 1"),
        (["--run", "RUN", "--rows", "8001", "--corrupted", "0", "--answers", "0"], "there are 8000 pairs, got 8001"),
        (["--run", "RUN", "--corrupted", "-1"], "corrupted: must be 0 or more"),
        (["--run", "RUN", "--corrupted", "1003"], "count must be 1 to 1002"),
        (["--run", "RUN", "--answers", "1"], "at least 2"),
        (["--run", "RUN", "--beta", "0"], "beta: must be positive"),
        (["--run", "RUN", "--pairs", "nowhere.jsonl"], "no file or directory"),
        (["--run", "RUN", "--pairs", "RUN/task/pairs.jsonl", "--corrupted", "9"], "columns chosen and corrupted"),
        (
            ["--dpo", "RUN/dpo", "--reference", "./nowhere", "--pairs", "RUN/task/pairs.jsonl"],
            "reference: no config.json",
        ),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, arguments, wanted):
    arguments = [a.replace("RUN", str(run)) for a in arguments]
    assert main([*arguments, "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: ") and wanted in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_teaches_and_a_terminal_of_another_encoding_is_no_matter(run, tmp_path):
    command = [sys.executable, "-m", "rto_fast.credit"]
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and "--corrupted" in said.stdout and "swapping" in said.stdout
    rows = [{"prompt": "say the sound of the dog .", "chosen": "it 日本 .", "rejected": "café"}]
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[0]) + "\n")
    arguments = ["--dpo", run / "dpo", "--reference", run / "sft", "--pairs", tmp_path / "pairs.jsonl"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    arguments += ["--rows", "1", "--output", tmp_path, "--template", "none"]
    said = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, env=env)
    assert said.returncode == 0, said.stderr
