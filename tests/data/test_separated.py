"""What csv writers write is read back; what is no table is one sentence; a hostile file is bounded."""

import csv
import gzip
import io
from random import Random

import pytest

from rto_fast.data import separated
from rto_fast.data.read import read_rows
from rto_fast.data.rows import to_pairs

COLUMNS = ["prompt", "chosen", "rejected"]
PIECES = ["a", ",", '"', "\n", "\t", "\r\n", "é", "", " ", "'", ";", "\\", "\u2028", "\ufeff"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.tsv.gz"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_rows_come_back_as_they_were_written(tmp_path, name, start):
    random = Random(0)
    wanted = [
        {column: f"x{''.join(random.choices(PIECES, k=random.randrange(9)))}" for column in COLUMNS} for _ in range(300)
    ]
    wanted[7]["chosen"] += "b" * 200_000  # beyond the csv module's own limit
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t" if "tsv" in name else ",")
    writer.writeheader()
    writer.writerows(wanted)
    data = (start + text.getvalue()).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read_rows(tmp_path / name) == wanted
    assert read_rows(tmp_path / name, limit=2) == wanted[:2]


def test_pairs_of_a_table_with_an_index(tmp_path):
    (tmp_path / "train.csv").write_text(',question, chosen ,rejected\n0,Why?,"Be, cause",No\n\n1,How?,So,Not\n')
    rows = read_rows(tmp_path)
    assert rows[0] == {"question": "Why?", "chosen": "Be, cause", "rejected": "No"}
    assert [p.chosen for p in to_pairs(rows).items] == ["Be, cause", "So"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 texts where the first line names 2 columns; a text with commas"),
        ('a,b\n1,"2\n3\n4\n', "the row from line 2: not valid CSV"),
        ('a,b\n1,"2\n3"\n1\n', "line 4: 1 texts where"),
        ("a,a\n1,2\n", "line 1: two columns are called 'a'"),
        ("a,,b\n1,2,3\n", "line 1: column 2 has no name"),
        (",".join(map(str, range(1001))) + "\n", "line 1: more than 1000 columns"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path, text, words):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as said:
        read_rows(tmp_path / "rows.csv")
    assert str(said.value).startswith(str(tmp_path / "rows.csv")) and "\n" not in str(said.value)


def test_rows_and_blank_lines_are_bounded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="line 3: a row longer than 0 MiB; is a quotation mark before it left open"):
        list(
            separated.read_separated(io.BytesIO(b'a\n"' + b"b\n" * 99), __import__("pathlib").Path(__file__), ".csv", 4)
        )
    monkeypatch.setattr(separated, "MAX_BLANK_LINES", 9)
    (tmp_path / "rows.csv").write_text("a\n" + "\n" * 10 + "b\n")
    with pytest.raises(ValueError, match="line 11: more than 9 blank lines"):
        read_rows(tmp_path / "rows.csv")


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 10_000_000, 6))
    with pytest.raises(ValueError, match="unpacked it is more than 200 times its size"):
        read_rows(tmp_path / "rows.csv.gz")
