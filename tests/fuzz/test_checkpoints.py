"""Damaged checkpoints are passed over, also those whose digests have been made to fit; damaged metrics are dropped."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from rto_fast.config import CheckpointConfig, OptimConfig
from rto_fast.training import loop
from rto_fast.training.checkpoint import Checkpoints
from rto_fast.training.metrics import StageLog

DEEP = "[" * 100_000
TENSORS = {"0": torch.ones(3), "1": torch.zeros(2, 2)}
PARTS = {"weights": TENSORS, "optimizer": {"0.step": torch.tensor(1.0)}, "stage": {}}


def write(name: str, content: str | bytes):
    def act(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return act


def changed(name: str, change):
    def act(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return act


def state(**values):
    return changed("state.json", lambda content: content.update(values))


def piped(name: str):
    def act(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return act


DAMAGES = {
    "manifest empty": write("manifest.json", ""),
    "manifest a list": write("manifest.json", "[]"),
    "manifest null": write("manifest.json", "null"),
    "manifest nested": write("manifest.json", DEEP),
    "manifest not UTF-8": write("manifest.json", b"\xff"),
    "manifest without files": write("manifest.json", "{}"),
    "manifest of numbers": changed("manifest.json", lambda m: m.update({"state.json": 5})),
    "manifest that leads outside": changed("manifest.json", lambda m: m.update({"../../x": "0"})),
    "manifest of a parent": changed("manifest.json", lambda m: m.update({"..": "0"})),
    "manifest of an absolute path": changed("manifest.json", lambda m: m.update({"/etc/passwd": "0"})),
    "manifest of an absent file": changed("manifest.json", lambda m: m.update({"x.safetensors": "0"})),
    "manifest without the state": changed("manifest.json", lambda m: m.pop("state.json")),
    "manifest without the weights": changed("manifest.json", lambda m: m.pop("weights.safetensors")),
    "weights a pipe": piped("weights.safetensors"),
    "state a pipe": piped("state.json"),
    "manifest a pipe": piped("manifest.json"),
    "a flipped digit of a digest": changed("manifest.json", lambda m: m.update({"state.json": "0" * 64})),
}
FITTING = {
    "state a list": write("state.json", "[]"),
    "state a number": write("state.json", "7"),
    "state nested": write("state.json", DEEP),
    "state of another step": state(step=8),
    "state of a negative step": state(step=-2),
    "state of a huge step": state(step=10**400),
    "state of a step in words": state(step="two"),
    "state of a NaN step": state(step=float("nan")),
    "state of a true step": state(step=True),
    "state without a step": changed("state.json", lambda s: s.pop("step")),
    "state without progress": changed("state.json", lambda s: s.pop("progress")),
    "state whose progress is a list": state(progress=[]),
    "state whose progress is text": state(progress={"iteration": "1"}),
    "weights cut": lambda folder: write("weights.safetensors", (folder / "weights.safetensors").read_bytes()[:-3])(
        folder
    ),
    "weights empty": write("weights.safetensors", b""),
    "weights a pickle": write("weights.safetensors", b"\x80\x04\x95"),
    "weights with an absurd header": write("weights.safetensors", b"\xff" * 16),
    "weights a header of a list": write("weights.safetensors", b"\x02" + b"\0" * 7 + b"[]"),
}


def fit(folder: Path) -> None:
    """Make the digests those of the damaged files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest}
    (folder / "manifest.json").write_text(json.dumps(digests))


@pytest.mark.parametrize("name", [*DAMAGES, *FITTING])
def test_a_damaged_checkpoint_is_passed_over(name, tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=3))
    for step in (1, 2):
        checkpoints.save(step, PARTS, {"progress": {"place": step}})
    checkpoints.wait()
    newest = tmp_path / "step-00000002"
    (DAMAGES | FITTING)[name](newest)
    if name in FITTING:
        fit(newest)
    saved = checkpoints.newest()
    assert (
        saved.step == 1
        and saved.facts == {"progress": {"place": 1}}
        and torch.equal(saved.parts["weights"]["0"], TENSORS["0"])
    )
    (said,) = checkpoints.damaged
    assert str(newest) in said and "\n" not in said and len(said) <= 310


def test_strange_names_among_the_checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, CheckpointConfig())
    checkpoints.save(3, PARTS, {"progress": {}})
    checkpoints.wait()
    for name in ("step-", "step-x", "step-99999999", "step-00000009.partial", "steps"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file")
    (tmp_path / "step-00000008").symlink_to(tmp_path / "step-00000008")
    assert checkpoints.newest().step == 3 and len(checkpoints.damaged) == 4


def others() -> dict[str, dict]:
    """Parts that are whole, and belong to no state of this model."""
    weights, moments = PARTS["weights"], PARTS["optimizer"]
    return {
        "no moments": {"weights": weights, "stage": {}},
        "fewer weights": {**PARTS, "weights": {"0": weights["0"]}},
        "more weights": {**PARTS, "weights": {**weights, "2": torch.ones(1)}},
        "other names": {**PARTS, "weights": {"a": weights["0"], "b": weights["1"]}},
        "other shapes": {**PARTS, "weights": {"0": torch.ones(4), "1": weights["1"]}},
        "moments of no weight": {**PARTS, "optimizer": {**moments, "9.exp_avg": torch.ones(3)}},
        "moments of another shape": {**PARTS, "optimizer": {**moments, "0.exp_avg": torch.ones(4)}},
        "moments without a number": {**PARTS, "optimizer": {"x.step": torch.tensor(1.0)}},
    }


@pytest.mark.parametrize("name", others())
def test_a_state_of_another_model_is_named(name):
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([module.b, module.a])
    state = loop.TrainState(optimizer, OptimConfig())
    before = [p.clone() for p in (module.b, module.a)]
    with pytest.raises(ValueError, match="checkpoint: its weights are those of another model; start over"):
        state.restore(1, others()[name], {"progress": {}})
    assert all(torch.equal(p, q) for p, q in zip((module.b, module.a), before, strict=True))


LINES = [
    b'{"stage": "sft", "st',
    b'{"stage": "rto", "step": "9"}',
    b'{"step": 1}',
    b'{"stage": "rto"}',
    b"[1, 2]",
    b"null",
    b"7",
    b"\xff\xfe\x00",
    b'{"stage": "rto", "step": 9, "x": "\xff"}',
    b"\x00" * 50,
    DEEP.encode(),
    b"9" * 10_000,
    b'{"stage": "rto", "step": 9}',
    b"",
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:24]))
def test_damaged_lines_of_metrics_are_dropped(line, tmp_path):
    good = [b'{"stage": "dpo", "step": 7}', b'{"stage": "rto", "step": 1}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], line, good[1], line]))
    with StageLog(tmp_path, "rto", 4, done=1) as log:
        log(2, {"loss": 0.5})
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert lines[:2] == good and json.loads(lines[2])["step"] == 2 and len(lines) == 3
