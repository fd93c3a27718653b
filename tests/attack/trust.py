"""Code that a run folder, a recipe or a model brings along is never run because a file asks for it."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rto_fast.files.digests import MANIFEST, seal
from tests.attack.command import Ended, Outcome, copied, done, python, refused
from tests.fuzz.place import base
from tests.tiny_run import SETTINGS

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


def score(answers):
    return [float(len(a.response)) for a in answers]
"""
RULE = "hostile:score"
GRANTED = ("--model.trust-remote-code", "True", "--rto.score.rule", RULE)
STAGES = ("--stages", "sft", "grpo")
TOOLS = {
    "decode": ("--num-prompts", "2", "--beams", "1", "--best-of", "1", "--strengths", "0"),
    "credit": ("--rows", "1"),
    "evaluate": ("--num-prompts", "2"),
}


def attacks(shared: Path, own: Path) -> Iterator[Outcome]:
    # a rule's module is looked for in the working folder
    start = partial(python, where=own, HF_MODULES_CACHE=str(own / "modules"))
    (own / "hostile.py").write_text(CODE.format(mark=str(own / "rule.mark")))
    shutil.copytree(shared / "model", own / "model")
    _give_code(own, own / "model")
    yield from _run_folders(shared, own, start)
    yield from _recipes(shared, own, start)
    yield from _goes_on(shared, own, start)


def _run_folders(shared: Path, own: Path, start: partial[Ended]) -> Iterator[Outcome]:
    asks, hides, rule = (copied(shared, own / name) for name in ("asks", "hides", "rule"))
    for run in (asks, hides):
        settings = (run / "config.toml").read_text().replace(str(shared / "model"), str(own / "model"))
        wanted = "true" if run is asks else "false"
        (run / "config.toml").write_text(settings.replace("code = false", f"code = {wanted}"))
        for stage in ("sft", "dpo", "rto"):
            _give_code(own, run / stage)
            (run / stage / MANIFEST).unlink()
            seal(run / stage)  # what a stranger writes has digests that fit
    for run in (asks, rule):
        settings = (run / "config.toml").read_text().replace("beta_3 = 0.0", "beta_3 = 1.0")
        (run / "config.toml").write_text(settings.replace("[rto.score]", f'[rto.score]\nrule = "{RULE}"'))
    says = {asks: "then add --trust-remote-code to this command", hides: "brings Python code of its own"}
    for tool, words in TOOLS.items():
        for run, said in says.items():
            seen = start(f"rto_fast.{tool}", "--run", run, "--device", "cpu", *words)
            yield Outcome(f"{tool} of a run that {run.name} for trust", seen, refused(seen, said) | _none_ran(own))
        seen = start(f"rto_fast.{tool}", "--run", rule, "--device", "cpu", *words)
        yield Outcome(f"{tool} of a run with a rule", seen, done(seen) | _none_ran(own))
        seen = start(f"rto_fast.{tool}", "--run", asks, "--device", "cpu", "--trust-remote-code", *words)
        yield Outcome(f"control: {tool} with trust on its command line", seen, done(seen) | _ran(own, "model"))
    seen = start("rto_fast.report", asks, hides, rule)
    yield Outcome("report of all three", seen, done(seen) | _none_ran(own))


def _recipes(shared: Path, own: Path, start: partial[Ended]) -> Iterator[Outcome]:
    model = f'\n[model]\npath = "{own / "model"}"\ntrust_remote_code = true\n'
    files = {"trust.toml": SETTINGS + model, "rule.toml": SETTINGS + f'\n[rto.score]\nrule = "{RULE}"\n'}
    files |= {f"extends-{name}": f'extends = "{own / name}"\n' for name in files}
    for name, text in files.items():
        (own / name).write_text(text)
        flag = "--model.trust-remote-code True" if "trust" in name else f"--rto.score.rule {RULE}"
        # without a rule grpo has no score
        given = ("--model.path", own / "model") if "trust" in name else STAGES
        for more in ((), ("--preflight-only",)):
            words = [*base(shared, own / "out"), "--recipe", own / name, *given, *more]
            seen = start("rto_fast.train", *words)
            wanted = refused(seen, f"recipe {own / name}: ", "which no file can allow", f"add {flag} ")
            wanted |= _none_ran(own) | {"no folder was made": not (own / "out").exists()}
            yield Outcome(" ".join(["train with", name, *more]), seen, wanted)
    words = [*base(shared, own / "out"), "--recipe", own / "trust.toml", "--model.path", own / "model", *STAGES]
    seen = start("rto_fast.train", *words, *GRANTED, "--preflight-only")
    yield Outcome("control: the flags allow it", seen, done(seen) | _ran(own, "model", "rule"))


def _goes_on(shared: Path, own: Path, start: partial[Ended]) -> Iterator[Outcome]:
    run = own / "granted"
    words = ["rto_fast.train", *base(shared, run), "--model.path", own / "model"]
    seen = start(*words, *STAGES, *GRANTED, until=(run / "sft" / "stage.json").exists)
    killed = {"killed midway": seen.status == -9 and not (run / "grpo").exists()}
    yield Outcome("control: a run with trust, killed", seen, killed | _ran(own, "model", "rule"))
    missing = {"--model.trust-remote-code True": GRANTED[2:], f"--rto.score.rule {RULE}": GRANTED[:2]}
    for said, given in ({" ".join(GRANTED): ()} | missing).items():
        # without a rule grpo has no score, which would be the error
        seen = start(*words, *(STAGES if RULE in given else STAGES[:2]), *given)
        wanted = refused(seen, f"was made with {said}, which counts for one command at a time")
        yield Outcome(f"that run goes on without {said}", seen, wanted | _none_ran(own))
    seen = start(*words, *STAGES, *GRANTED)
    yield Outcome("control: it goes on with both", seen, done(seen, "Finished in") | _ran(own, "model", "rule"))


def _give_code(own: Path, model: Path) -> None:
    (model / "own.py").write_text(CODE.format(mark=str(own / "model.mark")))
    settings = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    settings |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (model / "config.json").write_text(json.dumps(settings))


def _none_ran(own: Path) -> dict[str, bool]:
    return {"no code ran": not _marks(own)}


def _ran(own: Path, *wanted: str) -> dict[str, bool]:
    return {"the code ran": _marks(own) == set(wanted)}


def _marks(own: Path) -> set[str]:
    """Whose code has left its mark since the last look."""
    marks = list(own.glob("*.mark"))
    for mark in marks:
        mark.unlink()
    return {mark.stem for mark in marks}
