"""Writing where the disk may refuse and a folder may hold anything: whole or not at all, and never through a link.

Whatever is not finished yet has a random name of one form (`is_partial`): nobody can have put a link there, and what
a killed process left of it can be told from everything else.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError

from rto_fast.files.regular import Irregular, irregular

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """What the disk or its permissions refuse inside becomes an OSError that names `what`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        in_the_way = isinstance(error, Irregular) or getattr(error, "errno", None) == errno.ELOOP  # a link
        fix = "remove it" if in_the_way else "free disk space or fix the folder's permissions"
        raise OSError(f"{what} could not be written ({said}); {fix}, then the same command goes on") from error


def write_whole(path: Path, text: str) -> None:
    """A text file under its name only when it is whole: what stood there before stays when the disk refuses."""
    content = text.encode()
    with writing(path), replacing(path) as partial:
        partial.write_bytes(content)


def replacing(path: Path) -> contextlib.AbstractContextManager[Path]:
    """An empty file to write in the place of `path`; it takes that name, forced to the disk, where nothing was raised.

    A link of that name is replaced and not followed. OSError where something that is no file has the name.
    """
    if path.exists() and not path.is_file():
        raise Irregular(errno.EINVAL, "it is there and is no file")
    return _taking_place(path, lambda partial: partial.touch(exist_ok=False))


def new_folder(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """An empty folder to fill in the place of `folder`; it takes that name, forced to the disk with all its files, in
    place of what stood there, where nothing was raised. Parents are made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return _taking_place(folder, lambda partial: partial.mkdir())


@contextlib.contextmanager
def _taking_place(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    partial = path.with_name(f".rto_fast-{secrets.token_hex(8)}.partial")
    make(partial)
    try:
        yield partial
        for written in (*partial.rglob("*"), partial):
            force(written)
        if partial.is_dir():
            remove(path)
        os.replace(partial, path)
        force(path.parent)
    except BaseException:
        remove(partial)
        raise


def appending(path: Path, also_read: bool = False) -> TextIO:
    """A text file to add lines to, made where it is missing. OSError when it is a link, or no regular file."""
    if found := irregular(path):
        raise Irregular(errno.EINVAL, f"it is {found}, not a regular file", str(path))
    flags = (os.O_RDWR if also_read else os.O_WRONLY) | os.O_APPEND | os.O_CREAT | _NO_LINK
    return open(os.open(path, flags, 0o666), "a+" if also_read else "a", encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a file, a link (and not what it leads to) or a folder with all that is in it, as far as that can be."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)  # follows no link either


def is_partial(name: str) -> bool:
    """Whether a file or folder of that name is one that was not finished."""
    return re.fullmatch(r"\.rto_fast-[0-9a-f]{16}\.partial", name) is not None


def remove_partials(folder: Path) -> None:
    """Delete what a killed process has left unfinished in a folder; nobody else may be writing there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_partial(path.name):
            remove(path)


def no_links(*paths: Path) -> None:
    """ValueError when one of them is a link or holds one: what is written or deleted there would be somewhere else."""
    for path in paths:
        inside = (Path(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files))
        for found in (path, *inside):
            if found.is_symlink():
                raise ValueError(
                    f"output: {found} is a link, which nothing is written or deleted through; remove it, or name "
                    "another folder with --output"
                )


def force(path: Path) -> None:
    """Make a file, or a folder's list of files, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
