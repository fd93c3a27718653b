"""What was written, to the byte: manifest.json of a folder states the sha256 of files in it.

That finds damage, a flipped bit or a file of another run; it is no signature.
"""

import hashlib
import json
from pathlib import Path

from rto_fast.files.disk import write_whole
from rto_fast.files.foreign import read_object
from rto_fast.files.regular import open_regular

MANIFEST = "manifest.json"
STAGE = "stage.json"
"""Marks the folder of a finished stage: other people's folders may hold a manifest.json of their own."""

_known: dict[tuple[int, ...], str] = {}
"""Digests by device, inode, size and times of the last change."""


class Damaged(ValueError):
    """A file is not what was written there."""


def sha256(path: Path) -> str:
    """Of the content. A file that nobody has written to since this process read it is not read again. OSError for what
    is no regular file."""
    about = path.stat()
    key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if key not in _known:
        with open_regular(path) as file:
            _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _known[key]


def seal(folder: Path) -> None:
    """Write the manifest of every file that the folder and those within hold."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    _write(folder, {path.relative_to(folder).as_posix(): sha256(path) for path in files})


def record(folder: Path, *names: str) -> None:
    """State the digests of files that were just written, beside those of others that the manifest has."""
    try:
        before = stated(folder)
    except ValueError:  # damaged itself
        before = {}
    _write(folder, before | {name: sha256(folder / name) for name in names})


def write_recorded(path: Path, text: str) -> None:
    """`write_whole`, and its digest in the manifest beside it."""
    write_whole(path, text)
    record(path.parent, path.name)


def stated(folder: Path) -> dict[str, str]:
    """The digests of the folder's manifest by name, none without a manifest. ValueError for a manifest that is none."""
    if not (folder / MANIFEST).exists():
        return {}
    found = read_object(folder / MANIFEST, "it")
    for name in found:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{MANIFEST} names a file outside its folder, {name!r}")
    return found


def first_damaged(folder: Path) -> str | None:
    """The first file that is not what the manifest states, None when all are. ValueError, OSError as `stated`."""
    return next((name for name, digest in stated(folder).items() if not is_whole(folder / name, digest)), None)


def is_whole(path: Path, digest: str) -> bool:
    """Whether the file is there and has the digest."""
    try:
        return sha256(path) == digest
    except OSError:
        return False


def check_stage(folder: Path, field: str) -> None:
    """Damaged, one sentence with `field`, the file and the fix, when a finished stage is not what was exported.

    Any other folder, and a stage of a version that wrote no digests, passes.
    """
    if not (folder / STAGE).is_file():
        return
    try:
        name = first_damaged(folder)
    except ValueError:
        name = MANIFEST
    if name is not None:
        raise Damaged(
            f"{field}: {str(folder / name)!r} is damaged, it is not what was written there; delete the folder "
            f"{str(folder)!r} and give the command that made it again, put a whole copy in its place, or, if it was "
            f"changed on purpose, delete its {MANIFEST}"
        )


def _write(folder: Path, digests: dict[str, str]) -> None:
    write_whole(folder / MANIFEST, json.dumps(digests, indent=1))
