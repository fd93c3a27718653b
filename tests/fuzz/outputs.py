"""Output folders that a run cannot have, or whose files are damaged."""

import os
import shutil

from tests.fuzz.place import Case, Place


def _place(name: str, words, *says: str) -> Case:
    """words(place): the flags; the shared finished run must stay what it is."""
    return Case(f"output: {name}", words, ("output", *says))


def _damaged(name: str, act, *says: str) -> Case:
    """A copy of the finished run with damage: act(folder)."""

    def make(place: Place) -> list[str]:
        folder = place.own / "out"
        shutil.copytree(place.run, folder)
        act(folder)
        return ["--output", str(folder)]

    return Case(f"finished run: {name}", make, says)


def places() -> list[Case]:
    def full(place: Place) -> list[str]:
        place.file("mine/notes.txt", "mine")
        return ["--output", str(place.own / "mine")]

    def circle(place: Place) -> list[str]:
        os.symlink(place.own / "b", place.own / "a")
        os.symlink(place.own / "a", place.own / "b")
        return ["--output", str(place.own / "a")]

    def dangling(place: Place) -> list[str]:
        os.symlink(place.own / "absent", place.own / "a")
        return ["--output", str(place.own / "a")]

    return [
        _place("a file", lambda p: ["--output", str(p.file("out.txt", "mine"))], "--output"),
        _place("under a file", lambda p: ["--output", str(p.file("out.txt", "mine") / "run")]),
        _place("somebody's folder", full, "is no run", "--output"),
        _place("of another seed", lambda p: ["--output", str(p.run), "--seed", "9"], "seed was 0, now 9"),
        _place("of another rate", lambda p: ["--output", str(p.run), "--rto.optim.lr", "0.5"], "rto.optim.lr was"),
        _place("of other data", lambda p: ["--output", str(p.run), *p.rows("x.jsonl", "")], "data.path was"),
        _place(
            "of another everything",
            lambda p: [
                "--output",
                str(p.run),
                "--seed",
                "9",
                "--rto.rollouts",
                "16",
                "--sft.epochs",
                "2",
                "--dpo.beta",
                "1",
            ],
            "and 1 more",
        ),
        _place("links in a circle", circle),
        _place("a dangling link", dangling),
        _place("NUL", lambda p: ["--output", "/a\0b"]),
        _place("too long", lambda p: ["--output", str(p.own / ("a" * 300))]),
        _place("not UTF-8", lambda p: ["--output", str(p.own / "\udcff")]),
        _place("in /proc", lambda p: ["--output", "/proc/rto_fast"]),
        _place("a device", lambda p: ["--output", "/dev/null"], "--output"),
        _place("empty", lambda p: ["--output", ""])
        if False
        else _place("under a device", lambda p: ["--output", "/dev/null/run"]),
    ]


def damage() -> list[Case]:
    def write(name: str, content: bytes):
        return lambda folder: (folder / name).write_bytes(content)

    def cut(name: str):
        return lambda folder: os.truncate(folder / name, os.path.getsize(folder / name) // 2)

    def remove(name: str):
        return lambda folder: os.remove(folder / name)

    def directory(folder) -> None:
        os.remove(folder / "config.toml")
        (folder / "config.toml").mkdir()

    toml = "config.toml"
    return [
        _damaged("config.toml cut", cut(toml), "output", "delete it"),
        _damaged("config.toml empty", write(toml, b""), "output", "holds another run"),
        _damaged("config.toml no TOML", write(toml, b"{"), "output", toml, "not valid TOML"),
        _damaged("config.toml not UTF-8", write(toml, b"\xff\xfe"), "output", toml, "not valid TOML"),
        _damaged("config.toml nested", write(toml, b"a = " + b"[" * 100_000), "output", toml),
        _damaged("config.toml of other types", write(toml, b"rto = 5\nseed = 1979-05-27"), "output", "another run"),
        _damaged("config.toml removed", remove(toml), "output", "is no run"),
        _damaged("config.toml a folder", directory, "output", "is no run"),
        _damaged("sft weights cut", cut("sft/model.safetensors"), "sft", "safetensors", "delete"),
        _damaged("dpo weights cut", cut("dpo/model.safetensors"), "dpo", "safetensors", "delete"),
        _damaged("rto weights cut", cut("rto/model.safetensors"), "rto", "safetensors", "delete"),
        _damaged("sft config.json removed", remove("sft/config.json"), "sft", "config.json", "delete"),
        _damaged("dpo config.json no JSON", write("dpo/config.json", b"{"), "dpo", "config.json", "delete"),
        _damaged("rto weights a pickle", write("rto/model.safetensors", b"\x80\x04\x95"), "rto", "delete"),
    ]


def cases() -> list[Case]:
    return places() + damage()
