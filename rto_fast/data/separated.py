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
    lines = _Lines(file, path, max_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        first = lines.number + 1
        lines.taken = 0
        try:
            texts = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, the row from line {first}: not valid {kind[1:].upper()} ({error})") from None
        if texts is None:
            return
        if not texts:
            continue
        if not header:
            header = _named([text.strip() for text in texts], f"{path}, line {first}")
        elif len(texts) != len(header):
            raise ValueError(
                f"{path}, line {first}: {len(texts)} texts where the first line names {len(header)} columns; a text "
                f"with {delimiters} or line breaks in it must stand between quotation marks"
            )
        else:
            lines.allowance.take(VALUE_BYTES * len(texts))
            yield {name: text for name, text in zip(header, texts, strict=True) if name}


class _Lines:
    """The lines of a file as text, counted."""

    def __init__(self, file: BufferedIOBase, path: Path, max_bytes: int):
        self.file, self.path, self.max_bytes = file, path, max_bytes
        self.allowance = Allowance(path)
        self.number = self.taken = self.blank = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(self.max_bytes + 1):
            self.number += 1
            self.taken += len(line)
            where = f"{self.path}, line {self.number}"
            if self.taken > self.max_bytes:
                limit = f"{self.max_bytes // 2**20} MiB"
                raise ValueError(f"{where}: a row longer than {limit}; is a quotation mark before it left open?")
            self.blank = 0 if line.strip() else self.blank + 1
            if self.blank > MAX_BLANK_LINES:
                raise ValueError(f"{where}: more than {MAX_BLANK_LINES:,} blank lines; remove them")
            self.allowance.take(len(line))
            try:
                yield line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _named(header: list[str], where: str) -> list[str]:
    if len(header) > MAX_COLUMNS:
        raise ValueError(f"{where}: more than {MAX_COLUMNS} columns; the first line names them")
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{where}: two columns are called {name!r}; the first line gives each column its own name")
    if "" in header[1:]:
        raise ValueError(f"{where}: column {header.index('', 1) + 1} has no name; the first line names every column")
    return header
