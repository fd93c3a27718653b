"""A policy's measured answers on disk: a call that was cut short, or asks another judge, samples nothing twice."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rto_fast.evaluate.policies import Evaluation
from rto_fast.files.digests import is_whole, stated, write_recorded
from rto_fast.files.foreign import read_object
from rto_fast.rollout import Completion


@dataclass(frozen=True)
class Saved:
    """Evaluations in a folder, one JSON file each, under a hash of everything that they depend on."""

    folder: Path

    def key(self, settings: dict[str, Any], *models: str | None) -> str:
        """A hash of the settings and of each model: its files' names, sizes and dates, or its hub id."""
        return hashlib.sha256(json.dumps([settings, *map(_stamp, models)]).encode()).hexdigest()[:32]

    def load(self, key: str) -> Evaluation | None:
        file = self.folder / f"{key}.json"
        try:
            if not is_whole(file, stated(self.folder).get(file.name, "")):
                return None
            values = read_object(file, "answers")
            answers = [Completion(**a) for a in values.pop("answers")]
            arrays: dict[str, Any] = {k: None if v is None else np.array(v, float) for k, v in values.items()}
            return Evaluation(answers, **arrays)
        except (ValueError, TypeError, KeyError):
            # absent, or damaged: it is made again
            return None

    def store(self, key: str, evaluation: Evaluation) -> None:
        """The file appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = vars(evaluation) | {"answers": [asdict(a) for a in evaluation.answers]}
        write_recorded(self.folder / f"{key}.json", json.dumps(values, default=np.ndarray.tolist))


def _stamp(model: str | None) -> list[Any]:
    folder = Path(model or "").expanduser()
    if model is None or not folder.is_dir():
        return [model]
    files = sorted(f for f in folder.iterdir() if f.is_file())
    return [str(folder.resolve()), *([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files)]
