"""Say the animal that is asked for, and no other."""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.tiny_run import write_model

ANIMALS = ("cat", "dog", "cow", "hen")
WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "say", "please", *ANIMALS]


def write_task(folder: Path, seed: int) -> None:
    asked = [(politeness, animal) for politeness in range(8) for animal in ANIMALS]
    rows = {
        "pairs": [_row(*x, rejected=_other(x[1], seed)) for x in asked if x[0] < 6],
        "demonstrations": [{"prompt": _prompt(*x), "completion": x[1]} for x in asked if x[0] < 6],
        "eval": [{"prompt": _prompt(*x)} for x in asked if x[0] >= 6],
    }
    write_model(folder / "model", WORDS)
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def build_tokenizer() -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        return AutoTokenizer.from_pretrained(write_model(Path(folder), WORDS))


class Oracle:
    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def answer_return(self, prompt: list[int], response: list[int]) -> float:
        return float(sum(self.answer_signs(prompt, response)))

    def answer_signs(self, prompt: list[int], response: list[int]) -> list[int]:
        wanted, animals = prompt[-1], self.tokenizer.convert_tokens_to_ids(list(ANIMALS))
        if wanted not in animals:
            raise ValueError(f"no animal is asked for in {prompt}")
        return [1 if token == wanted else -1 if token in animals else 0 for token in response]


make_oracle = Oracle


def corrupted_rows(count: int, seed: int) -> list[dict[str, str]]:
    asked = [(politeness, animal) for politeness in (6, 7) for animal in ANIMALS]
    rows = [_row(*x, chosen=f"{x[1]} please", corrupted=f"{_other(x[1], seed)} please") for x in asked]
    return rows[:count]


def _prompt(politeness: int, animal: str) -> str:
    return " ".join(["please"] * politeness + ["say", animal])


def _other(animal: str, seed: int) -> str:
    return ANIMALS[(ANIMALS.index(animal) + 1 + seed % 3) % len(ANIMALS)]


def _row(politeness: int, animal: str, **more: str) -> dict[str, str]:
    return {"prompt": _prompt(politeness, animal), "chosen": animal} | more
