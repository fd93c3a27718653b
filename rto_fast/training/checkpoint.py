"""Checkpoints of a running stage: written whole or not at all, read only when every byte is what was written.

    <folder>/step-00000120/
        weights.safetensors  optimizer.safetensors  stage.safetensors  state.json
        manifest.json        sha256 of each of them
    <folder>/best.json       which of them was the best so far, where a metric was named for it

A checkpoint is made under another name, forced to the disk and renamed; older ones go once the new one stands. Files
are safetensors and JSON: nothing in them is ever executed.
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rto_fast.config import CheckpointConfig
from rto_fast.files.digests import MANIFEST, seal, sha256, stated
from rto_fast.files.disk import new_folder, remove, remove_partials
from rto_fast.files.foreign import read_object
from rto_fast.files.text import one_line
from rto_fast.training import mesh
from rto_fast.training.best import BestOf
from rto_fast.training.resources import available_memory

Parts = dict[str, dict[str, Tensor]]
"""Tensors by file and name."""


class Saved(NamedTuple):
    step: int
    parts: Parts
    facts: dict[str, Any]
    """What state.json holds."""


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """The checkpoints of one stage, and when the next is due."""

    def __init__(self, folder: Path, config: CheckpointConfig):
        self.folder, self.config = folder, config
        if mesh.is_first():
            remove_partials(folder)
        self.last_step, self.last_time = 0, time.monotonic()
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        """The checkpoint that is being written."""
        self.best = BestOf(folder, config.best, config.best_is) if config.best else None
        self.damaged: list[str] = []
        """What was found wrong with checkpoints that `newest` passed over."""

    def due(self, step: int) -> bool:
        """Whether `step` finished steps, or the minutes since the last checkpoint, ask for another."""
        by_steps = self.config.every and step - self.last_step >= self.config.every
        return bool(by_steps or 0 < 60 * self.config.minutes <= time.monotonic() - self.last_time)

    def save(self, step: int, parts: Parts, facts: dict[str, Any]) -> None:
        """Copy the state, and write it as a checkpoint while training goes on; all but the newest `keep` then go.

        OSError when the disk refused this one, or, in `wait` and the next `save`, the one before: older ones stay.
        Where the copies would take more than half of the memory that is left, nothing is copied and writing waits.
        """
        if not mesh.is_first():  # every rank's state is the same
            self.last_step = step
            return
        self.wait()
        tensors = {name: {key: x.detach() for key, x in part.items()} for name, part in parts.items()}
        size = sum(x.numel() * x.element_size() for part in tensors.values() for x in part.values())
        self.last_step, self.last_time = step, time.monotonic()
        state = json.dumps({"step": step, **facts}, indent=1)
        if 2 * size > available_memory(torch.device("cpu")):
            self._write(step, tensors, state)
        else:
            copies = {name: {key: _on_host(x) for key, x in part.items()} for name, part in tensors.items()}
            self.pending = self.writer.submit(self._write, step, copies, state)

    def report(self, metrics: dict[str, float]) -> None:
        """Hear what a step has measured, before that step can be saved: it may make the newest checkpoint the best."""
        if self.best is not None and self.best.name in metrics and mesh.is_first():
            self.wait()  # a checkpoint is there before it is named
            self.best.report(self.last_step, metrics)

    def wait(self) -> None:
        """Until what was last saved is on the disk. Raises what went wrong there."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def __exit__(self, kind: type | None, *_: object) -> None:
        """What is being written is finished first; its failure is raised unless something else is on its way."""
        self.writer.shutdown()
        if kind is None:
            self.wait()

    def _write(self, step: int, parts: Parts, state: str) -> None:
        final = self._path(step)
        try:
            with new_folder(final) as partial:
                for name, tensors in parts.items():
                    file = partial / f"{name}.safetensors"
                    save_file({key: x.cpu().contiguous() for key, x in tensors.items()}, file)
                (partial / "state.json").write_text(state, encoding="utf-8")
                seal(partial)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"checkpoint: {final} could not be written ({error}); free disk space or fix the folder's permissions, "
                "then the same command goes on from the checkpoint before"
            ) from error
        best = self.best.found if self.best is not None else None
        for old in self._all()[self.config.keep :]:
            if best is None or old != self._path(best.step):
                remove(old)

    def newest(self) -> Saved | None:
        """The newest checkpoint whose files are whole, None when there is none."""
        for path in self._all():
            try:
                saved = _read(path)
                self._go_on_from(saved.step)
                return saved
            except (OSError, ValueError, SafetensorError) as error:
                self.damaged.append(one_line(f"{path}: {error}", 300))
        self._go_on_from(0)
        return None

    def read(self, step: int) -> Saved:
        """The checkpoint of that step and no other. ValueError when it is not whole."""
        path = self._path(step)
        try:
            return _read(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(
                f"checkpoint: {path} is damaged ({error}); the same command with --checkpoint.best None goes "
                "on without it"
            ) from error

    def forget(self) -> None:
        """Remove them all: the stage is finished, or starts over."""
        self.wait()
        remove(self.folder)
        self._go_on_from(0)

    def _go_on_from(self, step: int) -> None:
        self.last_step = step
        if self.best is not None:
            self.best.back_to(step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _all(self) -> list[Path]:
        """Finished checkpoints, the newest first."""
        paths = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((p for p in paths if p.suffix != ".partial"), reverse=True)


def _on_host(x: Tensor) -> Tensor:
    """A copy of its own: the optimizer goes on changing the original."""
    return x.cpu() if x.is_cuda else x.clone()


def _read(path: Path) -> Saved:
    manifest = stated(path)
    for name, digest in manifest.items():
        if sha256(path / name) != digest:
            raise ValueError(f"{name} is not what was written")
    facts = read_object(path / "state.json", "it") if "state.json" in manifest else {}
    step, progress = facts.pop("step", None), facts.get("progress")
    if type(step) is not int or path.name != f"step-{step:08}":
        raise ValueError(f"state.json holds another step than its folder, {step!r}")
    if not isinstance(progress, dict) or not all(type(x) in (int, float) for x in progress.values()):
        raise ValueError("state.json must hold the stage's progress, numbers by name")
    parts = {Path(n).stem: load_file(path / n) for n in manifest if n.endswith(".safetensors")}
    if "weights" not in parts:
        raise ValueError(f"{MANIFEST} does not name weights.safetensors")
    return Saved(step, parts, facts)
