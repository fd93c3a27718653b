"""A finished stage and its results are on the disk before what could make them again goes, and damage is found."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rto_fast.credit.__main__ import main as credit
from rto_fast.decode.__main__ import main as decode
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.files import digests
from rto_fast.report.__main__ import main as report
from rto_fast.train import main
from rto_fast.training.checkpoint import Checkpoints
from tests.fuzz.place import base, make_shared


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return make_shared(tmp_path_factory.mktemp("digests"))


@pytest.fixture
def run(shared, tmp_path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(shared / "run", run)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(shared / "run"), str(run)))
    return run


def flip(file: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


COMMANDS = {
    "evaluate": lambda run: evaluate(["--run", str(run), "--num-prompts", "2"]),
    "credit": lambda run: credit(["--run", str(run)]),
    "decode": lambda run: decode(["--run", str(run), "--num-prompts", "2"]),
}


NAMES = ["model.safetensors", "config.json", "tokenizer.json"]
# a stage without stage.json is not finished
HARM = [*((name, harm) for name in NAMES for harm in ("flipped", "missing")), ("stage.json", "flipped")]


@pytest.mark.parametrize("name, harm", HARM)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_next_stage_takes_no_damaged_one(run, shared, stage, name, harm, capfd):
    shutil.rmtree(run / "rto")
    file = run / stage / name
    file.unlink() if harm == "missing" else flip(file)
    capfd.readouterr()
    assert main(base(shared, run)) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rto_fast: error")]
    assert error.startswith(f"rto_fast: error: {stage}: '{file}' is damaged, ")
    assert f"delete the folder '{run / stage}' and give the command that made it again" in error
    assert not (run / "rto").exists()
    shutil.rmtree(run / stage)
    assert main(base(shared, run)) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_measures_a_damaged_stage(run, command, capfd):
    flip(run / "sft" / "model.safetensors")
    capfd.readouterr()
    assert COMMANDS[command](run) == 2
    error = capfd.readouterr().err
    assert (
        f"'{run / 'sft' / 'model.safetensors'}' is damaged" in error and f"delete the folder '{run / 'sft'}'" in error
    )
    assert error.count("delete the folder") == 1


def test_a_stage_given_to_another_run_is_looked_at_too(run, shared, tmp_path, capfd):
    flip(run / "sft" / "model.safetensors")
    assert main([*base(shared, tmp_path / "other"), "--sft.model", str(run / "sft")]) == 2
    assert f"sft.model: '{run / 'sft' / 'model.safetensors'}' is damaged" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["results.json", "answers.jsonl", "heatmaps.json"])
def test_a_report_shows_no_damaged_results(run, name, capfd):
    assert report([str(run)]) == 0
    assert "is not what the run wrote" not in (run / "report.html").read_text()
    file = run / name
    content = file.read_text()
    file.write_text(content[:-40] + content[-40:].replace("0", "1").replace("e", "o"))
    assert file.read_text() != content
    assert report([str(run)]) == 0
    assert f"{name} is not what the run wrote and was not read" in (run / "report.html").read_text()


def test_what_credit_writes_over_is_whole(run):
    assert credit(["--run", str(run), "--rows", "1"]) == 0
    assert digests.first_damaged(run) is None and "heatmaps.json" in digests.stated(run)
    assert report([str(run)]) == 0
    assert "is not what the run wrote" not in (run / "report.html").read_text()


def test_answers_kept_for_later_are_made_again_when_damaged(run, capfd):
    assert COMMANDS["evaluate"](run) == 0
    results = json.loads((run / "evaluation" / "implicit" / "results.json").read_text())
    for file in (run / "evaluation" / "answers").glob("*.json"):
        if file.name != digests.MANIFEST:
            values = json.loads(file.read_text())
            values["kl"] = [x + 1.0 for x in values["kl"]]
            file.write_text(json.dumps(values))
    assert COMMANDS["evaluate"](run) == 0
    again = json.loads((run / "evaluation" / "implicit" / "results.json").read_text())
    assert again["policies"] == results["policies"]


def test_a_stage_of_an_older_version_is_used_and_said_to_be_without_digests(run, shared, capfd):
    (run / "sft" / digests.MANIFEST).unlink()
    (run / digests.MANIFEST).unlink()
    assert main(base(shared, run)) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "without digests" in line]
    assert lines == [f"sft: finished already, using {run / 'sft'}, without digests: an older version wrote it"]


def test_a_manifest_of_other_people_is_none_of_ours(run, shared, tmp_path):
    shutil.copytree(shared / "model", tmp_path / "model")
    (tmp_path / "model" / digests.MANIFEST).write_text('{"version": 3}')
    digests.check_stage(tmp_path / "model", "model.path")


@pytest.mark.parametrize("manifest", ["", "[]", "{", '{"../run/config.toml": ""}', '{"/etc/passwd": ""}', '{"sft": 5}'])
def test_a_manifest_that_is_none_is_damage(run, manifest):
    (run / "sft" / digests.MANIFEST).write_text(manifest)
    with pytest.raises(digests.Damaged, match="sft: .* is damaged"):
        digests.check_stage(run / "sft", "sft")


def test_files_in_folders_within_are_stated_too(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("a")
    digests.seal(tmp_path)
    assert digests.first_damaged(tmp_path) is None
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("bb")
    assert digests.first_damaged(tmp_path) == "additional_chat_templates/tool.jinja"


def test_a_stage_outlives_a_loss_of_power_before_its_checkpoints_go(shared, tmp_path, monkeypatch):
    """Every file, the folder and its name in the folder above are forced to the disk when checkpoints are deleted."""
    forced, seen, original = {}, [], Checkpoints.forget
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.__setitem__(os.fstat(descriptor).st_ino, len(forced)))

    def forget(self):
        stage = self.folder.with_suffix("")
        if (stage / "stage.json").exists():
            files = [path for path in stage.rglob("*") if path.is_file()]
            assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= {p.name for p in files}
            seen.append(stage.name)
            assert [p for p in (*files, stage, stage.parent) if p.stat().st_ino not in forced] == []
        original(self)

    monkeypatch.setattr(Checkpoints, "forget", forget)
    assert main(base(shared, tmp_path / "run")) == 0
    assert seen == ["sft", "dpo", "rto"]
    for name in ("results.json", "answers.jsonl", "heatmaps.json", "manifest.json"):
        assert (tmp_path / "run" / name).stat().st_ino in forced


def test_each_file_is_read_once_for_its_digest(run, shared, monkeypatch):
    """Stages are loaded as pi_ref, as pi_dpo and as policies, several times each."""
    read, original = [], digests.open_regular

    def known(path: Path) -> tuple[int, int]:
        """A file whatever its path; a number alone may be that of one that is gone."""
        return path.stat().st_ino, path.stat().st_mtime_ns

    monkeypatch.setattr(digests, "open_regular", lambda path: (read.append(known(path)), original(path))[1])
    monkeypatch.setattr(digests, "_known", {})
    shutil.rmtree(run / "rto")
    assert main(base(shared, run)) == 0
    stages = {known(p) for s in ("sft", "dpo", "rto") for p in (run / s).iterdir() if p.name != "manifest.json"}
    assert stages <= set(read) and len(read) == len(set(read))
