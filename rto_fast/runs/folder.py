"""A run's output folder: one configuration, written beside its results."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import tomli_w

from rto_fast.config import Config
from rto_fast.config.depends import STAGES, flat, usable
from rto_fast.config.recipe import build, plain, read_toml
from rto_fast.config.trust import forgotten
from rto_fast.files.disk import appending, is_partial, no_links, remove_partials, write_whole, writing
from rto_fast.files.text import one_line, without_secrets
from rto_fast.runs.export import is_finished
from rto_fast.runs.settings import SETTINGS, is_run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the name stays, and is asked for

FREE = {
    *("device", "log_every", "stages", "output", "workspace_mb", "microbatch_rows", "resume", "compare.seeds"),
    *("guards.stall_minutes", "rto.score.server", "rto.score.timeout", "rto.score.retries", "rto.score.batch"),
    *("data.allow_dropped", "memory", "offload.frozen", "offload.optimizer", "model.gradient_checkpointing"),
}
"""Settings that may change between two calls on one folder: they do not change what is computed."""

LOCK = ".lock"
_OWN = {"effective_ids": True} if os.access in os.supports_effective_ids else {}


def claim(config: Config) -> Path:
    """Make the run's folder and write config.toml, or go on in a folder that the same configuration made."""
    folder = check(config)
    _make(folder)
    if not is_run(folder):
        # half a configuration would make the folder nobody's
        write_whole(folder / SETTINGS, tomli_w.dumps(shown(config)))
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output: {str(folder)!r} cannot be made ({error}); name another with --output") from None


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process runs in the folder, which is made where it is missing; ValueError when one does.

    The lock is the operating system's: it ends with its process, however that ends, and no child inherits it. Where
    the file system has none, nothing is kept out.
    """
    _make(folder)
    with writing(folder / LOCK):
        file = appending(folder / LOCK, also_read=True)
    with file:
        if fcntl is not None and _lock(file, folder):
            for place in (folder, *folder.glob("evaluation/**/")):
                remove_partials(place)
        yield


def _lock(file: TextIO, folder: Path) -> bool:
    """Whether the lock is ours; ValueError when another process has it. False where there are none."""
    own = os.fstat(file.fileno()).st_nlink == 1  # else it is another name of a file that may be anybody's
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = (own and one_line(file.read(200))) or "another process"
        raise ValueError(
            f"output: {folder} is being written by {holder}; wait until that run ends, or name another with --output"
        ) from None
    except OSError:  # no locks on this file system
        return False
    if own:
        with writing(folder / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
    return True


def shown(config: Config) -> dict[str, Any]:
    """The settings as config.toml holds them: a password within a URL is none of them."""
    return plain(config, lambda value: without_secrets(value) if isinstance(value, str) else value)


def check(config: Config) -> Path:
    """The run's folder, untouched. Raises ValueError when it belongs to another run or holds something else."""
    folder = config.folder
    written = folder / SETTINGS
    try:
        _reachable(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"output: {str(folder)!r} cannot be a folder ({error}); name another with --output") from None
    if not written.is_file():
        # a run that died while it wrote its first file has left its lock and the beginning of that
        others = not folder.is_dir() or any(p.name != LOCK and not is_partial(p.name) for p in folder.iterdir())
        if folder.exists() and others:
            raise ValueError(f"output: {folder} exists and is no run of rto_fast; name another with --output")
    if folder.exists():
        no_links(*folder.iterdir())
    if not written.is_file():
        return folder
    try:
        before = read_toml(written, f"output: {written}")
    except ValueError as error:
        raise ValueError(f"{error}; name another folder with --output, or delete it") from None
    changed = _differences(flat(before), flat(shown(config)))
    allowed = forgotten(flat(before), config)
    if allowed and len(changed) == len(allowed):
        raise ValueError(
            f"output: {folder} was made with {' '.join(allowed.values())}, which counts for one command at a time; "
            "read that code, then add it to this one"
        )
    if changed:
        some = "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")
        raise ValueError(f"output: {folder} holds another run ({some}); {_way_on(folder, before, config)}")
    return folder


def finished(folder: Path) -> list[str]:
    """The stages that a run's folder has finished, in their order."""
    return [stage for stage in STAGES if is_finished(folder / stage)]


def _way_on(folder: Path, before: dict[str, Any], config: Config) -> str:
    """What to do with a folder of other settings, so that what it has finished is not trained again."""
    try:
        old = build(Config, before, "")
    except ValueError:  # of another version, or damaged
        return "name another with --output, or delete it"
    if not (done := finished(folder)):
        return "name another with --output, or delete it: nothing in it is finished"
    if not (same := usable(done, old, config)):
        return f"name another with --output, or delete it: its finished {' and '.join(done)} would come out otherwise"
    models = " ".join(f"--{stage}.model {folder / stage}" for stage in same if stage in ("sft", "dpo", "rm"))
    by_hand = f" (or give {models})" if models else ""
    return (
        f"name another with --output and add --from {folder}, which takes over its finished {' and '.join(same)}"
        f"{by_hand}, or delete it"
    )


def _reachable(folder: Path) -> None:
    """Raises OSError or ValueError where no folder is and none could be made."""
    str(folder).encode()
    if os.path.lexists(folder):
        folder.stat()  # a link that leads nowhere, or to itself
        return
    parent = folder.parent
    while not os.path.lexists(parent):
        folder, parent = parent, parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK, **_OWN):
        raise OSError(f"nothing can be written in {str(parent)!r}")
    if len(os.fsencode(folder.name)) > os.pathconf(parent, "PC_NAME_MAX"):
        raise OSError("its name is too long")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    keys = [k for k in {**before, **now} if k not in FREE and not k.startswith("checkpoint.")]
    return [f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in keys if before.get(k) != now.get(k)]
