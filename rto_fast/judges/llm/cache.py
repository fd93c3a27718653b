"""What the judge has answered, on disk: every answer is there at once, and a killed run loses none."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from rto_fast.files.regular import irregular


class Cache:
    """Replies by what was asked: sha256 of the judge's model, its settings and the prompt.

    One SQLite file; several runs may share it. The address of the judge and its key are no part of it.
    """

    def __init__(self, path: Path, model: str, settings: Mapping[str, object]):
        self.path, self.model = path, model
        self.settings = json.dumps(dict(settings), sort_keys=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if found := irregular(path):
            raise ValueError(
                f"llm.cache: {path} is {found}, no cache of judgements; name another file with --llm.cache"
            )
        try:
            self.file = sqlite3.connect(path, timeout=30)
            with self.file:
                self.file.execute(
                    "CREATE TABLE IF NOT EXISTS replies "
                    "(key TEXT PRIMARY KEY, model TEXT, settings TEXT, prompt TEXT, reply TEXT)"
                )
        except sqlite3.Error as error:
            raise ValueError(
                f"llm.cache: {path} is no cache of judgements ({error}); name another file with --llm.cache"
            ) from None

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def key(self, prompt: str) -> str:
        return hashlib.sha256(json.dumps([self.model, self.settings, prompt]).encode()).hexdigest()

    def get(self, prompt: str) -> str | None:
        """ValueError when the file is damaged."""
        try:
            row = self.file.execute("SELECT reply FROM replies WHERE key = ?", (self.key(prompt),)).fetchone()
        except sqlite3.Error as error:
            raise ValueError(f"llm.cache: {self.path} cannot be read ({error}); delete it, or name another") from None
        return None if row is None else row[0]

    def put(self, prompt: str, reply: str) -> None:
        """On disk when it returns. OSError when it cannot be written."""
        row = (self.key(prompt), self.model, self.settings, prompt, reply)
        try:
            with self.file:
                self.file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise OSError(f"llm.cache: {self.path} cannot be written ({error}); free some space, then go on") from None
