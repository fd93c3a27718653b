"""Links planted in a run's folder: no command writes or deletes what they lead to."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from rto_fast.files.disk import remove
from tests.attack.command import Outcome, copied, done, python, refused
from tests.fuzz.place import base, contents

FILES = ("config.toml.partial", "results.json.partial", "metrics.jsonl.partial", "metrics.jsonl", ".lock", "samples.md")
FOLDERS = ("tb", "tb/rto", "sft", "rto", "rto.checkpoints")
REPLACED = {
    "report": ("report.html.partial", "report.html"),
    "credit": ("heatmaps.json.partial", "heatmaps.json", "credit.json", "credit.html", "manifest.json"),
    "decode": ("decode.json.partial", "decode.json"),
}
"""What a command writes anew: a link of that name gives way to a file."""
WITHIN = ("evaluation", "evaluation/answers", "evaluation/judge.sqlite", "evaluation/implicit/results.json.partial")
"""Where evaluate writes."""
WORDS = {
    "credit": ("--rows", "1"),
    "decode": ("--num-prompts", "2", "--beams", "1", "--best-of", "1", "--strengths", "0"),
    "evaluate": ("--num-prompts", "2"),
}


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    for stage in ("sft", "rto", "answers", "implicit"):
        (own / "victims" / "folder" / stage).mkdir(parents=True)
        (own / "victims" / "folder" / stage / "notes").write_text("mine")
    (own / "victims" / "file").write_text("mine")
    yield from _train(shared, own)
    yield from _replaced(shared, own)
    yield from _evaluate(shared, own)


def _train(shared: Path, own: Path) -> Iterator[Outcome]:
    links = [(name, "file") for name in FILES] + [(name, "folder") for name in FOLDERS]
    # through a link that leads nowhere a new file would be made
    for name, target in [*links, (".lock", "nothing")]:
        run = copied(shared, own / "run")
        shutil.rmtree(run / "rto")  # there is something to train
        _plant(own, [name], target)
        before = contents(own)
        seen = python("rto_fast.train", *base(shared, run), where=own)
        wanted = refused(seen, f"output: {run / name} is a link, ", "remove it")
        yield Outcome(f"train, {name} -> {target}", seen, wanted | {"nothing is written": contents(own) == before})
    remove(run / name)
    seen = python("rto_fast.train", *base(shared, run), where=own)
    yield Outcome("control: train, the link removed", seen, done(seen, "Finished in"))


def _replaced(shared: Path, own: Path) -> Iterator[Outcome]:
    for command, names in REPLACED.items():
        for target in ("file", "nothing") if command == "report" else ("file",):
            run = copied(shared, own / "run")
            # and whatever else a train would have minded
            strange = [name for name in (*FILES, "tb") if name != "metrics.jsonl"]
            _plant(own, [*names, *strange], target)
            before = contents(own / "victims")
            words = [run] if command == "report" else ["--run", run, "--device", "cpu", *WORDS[command]]
            seen = python(f"rto_fast.{command}", *words, where=own)
            wanted = {"the victims are as they were": contents(own / "victims") == before}
            wanted |= {f"{name} is a file": _is_file(run / name) for name in names if not name.endswith(".partial")}
            yield Outcome(f"{command}, all that it writes -> {target}", seen, done(seen) | wanted)


def _evaluate(shared: Path, own: Path) -> Iterator[Outcome]:
    for name in WITHIN:
        run = copied(shared, own / "run")
        target = "folder" if "." not in name else "file"
        _plant(own, [name], target)
        before = contents(own)
        seen = python("rto_fast.evaluate", "--run", run, "--device", "cpu", *WORDS["evaluate"], where=own)
        wanted = refused(seen, f"output: {run / name} is a link, ", "remove it")
        yield Outcome(f"evaluate, {name} -> {target}", seen, wanted | {"nothing is written": contents(own) == before})
    run = copied(shared, own / "run")
    _plant(own, ["results.json.partial", "answers.jsonl.partial", "samples.md.partial", ".lock", "tb"], "file")
    before = contents(own / "victims")
    seen = python("rto_fast.evaluate", "--run", run, "--device", "cpu", *WORDS["evaluate"], where=own)
    wanted = {"the victims are as they were": contents(own / "victims") == before}
    wanted |= {"its results are there": _is_file(run / "evaluation" / "implicit" / "results.json")}
    yield Outcome("evaluate, links beside its own folder", seen, done(seen) | wanted)


def _plant(own: Path, names: list[str], target: str) -> None:
    """Links in the run, in the place of what is there, to a file, a folder or nothing beside it."""
    for name in names:
        link = own / "run" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        remove(link)
        link.symlink_to(own / "victims" / target)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
