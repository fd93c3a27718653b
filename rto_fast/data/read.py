"""Rows out of files: .jsonl, .json, .csv, .tsv (plain or .gz), .parquet, a directory, or a data set of the hub.

Local files need neither the network nor the `datasets` package; that is imported only for a hub id and for a directory
written by its `save_to_disk`.
"""

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from rto_fast.data.allowance import BATCH_BYTES, VALUE_BYTES, Allowance, Overgrown
from rto_fast.data.digest import RowDigests
from rto_fast.data.separated import DELIMITERS, MAX_BLANK_LINES, read_separated
from rto_fast.files.foreign import check_files, no_duplicates, opening, read_object
from rto_fast.files.regular import irregular, open_regular
from rto_fast.files.text import one_line

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
MAX_LINE_BYTES = 64 * 2**20
MAX_JSON_BYTES = 4 * 2**30

_SPLIT_WORDS = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout", "held_out")
_DATASETS_OWN_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def read_rows(
    path: str | Path,
    *,
    subset: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    field: str = "data.path",
    digests: RowDigests | None = None,
) -> list[dict[str, Any]]:
    """All rows (or the first `limit`) of a data set, as dicts, in their order.

    path    a file, a directory, or a hub id such as "Anthropic/hh-rlhf"; what exists on disk is never looked up online
    subset  a directory: the folder inside it; the hub: the configuration of that name, else `data_dir`
    split   a directory: the files named after it ("train.jsonl.gz", "test-00000-of-00002.parquet"); default "train",
            or every file when none is named after a split. A file is one split already.
    field   what the path is called in errors
    digests  is given the digest of every file's rows

    Raises ValueError, one line, naming the file (and the line in it) for what is missing or malformed: broken JSON, a
    row that is not an object, a key given twice, NaN, Infinity or a number beyond floats, text that is not UTF-8, a
    line above 64 MiB.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"data: limit must be at least 1, got {limit}")
    if not str(path):
        raise ValueError(f"{field}: no path given; name a file, a directory or a hub id")
    local = Path(path).expanduser()
    if os.path.isdir(local):
        parts = _directory(local, subset, split, field)
    elif os.path.exists(local):
        parts = [(local.name, _one_file(local, subset, split, field))]
    elif _looks_local(str(path)):
        raise ValueError(f"{field}: there is no file or directory {str(path)!r}")
    else:
        parts = [(str(path), _hub(str(path), subset, split, limit, field))]
    watched = (rows if digests is None else digests.over(name, rows) for name, rows in parts)
    rows = list(islice(chain.from_iterable(watched), limit))
    if not rows:
        raise ValueError(f"{field}: {str(path)!r} holds no rows; give a file with some")
    return rows


def _looks_local(path: str) -> bool:
    # no hub id holds a character that does not print
    local = path.startswith(("/", "./", "../", "~")) or not path.isprintable()
    return local or path.count("/") > 1 or path.endswith((*SUFFIXES, ".gz"))


def _one_file(path: Path, subset: str | None, split: str | None, field: str) -> Iterator[dict[str, Any]]:
    if subset is not None:
        raise ValueError(
            f"data.subset: {str(path)!r} is a single file and has no subset {subset!r}; leave subset out "
            "(--data.subset None)"
        )
    if split not in (None, "train") and not _named_after(path, split):
        raise ValueError(f"data.split: {str(path)!r} is a single file and has no split {split!r}; leave split out")
    return _read_file(path, field)


def _directory(
    path: Path, subset: str | None, split: str | None, field: str
) -> Iterable[tuple[str, Iterator[dict[str, Any]]]]:
    """The rows of each file, by the file's name."""
    if subset is not None:
        if not (path / subset).is_dir():
            folders = ", ".join(sorted(p.name for p in path.iterdir() if p.is_dir())) or "none"
            raise ValueError(f"data.subset: {str(path)!r} has no folder {subset!r}; its folders: {folders}")
        path = path / subset
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return [(path.name, _saved_to_disk(path, split, field))]
    return ((str(file.relative_to(path)), _read_file(file, field)) for file in _files_of_split(path, split, field))


def _files_of_split(path: Path, split: str | None, field: str) -> list[Path]:
    folders = [d for d in (path, path / "data", path / (split or "train")) if d.is_dir()]
    # a hidden file is another program's, such as the ._ of macOS beside each file; a pipe or a device has no end
    files = [f for d in folders for f in sorted(d.iterdir()) if f.name.endswith(SUFFIXES) and f.name[0] != "."]
    files = [f for f in files if f.name not in _DATASETS_OWN_FILES and os.path.isfile(f)]
    if not files:
        raise ValueError(f"{field}: directory {str(path)!r} holds no {', '.join(SUFFIXES)} file")
    wanted = [f for f in files if _named_after(f, split or "train") or f.parent.name == (split or "train")]
    if not wanted and split in (None, "train") and not any(_named_after(f, w) for f in files for w in _SPLIT_WORDS):
        wanted = files
    if not wanted:
        names = ", ".join(f.name for f in files[:12])
        raise ValueError(f"data.split: {str(path)!r} has no file for split {split or 'train'!r}; it holds {names}")
    stems = [f.parent / f.name.split(".")[0] for f in wanted]
    # the same data in two forms would be trained on twice
    if copied := next((stem for stem in stems if stems.count(stem) > 1), None):
        twins = ", ".join(f.name for stem, f in zip(stems, wanted, strict=True) if stem == copied)
        raise ValueError(f"{field}: {twins} in {str(copied.parent)!r} look like copies; give the path of one of them")
    return wanted


