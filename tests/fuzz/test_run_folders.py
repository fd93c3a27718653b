"""Run folders of strangers: a report of one is written, or it is an error of one line; nothing in it is executed."""

import json
import os
import shutil
from pathlib import Path

import pytest

from rto_fast.credit.__main__ import main as credit
from rto_fast.evaluate.__main__ import main as evaluate
from rto_fast.report.__main__ import main as report
from tests.fuzz.place import contents, make_shared

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\x1b[2J\ud800"
STRANGE = [None, True, -1, 10**400, 1e308, float("nan"), float("inf"), "", SCRIPT, [], {}, [[]], {"mean": "x"}, [None]]
FILES = ("results.json", "metrics.jsonl", "answers.jsonl", "heatmaps.json", "config.toml")
RAW = [
    b"",
    b"\x00" * 99,
    b"\xff\xfe",
    b"[" * 100_000,
    b"9" * 10_000,
    b"null\n",
    b'{"a": ',
    b"[1, 2]\n",
    b'"x"\n',
    b"{}\n",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = make_shared(tmp_path_factory.mktemp("folders")) / "run"
    for manifest in run.rglob("manifest.json"):  # what a stranger writes has digests that fit, or none
        manifest.unlink()
    return run


def judged(folder: Path, capfd) -> None:
    before = contents(folder)
    capfd.readouterr()
    code = report([str(folder), "--output", str(folder.parent / "page.html")])
    error = capfd.readouterr().err
    assert code in (0, 2) and "Traceback" not in error and "\x1b" not in error
    assert contents(folder) == before
    if code == 2:
        assert error.startswith("rto_fast: error: ") and len(error.splitlines()) == 1
        return
    page = (folder.parent / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page and "\x1b" not in page


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: repr(raw[:9]))
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_refuse(name, raw, finished, tmp_path, capfd):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(raw)
    judged(tmp_path / "run", capfd)


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, x in inside:
        yield from places(x, (*path, key))


def replaced(value, path, strange):
    if not path:
        return strange
    if isinstance(value, dict):
        return {k: replaced(x, path[1:], strange) if k == path[0] else x for k, x in value.items()}
    return [replaced(x, path[1:], strange) if i == path[0] else x for i, x in enumerate(value)]


@pytest.mark.parametrize("name", ["results.json", "answers.jsonl", "metrics.jsonl", "heatmaps.json"])
def test_a_value_of_another_kind_anywhere(name, finished, tmp_path, capfd):
    """Each place in turn gets a strange value; the strange values take turns."""
    file = finished / name
    if not file.exists():
        pytest.skip(f"a run of this size writes no {name}")
    shutil.copytree(finished, tmp_path / "run")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if name.endswith("l") else None
    content = lines[-1] if lines else json.loads(file.read_text())
    for i, path in enumerate(places(content)):
        wrong = json.dumps(replaced(content, path, STRANGE[i % len(STRANGE)]))
        text = "".join(json.dumps(line) + "\n" for line in lines[:-1]) + wrong + "\n" if lines else wrong
        (tmp_path / "run" / name).write_text(text)
        judged(tmp_path / "run", capfd)


def write(name: str, content: str | bytes):
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


REMOTE = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
DAMAGES = {
    "settings empty": write("config.toml", ""),
    "settings no TOML": write("config.toml", "{"),
    "settings nested": write("config.toml", "a=" + "[" * 100_000),
    "settings of other types": write("config.toml", "rto = 5"),
    "settings unknown": write("config.toml", "bogus = 1"),
    "settings removed": lambda run: (run / "config.toml").unlink(),
    "reference removed": lambda run: shutil.rmtree(run / "sft"),
    "reference cut": lambda run: os.truncate(run / "sft/model.safetensors", 1000),
    "configuration a list": write("sft/config.json", "[]"),
    "configuration nested": write("sft/config.json", "[" * 100_000),
    "architectures of numbers": write("sft/config.json", '{"architectures": [5], "model_type": 5}'),
    "code of its own": write("sft/config.json", json.dumps({**REMOTE, "architectures": ["EvilForCausalLM"]})),
    "tokenizer of nothing": write("sft/tokenizer.json", "{}"),
    "a pickle": write("sft/model.safetensors", b"\x80\x04\x95"),
    "end token of a list of lists": write("sft/generation_config.json", '{"eos_token_id": [[2]]}'),
}


@pytest.mark.parametrize("command", [evaluate, credit], ids=["evaluate", "credit"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_is_not_measured(name, command, finished, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(finished, tmp_path / "run")
    DAMAGES[name](tmp_path / "run")
    before = {name: held for name, held in contents(tmp_path).items() if held}
    capfd.readouterr()
    assert command(["--run", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("rto_fast: error: ") and len(error.splitlines()) == 1, error
    # a folder for results may be there by now, but nothing in it
    assert {name: held for name, held in contents(tmp_path).items() if held} == before
