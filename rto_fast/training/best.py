"""Which of a stage's checkpoints was the best so far, by a metric that the stage reports."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rto_fast.files.disk import write_whole
from rto_fast.files.foreign import read_object

FILE = "best.json"


@dataclass(frozen=True)
class Best:
    metric: str
    step: int
    value: float


class BestOf:
    """Follows a metric and remembers the best checkpoint in best.json.

    What a step reports was measured with the weights before it. So a checkpoint's value is that of the first report
    after it, and of several checkpoints before one report the newest has it.
    """

    def __init__(self, folder: Path, metric: str, best_is: Literal["largest", "smallest"]):
        self.file = folder / FILE
        self.name, self.sign = metric, 1 if best_is == "largest" else -1
        self.found = self._read()
        self._judged = 0
        """Step of the checkpoint that has got its value last."""

    def report(self, checkpoint: int, metrics: dict[str, float]) -> bool:
        """Whether `metrics`, logged after the checkpoint of that step, make it the best; then it is written down."""
        if self.name not in metrics or checkpoint <= self._judged:
            return False
        self._judged, value = checkpoint, metrics[self.name]
        so_far = self.sign * self.found.value if self.found is not None else -math.inf
        if not math.isfinite(value) or self.sign * value <= so_far:
            return False
        self.found = Best(self.name, checkpoint, value)
        write_whole(self.file, json.dumps(asdict(self.found)) + "\n")
        return True

    def back_to(self, step: int) -> None:
        """The stage goes on from `step`: a later best is none of its future."""
        if self.found is not None and self.found.step > step:
            self.found = None

    def _read(self) -> Best | None:
        """What an earlier call wrote; a damaged file, or one about another metric, is as good as none."""
        try:
            found = read_object(self.file, "best") if self.file.is_file() else {}
        except ValueError:
            return None
        step, value = found.get("step"), found.get("value")
        if found.get("metric") == self.name and type(step) is int and type(value) is float and math.isfinite(value):
            return Best(self.name, step, value)
        return None