def _named_after(file: Path, split: str) -> bool:
    return re.search(rf"(^|[-_.]){re.escape(split)}([-_.]|$)", file.name) is not None


def _read_file(path: Path, field: str) -> Iterator[dict[str, Any]]:
    if not path.name.endswith(SUFFIXES) or not path.is_file():
        found = f" ({what})" if (what := irregular(path)) else ""
        raise ValueError(f"{field}: cannot read {str(path)!r}{found}; wanted a file ending in {', '.join(SUFFIXES)}")
    return _parquet(path) if path.name.endswith(".parquet") else _text(path)


def _text(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of all but .parquet. A broken .gz or an unreadable file becomes a ValueError that names it."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed as file:
            if kind in DELIMITERS:
                yield from read_separated(file, path, kind, MAX_LINE_BYTES)
                return
            # many files named .json hold one object per line
            lines = ".jsonl" in path.suffixes or file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{"
            file.seek(0)
            yield from _json_lines(file, path) if lines else _json(file, path)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None


def _json_lines(file: BufferedIOBase, path: Path) -> Iterator[dict[str, Any]]:
    blank, allowance = 0, Allowance(path)
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        where = f"{path}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{where}: longer than {MAX_LINE_BYTES // 2**20} MiB; one row per line")
        blank = 0 if line.strip(b"\xef\xbb\xbf \t\r\n") else blank + 1
        if blank > MAX_BLANK_LINES:
            raise ValueError(f"{where}: more than {MAX_BLANK_LINES:,} blank lines; remove them")
        allowance.take_json(line)
        if not blank:
            yield _object(_parse(line, where), where)


def _json(file: BufferedIOBase, path: Path) -> Iterator[dict[str, Any]]:
    allowance = Allowance(path)
    large = path.stat().st_size > MAX_JSON_BYTES  # packed or not
    text = b"" if large else file.read(min(MAX_JSON_BYTES, allowance.left) + 1)
    if large or len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: larger than {MAX_JSON_BYTES // 2**30} GiB; write it as .jsonl, one row per line")
    allowance.take_json(text)
    rows = _parse(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: wanted a list of objects or one object per line, got {type(rows).__name__}")
    for i, row in enumerate(rows, 1):
        yield _object(row, f"{path}, item {i}")


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(
            text.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=no_duplicates
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; write null or leave the field out")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is beyond every float")
    return value


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: wanted an object with named columns, got {type(row).__name__}")
    return row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path}: reading .parquet needs pyarrow: pip install pyarrow") from None
    try:
        with open_regular(path) as opened, parquet.ParquetFile(opened) as file:
            allowance = Allowance(path)
            for batch in file.iter_batches(batch_size=_rows_at_once(path, file.metadata)):
                for row in batch.to_pylist():
                    allowance.take_value(row)
                    yield row
    except Overgrown:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({_first_line(error)})") from None


def _rows_at_once(path: Path, metadata: Any) -> int:
    """How many rows are decoded together, each of which may hold its column's longest value; Overgrown for a file that
    says itself that it unpacks to too much."""
    allowance, largest = Allowance(path), 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = [group.column(i) for i in range(group.num_columns)]
        sizes = [column.total_uncompressed_size for column in columns]
        # a list of a million nulls is stored in a few bytes
        values = max([column.num_values for column in columns], default=0)
        allowance.take(max(sum(sizes), VALUE_BYTES * values), group.num_rows)
        largest = max(largest, *sizes)
    return max(1, min(1024, BATCH_BYTES // largest))


def _datasets(path: str, field: str) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{field}: {path!r} is no local file; to load it from the hub: pip install datasets") from None
    return datasets


def _saved_to_disk(path: Path, split: str | None, field: str) -> Iterator[dict[str, Any]]:
    datasets = _datasets(str(path), field)
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = read_object(path / "dataset_dict.json", field).get("splits")
        known = [s for s in splits if isinstance(s, str)] if isinstance(splits, list) else []
        if (split or "train") not in known:
            raise ValueError(
                f"data.split: {str(path / 'dataset_dict.json')!r} has no split {split or 'train'!r}; "
                f"it has {one_line(', '.join(known) or 'none', 200)}"
            )
        folder = path / (split or "train")
    check_files(folder, field)
    for part in read_object(folder / "state.json", field).get("_data_files") or [{}]:
        name = part.get("filename") if isinstance(part, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{field}: {str(folder / 'state.json')!r} names no data file beside it, got {name!r}")
    with opening(field, folder, "saved data set"):
        yield from datasets.load_from_disk(str(folder))


def _hub(path: str, subset: str | None, split: str | None, limit: int | None, field: str) -> Iterator[dict[str, Any]]:
    datasets = _datasets(path, field)
    split = split or "train"
    if limit is not None and "[" not in split:
        split = f"{split}[:{limit}]"
    try:
        where = {}
        if subset is not None:
            # Anthropic/hh-rlhf keeps its subsets as folders, most others as configurations
            where = {"name": subset} if subset in datasets.get_dataset_config_names(path) else {"data_dir": subset}
        return iter(datasets.load_dataset(path, split=split, **where))
    except (OSError, ValueError) as error:
        asked = f"{path!r}" + (f", subset {subset!r}" if subset else "") + f", split {split!r}"
        raise ValueError(
            f"{field}: cannot load {asked} from the hub ({_first_line(error)}); offline, give a local path"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
