"""A reward rule, trusted on the command line, that fails in every way there is: one line, and no step is lost by it.

One run is stopped by each fault in turn, in its second iteration or when the rule is imported; mended, it must end with
the bits of a run that nothing disturbed.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import load_file

from tests.attack.command import Ended, Outcome, python
from tests.fuzz.place import base

STEPS = 4
"""Of the first iteration: two epochs of two mini-batches."""
SECONDS, MEBIBYTES = 60.0, 2500.0

RULE = """
import sys
from pathlib import Path

HERE = Path(__file__).parent
bad = None

class Own(BaseException):
    def __str__(self):
        raise ValueError("there is no saying it")

def fails(a):
    FAULT

def one(a):
    return fails(a) if bad == (a.prompt, a.response) else float(len(a.response))

def score(answers):
    global bad
    if len(answers) > 1:
        with (HERE / "calls").open("a") as calls:
            calls.write("x")
        if len((HERE / "calls").read_text()) > 1:
            bad = answers[2].prompt, answers[2].response
            first = next(i for i, a in enumerate(answers, 1) if (a.prompt, a.response) == bad)
            (HERE / "number").write_text(str(first))
    return RESULT
"""

RAISED = {
    "KeyError": ("return {}['no such key']", "KeyError: 'no such key'"),
    "sys.exit(5)": ("sys.exit(5)", "SystemExit: 5"),
    "sys.exit(0)": ("sys.exit(0)", "SystemExit: 0"),
    "a kind of its own that cannot be shown": ("raise Own", "Own"),
    "recursion": ("return fails(a)", "RecursionError: maximum recursion depth exceeded"),
    "MemoryError": ("raise MemoryError", "MemoryError"),
    "two lines and escapes": (r"raise ValueError('a\n\x1b[2Jb')", r"ValueError: a \x1b[2Jb"),
}
"""What it does at the third answer of the second iteration, and how that is shown."""
GIVEN = {
    "NaN": ("return float('nan')", "nan"),
    "infinity": ("return float('inf')", "inf"),
    "text": ("return 'good'", "'good'"),
    "None": ("return None", "None"),
}
COUNTED = {
    "one too few": ("[one(a) for a in answers][bad is not None :]", "8 scores, one per answer, got 7"),
    "one too many": ("[0.0] * (len(answers) + (bad is not None))", "8 scores, one per answer, got 9"),
    "None for all": (
        "None if bad else [one(a) for a in answers]",
        "a list of 8 scores, one per answer, got None",
    ),
    "text for all": (
        "'8 scores' if bad else [one(a) for a in answers]",
        "a list of 8 scores, one per answer, got '8 scores'",
    ),
}
IMPORTED = {
    "KeyError": ("{}['no such key']", " mine:score: importing 'mine' raised KeyError: 'no such key'; correct it"),
    "sys.exit(5)": ("import sys; sys.exit(5)", " mine:score: importing 'mine' raised SystemExit: 5; correct it"),
    "sys.exit(0)": ("import sys; sys.exit(0)", " mine:score: importing 'mine' raised SystemExit: 0; correct it"),
    "a syntax error": ("def score(answers)", " mine:score: importing 'mine' raised SyntaxError: expected ':'"),
    "a missing module": ("import no_such_module", ": cannot import 'mine' (No module named 'no_such_module')"),
}


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    first = True
    for name, rule, says, called in _faults():
        (own / "mine.py").write_text(rule)
        (own / "number").unlink(missing_ok=True)
        seen = _train(shared, own, "run")
        number = (own / "number").read_text() if (own / "number").exists() else "?"
        wanted = {
            "bad input, status 2": seen.status == 2,
            f"says {says}": f"rto_fast: error: rto.score.rule{says.replace('NUMBER', number)}" in seen.last,
            "one line": seen.text.count("rto_fast: error:") == 1 and "Traceback" not in seen.text,
            f"{STEPS} steps are kept": _steps(own / "run") == list(range(1, STEPS + 1)),
            f"at most {SECONDS:g} s, {MEBIBYTES:g} MiB": seen.seconds < SECONDS and seen.mebibytes < MEBIBYTES,
        }
        if called and not first:
            wanted["it had gone on from where the fault before had stopped it"] = _goes_on(seen)
        first = False
        yield Outcome(name, seen, wanted)

    (own / "mine.py").write_text(_rule(result="[float(len(a.response)) for a in answers]"))
    mended = _train(shared, own, "run")
    whole = _train(shared, own, "whole")
    yield Outcome("the rule is mended", mended, {"status 0": mended.status == 0, "goes on": _goes_on(mended)})
    steps = [_steps(own / name) for name in ("run", "whole")]
    wanted = {
        "status 0": whole.status == 0,
        "no step is lost or made twice": steps[0] == steps[1] == list(range(1, 2 * STEPS + 1)),
        "the same bits": all(_same(own, stage) for stage in ("sft", "dpo", "rto")),
    }
    yield Outcome("the same without a fault", whole, wanted)


def _faults() -> Iterator[tuple[str, str, str, bool]]:
    """What it is, the rule, what is said of it, and whether the rule is called before it fails."""
    mine = " mine:score: "
    for name, (fault, says) in RAISED.items():
        where = " for answer NUMBER of 8; correct it, the same command then goes on"
        yield f"raises midway: {name}", _rule(fault), f"{mine}raised {says}{where}", True
    for name, (fault, says) in GIVEN.items():
        where = " for answer NUMBER of 8"
        yield (
            f"gives midway: {name}",
            _rule(fault),
            f"{mine}every score must be a finite number, got {says}{where}",
            True,
        )
    for name, (result, says) in COUNTED.items():
        yield f"gives midway: {name}", _rule(result=result), f"{mine}wanted {says}", True
    for name, (source, says) in IMPORTED.items():
        yield f"on import: {name}", source, says, False


def _rule(fault: str = "return 0.0", result: str = "[one(a) for a in answers]") -> str:
    return RULE.replace("FAULT", fault).replace("RESULT", result)


def _train(shared: Path, own: Path, name: str) -> Ended:
    """No checkpoint is due by itself in so short a run."""
    flags = ("--rto.score.rule", "mine:score", "--rto.reward.beta-3", "1.0", "--eval.prompts", "0")
    return python("rto_fast.train", *base(shared, own / name), *flags, where=own)


def _steps(run: Path) -> list[int]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["stage"] == "rto"]


def _goes_on(seen: Ended) -> bool:
    return f"rto: going on from step {STEPS} " in seen.text and "sft: going on" not in seen.text


def _same(own: Path, stage: str) -> bool:
    files = [own / name / stage / "model.safetensors" for name in ("run", "whole")]
    got, wanted = ({key: array.tobytes() for key, array in load_file(file).items()} for file in files)
    return got == wanted
