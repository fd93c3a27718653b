"""One flipped bit in what a run has written: whoever reads that file next finds it, and names it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.attack.command import Ended, Outcome, copied, done, flip, python, refused
from tests.fuzz.place import base, contents
from tests.kill_harness import end_state

STAGES = ("sft", "dpo", "rto")
WORDS = {
    "evaluate": ("--num-prompts", "2"),
    "credit": ("--rows", "1"),
    "decode": ("--num-prompts", "2", "--beams", "1", "--best-of", "1", "--strengths", "0"),
}
READS = {"evaluate": STAGES, "credit": STAGES[:2], "decode": STAGES[:2]}
"""Whose models a command looks at."""
WEIGHTS = "model.safetensors"


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    yield from _stages(shared, own)
    yield from _commands(shared, own)
    yield from _given(shared, own)
    yield from _report(shared, own)
    yield from _checkpoints(shared, own)


def _stages(shared: Path, own: Path) -> Iterator[Outcome]:
    """The next stage, and for the last one the next start."""
    damaged = [(stage, WEIGHTS) for stage in STAGES] + [("sft", "tokenizer.json"), ("dpo", "config.json")]
    for stage, name in damaged:
        run = _but_last(shared, own / "run") if stage != "rto" else copied(shared, own / "run")
        flip(run / stage / name)
        before = contents(run / stage)
        seen = python("rto_fast.train", *base(shared, run), where=own)
        wanted = _found(seen, run / stage / name) | {"the stage is as it was": contents(run / stage) == before}
        wanted |= {"nothing was trained on it": stage == "rto" or not (run / "rto").exists()}
        yield Outcome(f"train goes on from {stage}/{name}", seen, wanted)
    seen = python("rto_fast.train", *base(shared, _but_last(shared, own / "run")), where=own)
    yield Outcome("control: train goes on from what is whole", seen, done(seen, "sft: finished already", "Finished in"))


def _commands(shared: Path, own: Path) -> Iterator[Outcome]:
    for command, stages in READS.items():
        for stage in stages:
            run = copied(shared, own / "run")
            flip(run / stage / WEIGHTS)
            yield Outcome(f"{command} of {stage}", seen := _look(command, run), _found(seen, run / stage / WEIGHTS))
        seen = _look(command, copied(shared, own / "run"))
        yield Outcome(f"control: {command} of what is whole", seen, done(seen))


def _given(shared: Path, own: Path) -> Iterator[Outcome]:
    """A finished stage in the hands of another run."""
    run = copied(shared, own / "run")
    flip(run / "sft" / WEIGHTS)
    for words in (("--sft.model", run / "sft"), ("--from", run)):
        other = own / f"other{words[0]}"
        seen = python("rto_fast.train", *base(shared, other), *words, where=own)
        wanted = _found(seen, run / "sft" / WEIGHTS) | {"none is made": not (other / "dpo").exists()}
        yield Outcome(f"train {words[0]} of a damaged sft", seen, wanted)


def _report(shared: Path, own: Path) -> Iterator[Outcome]:
    """A page is written all the same: it leaves out what is damaged, and says so."""
    for name in ("results.json", "answers.jsonl", "heatmaps.json", None):
        run = copied(shared, own / "run")
        if name:
            flip(run / name)
        seen = python("rto_fast.report", run, where=own)
        page = (run / "report.html").read_text() if (run / "report.html").is_file() else ""
        said = f"{name or 'anything'} is not what the run wrote and was not read"
        wanted = done(seen) | {f"the page says that {said}": said in page} if name else done(seen)
        wanted |= {"the page blames no other file": page.count("is not what the run wrote") == (name is not None)}
        yield Outcome(f"report, {name} damaged" if name else "control: report of what is whole", seen, wanted)


def _checkpoints(shared: Path, own: Path) -> Iterator[Outcome]:
    """Of a killed run: the newest is passed over for the one before, and the end is the same to the bit."""
    shutil.rmtree(own / "run", ignore_errors=True)
    run, words = own / "run", ["--checkpoint.every", "1", "--rto.iterations", "4"]
    places = run / "rto.checkpoints"
    python("rto_fast.train", *base(shared, own / "whole"), *words, where=own)
    seen = python(
        "rto_fast.train", *base(shared, run), *words, where=own, until=lambda: len([*places.glob("step-*")]) > 1
    )
    found = sorted(places.glob("step-*"))
    wanted = {"killed midway": seen.status == -9 and len(found) > 1}
    yield Outcome("control: a run with checkpoints, killed", seen, wanted)
    flip(found[-1] / "weights.safetensors")
    seen = python("rto_fast.train", *base(shared, run), *words, where=own)
    wanted = done(seen, f"{found[-1]}: weights.safetensors is not what was written", "rto: going on from step ")
    wanted |= {"the same bits": seen.status == 0 and end_state(run) == end_state(own / "whole")}
    yield Outcome("train goes on from a damaged checkpoint", seen, wanted)


def _but_last(shared: Path, run: Path) -> Path:
    """Finished but for the last stage, whose lines in metrics.jsonl are left over."""
    copied(shared, run)
    shutil.rmtree(run / "rto")
    return run


def _look(command: str, run: Path) -> Ended:
    return python(f"rto_fast.{command}", "--run", run, "--device", "cpu", *WORDS[command], where=run.parent)


def _found(seen: Ended, file: Path) -> dict[str, bool]:
    return refused(seen, f"'{file}' is damaged, it is not what was written there; delete the folder '{file.parent}'")
