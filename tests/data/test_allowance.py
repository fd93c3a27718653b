"""What a file unpacks to is bounded by what it is on the disk, and what is sound stays within that."""

import gzip
import json

import pytest

from rto_fast import cli
from rto_fast.data import allowance, read
from rto_fast.data.read import read_rows

SAID = "more than 200 times its size"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(allowance, "FREE_BYTES", 2**16)
    monkeypatch.setattr(read, "MAX_BLANK_LINES", 1000)


@pytest.mark.parametrize(
    "name, head, piece, tail",
    [
        ("a.json.gz", b"[", b"{},", b"{}]"),
        ("a.json.gz", b"", b"{}\n", b""),
        ("a.jsonl.gz", b"", b"{}\n", b""),
        ("a.jsonl.gz", b"", b'{"a": 1}\n', b""),
        ("a.json.gz", b"[1", b" ", b"]"),
        ("a.jsonl.gz", b"", b'{"a": [' + b"[]," * 99 + b"[]]}\n", b""),
    ],
)
def test_a_file_packed_to_nothing_is_not_unpacked_whole(name, head, piece, tail, tmp_path):
    (tmp_path / name).write_bytes(gzip.compress(head + piece * (2_000_000 // len(piece)) + tail))
    with pytest.raises(ValueError, match=f"{name}: .*{SAID}.*not packed"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_blank_lines_have_an_end(name, tmp_path):
    data = b'{"a": 1}\n' + b" \r\n" * 1001 + b'{"a": 2}\n'
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}, line 1002: more than 1,000 blank lines"):
        read_rows(tmp_path / name)


def test_a_packed_line_without_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MAX_LINE_BYTES", 1000)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b"{}" * 1000))
    with pytest.raises(ValueError, match="line 1: longer than"):
        read_rows(tmp_path / "a.json.gz")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_plain_file_has_no_bound(name, tmp_path):
    rows = [{"a": [{}, {}]}] * 20_000
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_text(lines if name == "a.jsonl" else json.dumps(rows))
    assert len(read_rows(tmp_path / name)) == len(rows)


def test_rows_that_share_a_long_beginning_are_sound(tmp_path):
    """A system prompt of 4,000 characters in each of 2,000 rows packs to a 90th."""
    words = " ".join(f"rule {i * i % 7919}" for i in range(400))
    rows = [{"prompt": words, "completion": f"{i * i * i} and {i * 7919 % 104729}"} for i in range(2000)]
    data = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    assert len(data) * 40 < len(words) * len(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    assert read_rows(tmp_path / "a.jsonl.gz") == rows


def test_memory_that_runs_out_is_one_line(capsys):
    def work(args):
        raise MemoryError

    assert cli.run(work, [], "") == 2
    assert capsys.readouterr().err.startswith("rto_fast: error: memory ran out; ")


class TestParquet:
    def write(self, path, **columns):
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table(columns), path, compression="gzip")
        return path

    def test_one_value_in_every_row(self, tmp_path):
        """Stored once, so that no size in the file's own description gives it away."""
        pyarrow = pytest.importorskip("pyarrow")
        text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), ["a" * 4000])
        with pytest.raises(ValueError, match=f"a.parquet: .*{SAID}"):
            read_rows(self.write(tmp_path / "a.parquet", text=text))

    def test_one_long_value(self, tmp_path):
        with pytest.raises(ValueError, match=f"a.parquet: .*{SAID}"):
            read_rows(self.write(tmp_path / "a.parquet", text=["a" * 4_000_000]))

    def test_rows_of_nothing(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        with pytest.raises(ValueError, match=f"a.parquet: .*{SAID}"):
            read_rows(self.write(tmp_path / "a.parquet", text=pyarrow.nulls(100_000, pyarrow.string())))

    def test_lists_of_nothing(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        nulls = pyarrow.ListArray.from_arrays([0, 1_000_000], pyarrow.nulls(1_000_000, pyarrow.int8()))
        with pytest.raises(ValueError, match=f"a.parquet: .*{SAID}"):
            read_rows(self.write(tmp_path / "a.parquet", text=nulls))

    def test_long_values_are_decoded_a_few_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(read, "BATCH_BYTES", 1000)
        rows = [{"text": f"{i} " * 100} for i in range(50)]
        path = self.write(tmp_path / "a.parquet", text=[row["text"] for row in rows])
        assert read_rows(path) == rows
