"""Tasks that come with the package: each makes its data from a seed and knows what every answer is worth.

A task is one folder here, and --data.path names it. Nothing is registered: a folder that is there is known.
"""

import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from rto_fast.config import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "task"
"""Where a task's files lie in a run's folder."""


class Oracle(Protocol):
    """Judges answers of token ids; the prompt starts with BOS, the answer ends with EOS or was cut off.

    ValueError for a prompt that is none of the task's.
    """

    def answer_return(self, prompt: list[int], response: list[int]) -> float:
        """What the answer is worth."""

    def answer_signs(self, prompt: list[int], response: list[int]) -> list[int]:
        """+1, -1 or 0 per token: whom to credit, whom to blame, who does not matter."""


class Task(Protocol):
    """What the module `entry` of a task's folder holds."""

    def write_task(self, folder: Path, seed: int) -> None:
        """Write `folder`, which is new or empty, whole or not at all; the same seed gives the same bytes.

        pairs.jsonl {prompt, chosen, rejected}, demonstrations.jsonl {prompt, completion}, eval.jsonl {prompt} with
        held-out prompts, and model/, a Hugging Face folder of a fresh policy and the tokenizer.
        """

    def build_tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer of every text of the task, as model/ has it."""

    def make_oracle(self, tokenizer: "PreTrainedTokenizerBase") -> Oracle:
        """The judge of answers in this tokenizer's ids."""

    def corrupted_rows(self, count: int, seed: int) -> list[dict[str, str]]:
        """Rows {prompt, chosen, corrupted}: a held-out prompt of this seed, a right answer, and a copy with wrong words
        in it. ValueError where there are not so many."""


def names() -> list[str]:
    """The tasks that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def load(name: str) -> Task:
    """One of `names`."""
    return cast(Task, importlib.import_module(f"{__name__}.{name}.entry"))


def named(name: str) -> Task | None:
    """What --data.path names, where that is a task."""
    return load(name) if name in names() else None


def pointed(config: Config, folder: Path) -> Config:
    """The settings of a run on a task with the files of `folder`, as `write_task` left them, in the place of its name.

    A model of the user's own stays.
    """
    pairs, demonstrations, evaluation = (str(folder / f"{name}.jsonl") for name in ("pairs", "demonstrations", "eval"))
    data = replace(config.data, path=pairs, demonstrations=demonstrations, evaluation=evaluation)
    path = str(folder / "model") if config.model.path in ("", config.data.path) else config.model.path
    return replace(config, data=data, model=replace(config.model, path=path))
