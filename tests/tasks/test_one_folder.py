"""A task is one folder: one that is put beside the quickstart is trained on, judged and looked at by its name alone."""

import ast
import json
from pathlib import Path

import pytest

from rto_fast import tasks
from rto_fast.credit.__main__ import main as credit
from rto_fast.decode.__main__ import main as decode
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.train import main
from tests.tiny_run import SETTINGS

ROOT = Path(__file__).parents[2]
OUTSIDE = [path for path in sorted(ROOT.glob("rto_fast/**/*.py")) if "tasks" not in path.parts]


@pytest.fixture
def echo(monkeypatch) -> None:
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(Path(__file__).parent / "more")])


def test_a_second_task_is_trained_judged_and_looked_at(echo, tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(SETTINGS.replace("held_out = 4", "held_out = 0"))
    run, device = tmp_path / "run", ["--device", "cpu"]
    words = ["--recipe", str(tmp_path / "tiny.toml"), "--data.path", "echo", "--model.path", "echo"]
    assert main([*words, "--stages", "sft", "dpo", "--output", str(run), *device]) == 0
    assert json.loads((run / "results.json").read_text())["judge"] == "oracle_return"
    assert 'path = "echo"' in (run / "config.toml").read_text() and (run / "task" / "eval.jsonl").is_file()
    assert evaluate(["--run", str(run), "--temperature", "1", *device]) == 0
    found = json.loads((run / "evaluation/oracle/results.json").read_text())
    assert list(found["policies"]) == ["sft", "dpo"] and found["policies"]["sft"]["answers"] == 8
    assert credit(["--run", str(run), "--corrupted", "6", *device]) == 0
    figures = json.loads((run / "credit.json").read_text())
    assert figures["corrupted"]["answers"] == 6 and figures["credit_auc"]["answers"] == 8
    flags = ["--beams", "1", "--best-of", "1", "--strengths", "1"]
    assert decode(["--run", str(run), *flags, *device]) == 0
    assert json.loads((run / "decode.json").read_text())["judge"] == "oracle_return"
    # without a run, its language says which oracle knows it
    models = [f"mine={run / 'dpo'}", "--reference", str(run / "sft"), "--judge", "oracle"]
    prompts = ["--prompts", str(run / "task/eval.jsonl"), "--max-new-tokens", "6", "--output", str(tmp_path / "out")]
    assert evaluate([*models, *prompts, *device]) == 0


def test_tasks_are_known_by_their_folders(echo):
    assert tasks.names() == ["echo", "quickstart"]
    assert tasks.load("echo").corrupted_rows(1, 0)[0]["prompt"].endswith("say cat")
    assert all(
        tasks.named(name) is None for name in ("", "none", "pairs.jsonl", "__init__", "rto_fast", "quickstart.task")
    )


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_outside_of_its_folder_knows_the_quickstart(path):
    """Of the recipe of that name a configuration has the default, which is no comparison."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("rto_fast.tasks."), path
            assert node.module != "rto_fast.tasks" or "quickstart" not in [name.name for name in node.names], path
        elif isinstance(node, ast.Import):
            assert not any(name.name.startswith("rto_fast.tasks.") for name in node.names), path
        elif isinstance(node, ast.Compare | ast.Match | ast.Call | ast.Tuple | ast.List | ast.Set | ast.Dict):
            parts = [x.value for x in ast.iter_child_nodes(node) if isinstance(x, ast.Constant)]
            assert "quickstart" not in parts, path
