"""Stages that another run has finished are used where they would come out the same, and named where they would not."""

import json
import shutil
from pathlib import Path

import pytest

from rto_fast.config import Config, depends
from rto_fast.config.recipe import build, plain
from rto_fast.pipeline import run as pipeline
from rto_fast.report.__main__ import main as report
from rto_fast.train import main
from tests.kill_harness import arguments, end_state, setting


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("takeover")
    setting(folder)
    assert main(arguments(folder, "old")) == 0
    return folder


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The stages that are trained from now on."""
    names: list[str] = []
    original = pipeline._train
    monkeypatch.setattr(pipeline, "_train", lambda c, name, *rest: (names.append(name), original(c, name, *rest))[1])
    return names


def taking(folder: Path, output: str, *more: str) -> list[str]:
    shutil.rmtree(folder / output, ignore_errors=True)
    return arguments(folder, output, "--from", str(folder / "old"), *more)


def error_of(words: list[str], capsys) -> str:
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("rto_fast: error: ") and error.count("\n") == 1
    return error


def test_a_run_that_differs_in_rto_trains_rto_alone(folder, trained, capsys):
    """And ends with the bits of a run that has trained everything, its folder whole."""
    other = ("--rto.reward.clip", "0.2")
    assert main(arguments(folder, "whole", *other)) == 0
    del trained[:]
    capsys.readouterr()
    words = taking(folder, "new", *other)
    assert main([*words, "--preflight-only"]) == 0
    assert f"sft: could be taken over from {folder / 'old' / 'sft'}\n" in capsys.readouterr().out
    assert not (folder / "new").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert trained == ["rto"]
    for stage in ("sft", "dpo"):
        assert f"{stage}: taken over from {folder / 'old' / stage}\n" in said
    assert "rto: not taken from " in said and "rto.reward.clip was 0.1, now 0.2" in said
    assert end_state(folder / "new") == end_state(folder / "whole")
    assert (folder / "new/tb/sft").is_dir()
    # the new folder needs neither the flag nor the old one
    shutil.move(folder / "old", folder / "away")
    try:
        assert main(arguments(folder, "new", *other)) == 0 and trained == ["rto"]
        assert report([str(folder / "new")]) == 0
    finally:
        shutil.move(folder / "away", folder / "old")
    assert end_state(folder / "new") == end_state(folder / "whole")


@pytest.mark.parametrize(
    "flags, alone, reason",
    [
        ((), [], ""),
        (("--eval.temperature", "0.5", "--checkpoint.every", "7"), [], ""),
        (("--rto.reward.beta-1", "0.2"), ["rto"], "rto.reward.beta_1 was 0.1, now 0.2"),
        (("--dpo.beta", "0.3"), ["dpo", "rto"], "dpo: not taken from {old}, dpo.beta was 0.1, now 0.3"),
        (("--dpo.beta", "0.3"), ["dpo", "rto"], "rto: not taken from {old}, it builds on dpo, which is trained anew"),
        (("--sft.optim.lr", "1e-4"), ["sft", "dpo", "rto"], "dpo: not taken from {old}, it builds on sft, which"),
        (("--seed", "1"), ["sft", "dpo", "rto"], "sft: not taken from {old}, seed was 0, now 1"),
        (("--data.held-out", "6"), ["sft", "dpo", "rto"], "it learns from other data (data.held_out was 4, now 6)"),
        (("--data.path", "fewer.jsonl"), ["sft", "dpo", "rto"], "it learns from other data (data.path was"),
        (("--data.path", "moved.jsonl", "--model.path", "moved"), [], ""),
        (("--model.path", "other"), ["sft", "dpo", "rto"], "sft: not taken from {old}, model.path holds another model"),
        (("--sft.model", "old/sft"), [], ""),
        (("--sft.model", "other"), ["dpo", "rto"], "dpo: not taken from {old}, it builds on another sft"),
        (("--data.prompts", "prompts.jsonl"), ["rto"], "rto: not taken from {old}, it learns from other data"),
        (("--stages", "sft", "dpo", "sparse_dpo"), ["sparse_dpo"], "sparse_dpo: not taken from {old}, where it is not"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_what_is_the_same_is_taken(flags, alone, reason, folder, trained, capsys):
    pairs = (folder / "pairs.jsonl").read_text()
    (folder / "moved.jsonl").write_text(pairs)
    (folder / "fewer.jsonl").write_text("".join(pairs.splitlines(keepends=True)[:-3]))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"what is {w}"}) + "\n" for w in ("it", "so")))
    if not (folder / "moved").exists():
        shutil.copytree(folder / "model", folder / "moved")
        shutil.copytree(folder / "old" / "dpo", folder / "other")
    words = [str(folder / w) if w in PATHS else w for w in flags]
    assert main(taking(folder, "new", *words, "--eval.prompts", "0")) == 0
    assert trained == alone
    assert reason.format(old=folder / "old") in capsys.readouterr().out


PATHS = ("fewer.jsonl", "moved.jsonl", "prompts.jsonl", "moved", "other", "old/sft")


def test_what_nothing_can_be_taken_from_is_one_sentence(folder, tmp_path, capsys):
    new = arguments(folder, "never", "--from")
    assert "is no run of rto_fast, it holds no config.toml" in error_of([*new, str(tmp_path / "absent")], capsys)
    assert "is no run of rto_fast" in error_of([*new, str(folder / "model")], capsys)
    assert "wanted the folder of a run, got 'nothing'" in error_of(new, capsys)
    assert "wanted the folder of a run, got '--seed'" in error_of([*new, "--seed", "0"], capsys)
    assert "is this run's own folder" in error_of(arguments(folder, "old", f"--from={folder / 'old'}"), capsys)
    for name, file, content, says in (
        ("begun", "sft", None, "no stage of"),
        ("older", "inputs.json", None, "holds no inputs.json, an older version made it"),
        ("broken", "inputs.json", "{", "from: "),
        ("foreign", "config.toml", "bogus = 1", "unknown key 'bogus'"),
        ("toml", "config.toml", "{", "not valid TOML"),
    ):
        place = tmp_path / name
        shutil.copytree(folder / "old", place)
        if content is not None:
            (place / file).write_text(content)
        elif file == "sft":
            for stage in ("sft", "dpo", "rto"):
                shutil.rmtree(place / stage)
        else:
            (place / file).unlink()
        error = error_of([*new, str(place)], capsys)
        assert says in error and "from: " in error, error
    assert f"--sft.model {tmp_path / 'older' / 'sft'}" in error_of([*new, str(tmp_path / "older")], capsys)
    assert not (folder / "never").exists()


def test_a_damaged_stage_is_not_taken(folder, tmp_path, capsys):
    shutil.copytree(folder / "old", tmp_path / "old")
    data = bytearray((tmp_path / "old/dpo/model.safetensors").read_bytes())
    data[-5] ^= 1
    (tmp_path / "old/dpo/model.safetensors").write_bytes(data)
    words = arguments(folder, str(tmp_path / "new"), "--from", str(tmp_path / "old"))
    capsys.readouterr()
    assert main(words) == 2
    assert "from: dpo: " in (error := capsys.readouterr().err.splitlines()[-1]) and "is damaged" in error
    assert not (tmp_path / "new" / "dpo").exists()


def test_a_folder_of_other_settings_says_what_can_be_used(folder, tmp_path, capsys):
    old = folder / "old"
    said = error_of(arguments(folder, "old", "--dpo.beta", "0.4"), capsys)
    assert f"name another with --output and add --from {old}, which takes over its finished sft" in said
    assert f"(or give --sft.model {old / 'sft'}), or delete it" in said
    said = error_of(arguments(folder, "old", "--rto.rollouts", "16"), capsys)
    assert f"takes over its finished sft and dpo (or give --sft.model {old / 'sft'} --dpo.model {old / 'dpo'})" in said
    said = error_of(arguments(folder, "old", "--seed", "4"), capsys)
    assert "name another with --output, or delete it: its finished sft and dpo and rto would come out otherwise" in said
    shutil.copytree(old, tmp_path / "begun")
    for stage in ("sft", "dpo", "rto"):
        shutil.rmtree(tmp_path / "begun" / stage)
    said = error_of(arguments(folder, "old", "--seed", "4", "--output", str(tmp_path / "begun")), capsys)
    assert "name another with --output, or delete it: nothing in it is finished" in said


def test_help_teaches_it(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--from RUN: use the finished stages of another run's folder" in " ".join(capsys.readouterr().out.split())


def test_every_setting_is_known_to_count_or_not():
    """A new section of the configuration must be placed here, and in the table where it counts."""
    counts = {name.partition(".")[0] for name in depends.EVERY} | {"sft", "dpo", "rm", "rto"}
    not_counting = {"recipe", "output", "stages", "device", "log_every", "resume"}
    not_counting |= {"checkpoint", "eval", "sweep", "compare", "microbatch_rows", "workspace_mb", "memory", "offload"}
    assert set(Config.__dataclass_fields__) == counts | not_counting
    known = depends.flat(plain(Config()))
    assert {name for name in depends.LEFT_OUT if name.startswith(("guards", "model", "rto.score.b"))} <= set(known)


def test_a_comparison_takes_over_seed_by_seed(folder, trained, capsys):
    (folder / "two.toml").write_text((folder / "tiny.toml").read_text() + "[compare]\nseeds = [0, 1]\n")
    words = ["--recipe", str(folder / "two.toml"), "--stages", "sft", "dpo"]
    assert main(arguments(folder, "both", *words)) == 0
    del trained[:]
    words += ["--dpo.beta", "0.5", "--from", str(folder / "both")]
    assert main(arguments(folder, "again", *words)) == 0
    assert trained == ["dpo", "dpo"]
    assert f"sft: taken over from {folder / 'both' / 'seed-1' / 'sft'}" in capsys.readouterr().out


def test_settings_of_the_whole_family_are_its_own():
    """ppo does not depend on beta_1, nor on dpo; rs_ppo does."""
    rule = {"rto": {"score": {"rule": "math"}}}
    old, new = (build(Config, {"rto": {**rule["rto"], "reward": {"beta_1": b}}}, "test") for b in (0.1, 0.2))
    assert depends.differences("ppo", old, new) == []
    assert depends.differences("rs_ppo", old, new) == ["rto.reward.beta_1 was 0.1, now 0.2"]
    assert depends.builds_on("ppo", old) == ["sft"] and depends.builds_on("rs_ppo", old) == ["sft", "dpo"]
    paid = build(Config, {"stages": ["sft", "rm", "ppo"]}, "test")
    assert depends.builds_on("ppo", paid) == ["sft", "rm"] and depends.builds_on("rm", paid) == ["sft"]
