"""Run folders of strangers: a report of one is written, or it is an error of one line; nothing in it is executed."""

import json
import shutil
from pathlib import Path

import pytest

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
    return make_shared(tmp_path_factory.mktemp("folders")) / "run"


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
