"""Writing where the disk may refuse: whole or not at all, and a sentence that says what to do."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """What the disk or its permissions refuse inside becomes an OSError that names `what`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or error
        raise OSError(
            f"{what} could not be written ({said}); free disk space or fix the folder's permissions, then the same "
            "command goes on"
        ) from error


def write_whole(path: Path, text: str) -> None:
    """A text file under its name only when it is whole: what stood there before stays when the disk refuses."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
