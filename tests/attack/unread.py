"""Pipes, devices and files without an end, wherever a file is read: none is waited for, and none is read to its end."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.attack.command import Ended, Outcome, copied, done, python, refused
from tests.fuzz.place import base

LIMIT = 120.0
"""Seconds until a command that hangs is killed."""
SECONDS, MEBIBYTES = 20.0, 1250.0
"""Python with torch and transformers takes 6 s and 420 MiB before it looks at anything."""
JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")

Make = Callable[[Path], None]


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    yield from _models(shared, own)
    yield from _rows(shared, own)
    yield from _recipes(shared, own)
    yield from _reports(shared, own)


def _cheap(seen: Ended) -> dict[str, bool]:
    quick, small = f"less than {SECONDS:.0f} s", f"less than {MEBIBYTES:,.0f} MiB"
    return {quick: seen.seconds < SECONDS, small: seen.mebibytes < MEBIBYTES}


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def endless(file: Path) -> None:
    """A terabyte without a line's end, of which no disk holds a byte."""
    file.touch()
    os.truncate(file, 1 << 40)


def _in_place(file: Path, make: Make) -> Path:
    file.unlink(missing_ok=True)
    make(file)
    return file


def _models(shared: Path, own: Path) -> Iterator[Outcome]:
    kinds: list[tuple[str, Make, str]] = [(name, pipe, "is a pipe, not a regular file; remove it") for name in JSON]
    kinds += [
        ("config.json", device, "is a device, not a regular file; remove it"),
        ("tokenizer.json", device, "is a device, not a regular file; remove it"),
        ("config.json", endless, "is larger than 256 MiB"),
        ("model.safetensors", pipe, "is a pipe, not a regular file; remove it"),
        ("model.safetensors", device, "is a device, not a regular file; remove it"),
        ("model.safetensors", endless, "is no whole safetensors file"),
    ]
    for name, make, says in kinds:
        words = ["rto_fast.train", *base(shared, own / "run"), "--model.path", str(_model(shared, own, name, make))]
        seen = python(*words, where=own, limit=LIMIT)
        wanted = refused(seen, "model.path: ", f"/{name}", says) | {"no run folder": not (own / "run").exists()}
        yield Outcome(f"train with {name} as {make.__name__}", seen, wanted | _cheap(seen))
    for command in ("plan", "data", "evaluate"):
        for make, says in ((pipe, "is a pipe"), (device, "is a device")):
            model = str(_model(shared, own, "config.json", make))
            prompts = ["--prompts", str(shared / "pairs.jsonl"), "--output", str(own / "evaluated")]
            words = {
                "plan": ["--model.path", model],
                "data": ["--model.path", model, "--path", str(shared / "pairs.jsonl")],
                "evaluate": [f"a={model}", "--reference", str(shared / "model"), "--judge", "oracle", *prompts],
            }[command]
            seen = python(f"rto_fast.{command}", *words, where=own, limit=LIMIT)
            wanted = refused(seen, "/config.json", says) | _cheap(seen)
            yield Outcome(f"{command} with config.json as {make.__name__}", seen, wanted)


def _model(shared: Path, own: Path, name: str, make: Make) -> Path:
    """A good model, but for one file."""
    shutil.rmtree(own / "model", ignore_errors=True)
    shutil.copytree(shared / "model", own / "model")
    _in_place(own / "model" / name, make)
    return own / "model"


def _rows(shared: Path, own: Path) -> Iterator[Outcome]:
    kinds: list[tuple[str, Make, str]] = [
        ("a.jsonl", pipe, "(a pipe)"),
        ("a.json.gz", pipe, "(a pipe)"),
        ("a.parquet", pipe, "(a pipe)"),
        ("a.jsonl", device, "(a device)"),
        ("a.jsonl", endless, "line 1: longer than 64 MiB"),
        ("a.csv", endless, "a.csv"),
        ("a.json", endless, "a.json: larger than 4 GiB"),
    ]
    for name, make, says in kinds:
        file = str(_in_place(own / name, make))
        seen = python("rto_fast.train", *base(shared, own / "run"), "--data.path", file, where=own, limit=LIMIT)
        wanted = refused(seen, f"/{name}", says) | {"no run folder": not (own / "run").exists()}
        yield Outcome(f"train on {name} as {make.__name__}", seen, wanted | _cheap(seen))
        os.remove(file)


def _recipes(shared: Path, own: Path) -> Iterator[Outcome]:
    kinds: list[tuple[Make, str]] = [(pipe, "is a pipe"), (device, "is a device"), (endless, "is larger than 256 KiB")]
    for make, says in kinds:
        recipe = str(_in_place(own / "recipe.toml", make))
        seen = python("rto_fast.train", *base(shared, own / "run"), "--recipe", recipe, where=own, limit=LIMIT)
        wanted = refused(seen, "recipe", "/recipe.toml", says) | {"no run folder": not (own / "run").exists()}
        yield Outcome(f"train with a recipe as {make.__name__}", seen, wanted | _cheap(seen))


def _reports(shared: Path, own: Path) -> Iterator[Outcome]:
    """What cannot be read of a run is left out of its report, which says so."""
    for name in ("metrics.jsonl", "answers.jsonl"):
        sealed = name != "metrics.jsonl"
        for make, why in ((pipe, "it is a pipe"), (device, "it is a device"), (endless, "")):
            run = copied(shared, own / f"{make.__name__}-{name}")
            _in_place(run / name, make)
            says = f"{name} was not read: {why}, not a regular file" if why else "only its first 1024 MiB were read"
            says = f"{name} is not what the run wrote and was not read" if sealed else says
            yield _report(f"report of a run with {name} as {make.__name__}", run, says)
    for name in ("metrics.jsonl", "answers.jsonl"):
        run = copied(shared, own / f"unsealed-{name}")
        (run / "manifest.json").unlink()
        with (run / name).open("ab") as file:
            file.truncate(1 << 40)
        yield _report(f"report of {name} whose last line is endless", run, f"{name}: 1 line of more than 4 MiB passed")


def _report(name: str, run: Path, says: str) -> Outcome:
    seen = python("rto_fast.report", run, where=run.parent, limit=LIMIT)
    page = (run / "report.html").read_text() if (run / "report.html").exists() else ""
    return Outcome(name, seen, done(seen) | {f"the page says {says!r}": says in page} | _cheap(seen))
