"""Rows come out of every form of file alike, and a broken one is named with its line."""

import gzip
import io
import json
import sys
import time
import types

import pytest

from rto_fast.data import read
from rto_fast.data.read import read_rows

ROWS = [{"prompt": f"q{i}", "chosen": "a é\u2028", "rejected": "b"} for i in range(5)]


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode()


def write(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "lines.json"])
def test_text_files(tmp_path, name):
    data = json.dumps(ROWS).encode() if name.startswith("a.json") and "jsonl" not in name else lines()
    path = write(tmp_path / name, data)
    assert read_rows(path) == ROWS
    assert read_rows(path, limit=2) == ROWS[:2]
    assert read_rows(path, split="train") == ROWS


def test_blank_lines_and_byte_order_mark(tmp_path):
    assert read_rows(write(tmp_path / "a.jsonl", b"\xef\xbb\xbf\r\n" + lines().replace(b"\n", b"\r\n\r\n"))) == ROWS
    assert read_rows(write(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + lines())) == ROWS


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == ROWS
    with pytest.raises(ValueError, match="b.parquet: not a readable parquet file"):
        read_rows(write(tmp_path / "b.parquet", b"no"))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read_rows(write(tmp_path / "a.parquet", b""))


def test_directories(tmp_path):
    write(tmp_path / "train.jsonl.gz", lines())
    write(tmp_path / "test.jsonl", lines(ROWS[:1]))
    write(tmp_path / "other.jsonl", lines(ROWS[:3]))
    write(tmp_path / "README.md", b"text")
    write(tmp_path / "sub/data/train-00001-of-00002.jsonl", lines(ROWS[3:]))
    write(tmp_path / "sub/data/train-00000-of-00002.jsonl", lines(ROWS[:3]))
    write(tmp_path / "plain/x.jsonl", lines(ROWS[:3]))
    write(tmp_path / "plain/y.json", json.dumps(ROWS[3:]).encode())
    assert read_rows(tmp_path) == ROWS
    assert read_rows(tmp_path, split="test") == ROWS[:1]
    assert read_rows(tmp_path, subset="sub") == ROWS
    assert read_rows(tmp_path / "plain") == ROWS
    with pytest.raises(ValueError, match="data.split.*no file for split 'valid'.*test.jsonl"):
        read_rows(tmp_path, split="valid")
    with pytest.raises(ValueError, match="data.subset.*no folder 'sup'; its folders: plain, sub"):
        read_rows(tmp_path, subset="sup")
    write(tmp_path / "train.jsonl", lines())
    with pytest.raises(ValueError, match="copies"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', "line 2: not valid JSON"),
        (b'{"a": NaN}', "line 2: NaN is not JSON"),
        (b'{"a": -Infinity}', "line 2: -Infinity"),
        (b'{"a": 1, "a": 2}', "line 2: key 'a' appears twice"),
        (b"[1]", "line 2: wanted an object with named columns, got list"),
        (b'{"a": "\xff"}', "line 2: not UTF-8"),
        (b"[" * 100_000, "line 2: JSON nested too deeply"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", lines(ROWS[:1]) + line + b"\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl, {message}") as error:
        read_rows(path)
    assert "\n" not in str(error.value)


def test_other_bad_files(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_rows(write(tmp_path / "cut", gzip.compress(lines())[:-9]).rename(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(ValueError, match="not a whole gzip file"):
        read_rows(write(tmp_path / "t", lines()).rename(tmp_path / "text.jsonl.gz"))
    with pytest.raises(ValueError, match="wanted a list of objects"):
        read_rows(write(tmp_path / "s.json", b'"text"'))
    with pytest.raises(ValueError, match="holds no rows"):
        read_rows(write(tmp_path / "empty.jsonl", b"\n"))
    with pytest.raises(ValueError, match="cannot read .*a.txt"):
        read_rows(write(tmp_path / "a.txt", b"a,b"))
    with pytest.raises(ValueError, match="no file or directory"):
        read_rows(tmp_path / "absent")
    with pytest.raises(ValueError, match="single file and has no subset"):
        read_rows(write(tmp_path / "a.jsonl", lines()), subset="s")
    with pytest.raises(ValueError, match="single file and has no split"):
        read_rows(tmp_path / "a.jsonl", split="test")
    with pytest.raises(ValueError, match="limit"):
        read_rows(tmp_path / "a.jsonl", limit=0)
    monkeypatch.setattr("rto_fast.data.read.MAX_LINE_BYTES", 10)
    with pytest.raises(ValueError, match="a.jsonl, line 1: longer than"):
        read_rows(tmp_path / "a.jsonl")


def fake_hub(monkeypatch, configs, asked):
    def load_dataset(path, **options):
        if path == "no/such":
            raise FileNotFoundError("Dataset 'no/such' doesn't exist\nmore")
        asked.append((path, options))
        return ROWS

    module = types.SimpleNamespace(load_dataset=load_dataset, get_dataset_config_names=lambda path: configs)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub(monkeypatch):
    asked = []
    fake_hub(monkeypatch, ["default", "main"], asked)
    assert read_rows("Anthropic/hh-rlhf", subset="helpful-base") == ROWS
    assert read_rows("openai/gsm8k", subset="main", split="test", limit=3) == ROWS[:3]
    assert asked == [
        ("Anthropic/hh-rlhf", {"split": "train", "data_dir": "helpful-base"}),
        ("openai/gsm8k", {"split": "test[:3]", "name": "main"}),
    ]
    with pytest.raises(ValueError, match="data.path: cannot load 'no/such', split 'train' from the hub") as error:
        read_rows("no/such")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        read_rows("Anthropic/hh-rlhf")


def test_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert read_rows(tmp_path / "one") == ROWS
    assert read_rows(tmp_path / "two", split="test") == ROWS[:1]
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        read_rows(tmp_path / "two", split="dev")


def test_keys_are_compared_in_linear_time(tmp_path):
    """A search among all for each of 200,000 keys would take minutes."""
    row = "{" + ",".join(f'"k{i}": 1' for i in range(200_000)) + ', "k199999": 2}'
    (tmp_path / "rows.jsonl").write_text(row)
    started = time.process_time()
    with pytest.raises(ValueError, match="line 1: key 'k199999' appears twice"):
        read_rows(tmp_path / "rows.jsonl")
    assert time.process_time() - started < 5


def test_hidden_files_are_no_data(tmp_path):
    write(tmp_path / "train.jsonl", lines())
    write(tmp_path / "._train.jsonl", b"\x00\x05\x16\x07")
    assert read_rows(tmp_path) == ROWS


def test_a_list_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_JSON_BYTES", 100)
    (tmp_path / "rows.json").write_text("[" + " " * 100)
    unread = io.BufferedReader(io.BytesIO())
    unread.close()
    with pytest.raises(ValueError, match="rows.json: larger than 0 GiB; write it as .jsonl, one row per line"):
        list(read._json(unread, tmp_path / "rows.json"))
