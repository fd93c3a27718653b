"""Rows out of .csv and .tsv: the first line names the columns, and every value is text."""

import csv
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from rto_fast.data.allowance import VALUE_BYTES, Allowance

MAX_COLUMNS = 1000
MAX_BLANK_LINES = 1_000_000
"""One after the other."""
DELIMITERS = {".csv": (",", "commas"), ".tsv": ("\t", "tabs")}


def read_separated(file: BufferedIOBase, path: Path, kind: str, max_bytes: int) -> Iterator[dict[str, str]]:
    """The rows of a file of `kind` ".csv" or ".tsv", in UTF-8 with or without a byte order mark.

    A text with a delimiter, a line break or a quotation mark in it stands between quotation marks, its own doubled
    (RFC 4180, what spreadsheets and pandas write). A first column without a name, pandas' index, is left out.

    Raises ValueError, with the line, for a row with more or fewer texts than there are columns, quotation marks that
    do not close, a row above `max_bytes`, a column without a name or with another's.
    """
    delimiter, delimiters = DELIMITERS[kind]
    # process-wide, and a text of an answer may be longer than the 128 KiB that it is at first
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))
    allowance = Allowance(path)
    header: list[str] = []
    first, taken = 1, 0  # the line that a row begins with, and its bytes so far

    def lines() -> Iterator[str]:
        nonlocal taken
        blank = 0
        for number, line in enumerate(iter(lambda: file.readline(max_bytes + 1), b""), 1):
            taken += len(line)
            where = f"{path}, line {number}"
            if taken > max_bytes:
                limit = f"{max_bytes // 2**20} MiB"
                raise ValueError(f"{where}: a row longer than {limit}; is a quotation mark before it left open?")
            blank = 0 if line.strip() else blank + 1
            if blank > MAX_BLANK_LINES:
                raise ValueError(f"{where}: more than {MAX_BLANK_LINES:,} blank lines; remove them")
            allowance.take(len(line))
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for texts in reader:
            if texts and not header:
                header = _named([text.strip() for text in texts], f"{path}, line {first}")
            elif texts and len(texts) != len(header):
                raise ValueError(
                    f"{path}, line {first}: {len(texts)} texts where the first line names {len(header)} columns; a "
                    f"text with {delimiters} or line breaks in it must stand between quotation marks"
                )
            elif texts:
                allowance.take(VALUE_BYTES * len(texts))
                yield {name: text for name, text in zip(header, texts, strict=True) if name}
            first, taken = reader.line_num + 1, 0
    except csv.Error as error:
        raise ValueError(f"{path}, the row from line {first}: not valid {kind[1:].upper()} ({error})") from None


def _named(header: list[str], where: str) -> list[str]:
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{where}: more than {MAX_COLUMNS} columns; the first line names them")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where}: two columns are called {name!r}; the first line gives each column its own name")
    if "" in header[1:]:
        raise ValueError(f"{where}: column {header.index('', 1) + 1} has no name; the first line names every column")
    return header
