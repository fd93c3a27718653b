"""`python -m rto_fast.data`: what it prints, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from rto_fast.data.__main__ import main
from rto_fast.data.show import TokenPrinter
from tests.data.shared import DATA, needs_data
from tests.data.tokenizers import byte_level

PAIRS = [
    {"prompt": "the cat?", "chosen": "a</s> mat", "rejected": "the\x1b[31m é|"},
    {"prompt": "x" * 80, "chosen": "the", "rejected": "a"},
    {"prompt": "q", "chosen": "the", "rejected": "a" * 90},
    {"prompt": "q", "chosen": "the", "rejected": ""},
]


@pytest.fixture
def files(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in PAIRS))
    byte_level(adds="bos eos").save_pretrained(tmp_path / "model")
    return ["--path", str(tmp_path / "pairs.jsonl"), "--model.path", str(tmp_path / "model")]


def run(capsys, *args):
    code = main([str(word) for word in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_rows_are_shown_token_by_token(files, capsys):
    code, out, err = run(capsys, *files, "--max-length", "80", "--max-prompt", "60")
    assert code == 0 and err == ""
    assert "4 rows, read as pairs" in out and "prompt (string) + strings chosen, rejected" in out
    assert "0 |[BOS <s>]|\\n|\\n|H|u|m|a|n|:|▁the|▁|c|a|t|?|\\n|\\n|A|s|s|i|s|t|a|n|t|:|" in out
    assert "1 |▁|a|<|/|s|>|▁|m|a|t|[EOS </s>]|" in out
    # what the data holds must not reach the terminal as a command
    assert "\x1b" not in out and "1 |▁the|\\x1b|[|3|1|m|▁|\\xc3|\\xa9|\\||[EOS </s>]|" in out
    assert "prompt: 60 tokens of weight 0, cut at the left from" in out
    assert "kept 2 of 4 rows" in out
    assert "dropped 1: response does not fit" in out and "dropped 1: empty response" in out
    assert "prompts cut at the left: 1" in out
    assert "spell out a special token, encoded as plain text: 1" in out
    table = [line.split() for line in out.splitlines()]
    assert ["chosen", "2", "2", "2", "11", "11", "11", "13"] in table


def test_options(files, capsys):
    code, out, _ = run(capsys, *files, "--rows", "1", "--ids", "--kind", "prompts", "--max-length", "300")
    assert code == 0 and "read as prompts" in out and "chosen" not in out.split("row 1")[1]
    assert "[BOS <s>] 261|" in out and "row 2" not in out
    code, out, _ = run(capsys, *files, "--kind", "demonstrations", "--template", "none", "--limit", "1")
    assert code == 0 and "response: " in out and "template  none" in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--max-length", "0"], "rto_fast: error: data.max_length: must be at least 2"),
        (["--max-length", "9", "--max-prompt", "9"], "rto_fast: error: data.max_prompt: must be at least 1 and below"),
        (
            ["--columns", "prompt=question"],
            "rto_fast: error: data.columns: prompt=question, but row 1 has no column 'question'; found 'prompt', ",
        ),
        (["--template", "chat"], "rto_fast: error: data.template: 'chat' needs a tokenizer with a chat template"),
        (["--split", "test"], "rto_fast: error: data.split: "),
        (["--rows", "-1"], "rto_fast: error: rows: must be 0 or more"),
    ],
)
def test_mistakes_are_one_line(files, capsys, extra, message):
    code, out, err = run(capsys, *files, *extra)
    assert code == 2 and out == "" and err.startswith(message) and err.count("\n") == 1


def test_bad_paths(files, tmp_path, capsys):
    code, _, err = run(capsys, "--path", "./nowhere.jsonl", *files[2:])
    assert code == 2 and err == "rto_fast: error: data.path: there is no file or directory './nowhere.jsonl'\n"
    code, _, err = run(capsys, *files[:3], tmp_path / "none")
    assert code == 2 and err.startswith("rto_fast: error: model.path: there is no folder")
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, *files[:3], tmp_path / "empty")
    assert code == 2 and "holds no tokenizer" in err
    (tmp_path / "empty/tokenizer.json").write_text("{}")
    code, _, err = run(capsys, *files[:3], tmp_path / "empty")
    assert code == 2 and "no tokenizer can be loaded" in err and err.count("\n") == 1


def test_a_tokenizer_file_alone(files, tmp_path, capsys):
    (tmp_path / "alone").mkdir()
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "alone/tokenizer.json"))
    code, _, err = run(capsys, *files[:3], tmp_path / "alone")
    assert code == 2 and "no EOS token" in err
    byte_level().backend_tokenizer.save(str(tmp_path / "alone/tokenizer.json"))
    code, out, _ = run(capsys, *files[:3], tmp_path / "alone")
    assert code == 0 and "BOS <s> (261), EOS </s> (262), context unknown" in out


def test_long_rows_are_shown_by_their_ends_and_in_colour_where_asked():
    tokenizer = byte_level()
    ids = [tokenizer.bos_token_id, *[5] * 300]
    short = TokenPrinter(tokenizer, tokenizer.eos_token_id, colour=True, ids=False, whole=False)
    lines = short.lines(ids, 0, first=True)
    assert any("... 141 more ..." in line for line in lines) and lines[0].startswith("\x1b[2m    0 |\x1b[1m[BOS <s>]|")
    whole = TokenPrinter(tokenizer, tokenizer.eos_token_id, colour=False, ids=False, whole=True)
    assert "".join(whole.lines(ids, 0, first=True)).count("|") > 300


@needs_data
@pytest.mark.rest
def test_as_a_user_calls_it():
    command = [sys.executable, "-m", "rto_fast.data", "--path", str(DATA / "hh-helpful"), "--limit", "20"]
    command += ["--model.path", str(DATA / "models/stories260K")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0 and done.stderr == "" and "[EOS </s>]" in done.stdout
