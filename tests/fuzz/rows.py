"""Malformed data sets."""

import gzip
import json
import os
from pathlib import Path

from tests.fuzz.place import Case, Content, Place

GOOD = {"prompt": "what is it", "chosen": "it is grey", "rejected": "it is brown"}
LINE = json.dumps(GOOD) + "\n"


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _jsonl(name: str, content: Content, *says: str, file: str = "rows.jsonl") -> Case:
    return Case(f"rows: {name}", lambda place: place.rows(file, content), says)


def _many(count: int = 8, **changed: object) -> bytes:
    """Rows with distinct prompts and one column changed."""
    return _lines(*({**GOOD, "prompt": f"what is it {'the ' * i}", **changed} for i in range(count)))


def syntax() -> list[Case]:
    """Files that are no rows."""
    second = "rows.jsonl, line 2: "
    lines: dict[str, tuple[bytes, str]] = {
        "cut object": (b'{"prompt": "a"', "not valid JSON"),
        "single quotes": (b"{'prompt': 'a'}", "not valid JSON"),
        "trailing comma": (b'{"prompt": "a",}', "not valid JSON"),
        "two objects on a line": (b"{} {}", "not valid JSON"),
        "comment": (b'{"a": 1} // note', "not valid JSON"),
        "bare word": (b"hello", "not valid JSON"),
        "raw control character": (b'{"a": "\x01"}', "not valid JSON"),
        "half an escape": (b'{"a": "\\u12"}', "not valid JSON"),
        "NUL bytes": (b"\x00" * 64, "not valid JSON"),
        "NaN": (b'{"a": NaN}', "NaN is not JSON"),
        "Infinity": (b'{"a": [1, {"b": Infinity}]}', "Infinity is not JSON"),
        "minus Infinity": (b'{"a": -Infinity}', "-Infinity is not JSON"),
        "number beyond floats": (b'{"a": 1e999}', "1e999 is beyond"),
        "number of 10,000 digits": (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        "duplicate key": (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
        "duplicate key in depth": (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "key 'b' appears twice"),
        "duplicate key by escape": (b'{"a": 1, "\\u0061": 2}', "key 'a' appears twice"),
        "list": (b"[1, 2]", "got list"),
        "string": (b'"text"', "got str"),
        "number": (b"17", "got int"),
        "null": (b"null", "got NoneType"),
        "true": (b"true", "got bool"),
        "lists 100,000 deep": (b"[" * 100_000, "nested too deeply"),
        "objects 50,000 deep": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        "closed lists 5,000 deep": (b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "nested too deeply"),
        "latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8"),
        "cut UTF-8": ('{"a": "é'.encode()[:-1], "not UTF-8"),
        "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "not UTF-8"),
        "UTF-8 surrogate": (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        "terminal escapes": (b'\x1b]0;owned\x07\x1b[2J{"a"', "not valid JSON"),
    }
    cases = [_jsonl(name, LINE.encode() + line + b"\n", second, says) for name, (line, says) in lines.items()]
    packed = gzip.compress(LINE.encode() * 500)
    text = LINE * 8
    return cases + [
        _jsonl("empty file", b"", "rows.jsonl' holds no rows"),
        _jsonl("blank lines only", b"\n\r\n  \n", "holds no rows"),
        _jsonl("byte order mark only", b"\xef\xbb\xbf", "holds no rows"),
        _jsonl("UTF-16", text.encode("utf-16"), "rows.jsonl, line 1: not UTF-8"),
        _jsonl("UTF-16 without a mark", text.encode("utf-16-le"), "rows.jsonl, line 1: not valid JSON"),
        _jsonl("UTF-32", text.encode("utf-32"), "rows.jsonl, line 1: not UTF-8"),
        _jsonl("two marks", b"\xef\xbb\xbf\xef\xbb\xbf" + LINE.encode(), "rows.jsonl, line 1: not valid JSON"),
        _jsonl("10 MB of open brackets", b'{"a":' + b"[" * 10_000_000, "line 1: JSON nested too deeply"),
        _jsonl("10 MB without an end", b'{"prompt": "' + b"a" * 10_000_000, "line 1: not valid JSON"),
        _jsonl(
            "10 MB lines",
            _many(5, chosen="it " * 40) + _many(1, chosen="a" * 10**7, rejected="b"),
            "response does not fit",
            "data.max_length",
        ),
        _jsonl("cut gzip", packed[:-9], "rows.jsonl.gz: not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("gzip cut in its head", packed[:5], "not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("gzip with a flipped bit", _flip(packed, 60), "not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("gzip with a wrong checksum", _flip(packed, -6), "not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("gzip with refuse behind it", packed + b"refuse", "not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("text named .gz", LINE * 8, "not a whole gzip file", file="rows.jsonl.gz"),
        _jsonl("gzip named .jsonl", packed, "line 1: not UTF-8"),
        _jsonl("empty .gz", b"", "holds no rows", file="rows.jsonl.gz"),
        _jsonl("gzip of nothing", gzip.compress(b""), "holds no rows", file="rows.jsonl.gz"),
        _jsonl("a million blank lines", LINE.encode() + b"\n" * 1_000_002, "line 1000002: more than 1,000,000 blank"),
        _jsonl(
            "gzip of half a million objects",
            gzip.compress(b"[" + b"{}," * 500_000 + b"{}]"),
            "rows.json.gz: unpacked it is more than 200 times its size",
            file="rows.json.gz",
        ),
        _jsonl("JSON string", '"text"', "rows.json: wanted a list of objects", file="rows.json"),
        _jsonl("JSON null", "null", "rows.json: wanted a list of objects", file="rows.json"),
        _jsonl("JSON list of numbers", [1, 2], "rows.json, item 1: wanted an object", file="rows.json"),
        _jsonl("JSON list with one null", [GOOD, None], "rows.json, item 2: wanted an object", file="rows.json"),
        _jsonl("JSON list of nothing", [], "holds no rows", file="rows.json"),
        _jsonl("JSON list without an end", "[" + LINE, "rows.json: not valid JSON", file="rows.json"),
        _jsonl("JSON nested", "[" * 200_000, "rows.json: JSON nested too deeply", file="rows.json"),
        _jsonl("empty .json", b"", "rows.json", file="rows.json"),
        _jsonl("cut gzip of JSON", gzip.compress(b"[]" * 900)[:-8], "not a whole gzip file", file="rows.json.gz"),
        _jsonl("no parquet", b"PAR1", "rows.parquet: not a readable parquet file", file="rows.parquet"),
        _jsonl("empty parquet", b"", "rows.parquet: not a readable parquet file", file="rows.parquet"),
        _jsonl("parquet of refuse", b"PAR1" + b"\xff" * 64 + b"PAR1", "not a readable parquet", file="rows.parquet"),
        _jsonl("csv, ragged", "prompt,chosen,rejected\na,b,c,d\n", "rows.csv, line 2: 4 texts", file="rows.csv"),
        _jsonl("csv, open quote", 'prompt,chosen,rejected\na,"b,c\n', "from line 2: not valid CSV", file="rows.csv"),
        _jsonl("csv, text behind a quote", 'prompt\n"a"b\n', "from line 2: not valid CSV", file="rows.csv"),
        _jsonl("csv, one name twice", "prompt,chosen,chosen\na,b,c\n", "two columns are called", file="rows.csv"),
        _jsonl("csv, no name", "prompt,,chosen\na,b,c\n", "column 2 has no name", file="rows.csv"),
        _jsonl("csv, header alone", "prompt,chosen,rejected\n", "holds no rows", file="rows.csv"),
        _jsonl("csv, latin-1", "prompt\né\n".encode("latin-1"), "line 2: not UTF-8", file="rows.csv"),
        _jsonl("csv, UTF-16", "prompt\na\n".encode("utf-16"), "line 1: not UTF-8", file="rows.csv"),
        _jsonl("csv, cut gzip", gzip.compress(b"a,b\n" * 99)[:-9], "not a whole gzip file", file="rows.csv.gz"),
        _jsonl("tsv, ragged", "prompt\tchosen\na\n", "rows.tsv, line 2: 1 texts", "with tabs", file="rows.tsv"),
        _jsonl("text", "prompt,chosen,rejected\na,b,c\n", "wanted a file ending in .jsonl", file="rows.txt"),
        _jsonl("pickle", b"\x80\x04\x95", "wanted a file ending in .jsonl", file="rows.pkl"),
        _jsonl("no ending", LINE, "wanted a file ending in .jsonl", file="rows"),
    ]


def _flip(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 0xFF
    return bytes(changed)


def columns() -> list[Case]:
    """Rows of the wrong form, and rows none of which can be used."""
    first = "data row 1: column "

    def row(name: str, changed: dict, *says: str) -> Case:
        wanted = {k: v for k, v in {**GOOD, **changed}.items() if v != "absent"}
        return _jsonl(name, _lines(wanted, wanted), *says)

    user = {"role": "user", "content": "what"}
    return [
        row("no chosen", {"chosen": "absent"}, "no column 'chosen'", "columns"),
        row("no rejected", {"rejected": "absent"}, "no column 'rejected'", "columns"),
        row("no columns at all", dict.fromkeys(GOOD, "absent"), "no column 'chosen'"),
        row("columns of capitals", {**dict.fromkeys(GOOD, "absent"), "Chosen": "a", "Rejected": "b"}, "no column"),
        row("column name with half a surrogate", {"chosen": "absent", "\ud800": 1}, "no column 'chosen'"),
        row("column name with escapes", {"chosen": "absent", "\x1b[2J": 1}, "no column 'chosen'", "\\x1b"),
        row("1,000 other columns", {"chosen": "absent", **{f"c{i}": 1 for i in range(1000)}}, "no column 'chosen'"),
        row("number as answer", {"chosen": 5}, first + "'chosen' must be a string", "got int"),
        row("object as answer", {"chosen": {"text": "a"}}, first + "'chosen' must be a string", "got dict"),
        row("true as answer", {"rejected": True}, first + "'rejected' must be a string", "got bool"),
        row("list against string", {"chosen": [user]}, first + "'rejected' must be a list"),
        row("string against list", {"rejected": [user]}, first + "'rejected' must be a str"),
        row("number as prompt", {"prompt": 5}, first + "'prompt'", "wanted a string or a list of messages"),
        row("object as prompt", {"prompt": {"a": 1}}, first + "'prompt'", "wanted a string or a list of messages"),
        row("prompt of numbers", {"prompt": [1, 2]}, first + "'prompt'", "wanted messages {role, content}"),
        row("prompt of lists", {"prompt": [[[]]]}, first + "'prompt'", "wanted messages {role, content}"),
        row("message without a role", {"prompt": [{"content": "a"}]}, first + "'prompt'", "a message has no role"),
        row("role of a number", {"prompt": [{"role": 1, "content": "a"}]}, "a message has no role"),
        row("content of a number", {"prompt": [{"role": "user", "content": 7}]}, "content must be a string, got int"),
        row("content of an image", {"prompt": [{"role": "user", "content": [{"image": "x"}]}]}, "else than text"),
        row("content of an object", {"prompt": [{"role": "user", "content": {}}]}, "content must be a string"),
        row("answers as empty lists", {"chosen": [], "rejected": []}, "none of the 2 rows can be used"),
        row(
            "answer as two turns",
            {k: [{"role": "assistant", "content": "a"}] * 2 for k in ("chosen", "rejected")},
            "response is not one assistant turn",
        ),
        row("null answers", {"chosen": None, "rejected": None}, "2 x empty response"),
        row("blank answers", {"chosen": " \n", "rejected": "\t"}, "2 x empty response"),
        row("null prompt", {"prompt": None}, "2 x empty prompt"),
        row("blank prompt", {"prompt": "  "}, "2 x empty prompt"),
        row("equal answers", {"rejected": " it is grey "}, "2 x chosen equals rejected"),
        row("half a surrogate", {"chosen": "\ud800"}, "2 x not Unicode text", "half a surrogate pair"),
        row("half a surrogate as prompt", {"prompt": "a\udfff"}, "2 x not Unicode text"),
        row(
            "different histories",
            {"prompt": "absent", "chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: d"},
            "2 x histories differ",
        ),
        row(
            "dialogues that end in Human",
            {
                "prompt": "absent",
                "chosen": "Human: a\n\nAssistant: b\n\nHuman: c",
                "rejected": "Human: a\n\nAssistant: b\n\nHuman: d",
            },
            "last turn is not",
        ),
        row("no shared prompt", {"prompt": "absent"}, "no shared prompt")
        if False
        else row("no shared beginning", {"prompt": "absent", "chosen": "x y", "rejected": "z"}, "2 x no shared prompt"),
        _jsonl("second row of another type", _lines(GOOD, {**GOOD, "chosen": 5}), "data row 2: column 'chosen'"),
        _jsonl("one row", _lines(GOOD), "data.held_out", "give more data"),
        _jsonl("one prompt", _lines(*[GOOD] * 9), "data.held_out: cannot hold out 4", "1 distinct prompts"),
        _jsonl("answers too long", _many(8, chosen="it " * 40), "response does not fit", "raise data.max_length"),
        _jsonl("answers that are EOS", _many(8, chosen="<eos>", rejected="<eos> <eos>"), "empty response"),
        _jsonl("answers equal as tokens", _many(8, chosen="xx", rejected="yy"), "responses equal as tokens"),
    ]


def paths() -> list[Case]:
    """Folders and files that are not what they seem."""

    def folder(name: str, fill, *says: str) -> Case:
        def make(place: Place) -> list[str]:
            data = place.own / "data"
            data.mkdir()
            fill(data)
            return ["--data.path", str(data)]

        return Case(f"data folder: {name}", make, says)

    def loop(data: Path) -> None:
        os.symlink(data / "b.jsonl", data / "a.jsonl")
        os.symlink(data / "a.jsonl", data / "b.jsonl")

    def twins(data: Path) -> None:
        (data / "train.jsonl").write_text(LINE)
        (data / "train.json").write_text("[]")

    def piped(data: Path) -> None:
        (data / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        os.mkfifo(data / "a.arrow")

    def special(name: str, file: str, make, *says: str) -> Case:
        def words(place: Place) -> list[str]:
            make(place.own / file)
            return ["--data.path", str(place.own / file)]

        return Case(f"data: {name}", words, ("data.path", file, *says))

    def flags(name: str, words: list[str], *says: str) -> Case:
        return Case(f"data: {name}", lambda place: [w.replace("OWN", str(place.own)) for w in words], says)

    return [
        folder("empty", lambda data: None, "holds no .jsonl"),
        folder("no data in it", lambda data: (data / "README.md").write_text("text"), "holds no .jsonl"),
        folder("a folder named as a file", lambda data: (data / "a.jsonl").mkdir(), "holds no .jsonl"),
        folder("links in a circle", loop, "holds no .jsonl"),
        folder("a dangling link", lambda data: os.symlink(data / "no", data / "a.jsonl"), "holds no .jsonl"),
        folder("a link to itself", lambda data: os.symlink(data, data / "train"), "holds no .jsonl"),
        folder("a pipe", lambda data: os.mkfifo(data / "a.jsonl"), "holds no .jsonl"),
        folder("a device", lambda data: os.symlink("/dev/zero", data / "a.json"), "holds no .jsonl"),
        folder("hidden files", lambda data: (data / "._train.jsonl").write_bytes(b"\0\5\x16\7"), "holds no .jsonl"),
        folder("a data set of pipes", piped, "a.arrow", "is a pipe"),
        folder("the same twice", twins, "look like copies", "give the path of one"),
        folder("only test", lambda data: (data / "test.jsonl").write_text(LINE), "no file for split 'train'"),
        folder("a broken state.json", lambda data: (data / "state.json").write_text("{"), "state.json"),
        folder("a state.json of nothing", lambda data: (data / "state.json").write_text("{}"), "state.json"),
        folder(
            "a hostile dataset_dict.json",
            lambda data: (data / "dataset_dict.json").write_text('{"splits": ["../x"]}'),
            "dataset_dict.json",
        ),
        flags("absent", ["--data.path", "./nowhere.jsonl"], "no file or directory './nowhere.jsonl'"),
        flags("empty path", ["--data.path", ""], "data.path: no preference pairs given"),
        flags("pipe", ["--data.path", "/dev/stdin"], "/dev/stdin", "wanted a file ending in"),
        special("a pipe by name", "a.jsonl", os.mkfifo, "(a pipe)"),
        special("a pipe of parquet", "a.parquet", os.mkfifo, "(a pipe)"),
        special("a packed pipe", "a.json.gz", os.mkfifo, "(a pipe)"),
        special("a device by name", "a.json", lambda file: file.symlink_to("/dev/zero"), "(a device)"),
        flags("NUL in the path", ["--data.path", "OWN/a\0b.jsonl"], "data.path"),
        flags("path too long", ["--data.path", "/" + "a" * 5000 + ".jsonl"], "data.path"),
        flags("path that is not UTF-8", ["--data.path", "./\udcff.jsonl"], "data.path"),
        flags("path with escapes", ["--data.path", "./\x1b[2J.jsonl"], "data.path", "\\x1b"),
        flags("subset of a file", ["--data.subset", "helpful"], "data.subset", "leave subset out"),
        flags("split of a file", ["--data.split", "test"], "data.split", "leave split out"),
        flags("demonstrations absent", ["--data.demonstrations", "./no.jsonl"], "./no.jsonl", "data.demonstrations"),
        flags("evaluation absent", ["--data.evaluation", "./no.jsonl"], "./no.jsonl", "data.evaluation"),
        Case(
            "data: demonstrations without answers",
            lambda place: ["--data.demonstrations", str(place.file("told.jsonl", LINE.replace("chosen", "said")))],
            ("no column 'completion'",),
        ),
        Case(
            "data: evaluation without prompts",
            lambda place: ["--data.evaluation", str(place.file("asked.jsonl", '{"title": "a"}\n'))],
            ("no column 'prompt'",),
        ),
    ]


def cases() -> list[Case]:
    return syntax() + columns() + paths()
