"""Checks before the first step: what would make every later number wrong.

Each returns what it measured and raises ValueError, with the fix, where that is not what it has to be.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rto_fast.model.language import LanguageModel
from rto_fast.packing import pack
from rto_fast.runs.export import check_export, save_stage


def check_eos(responses: Sequence[list[int]], eos_token_ids: Sequence[int]) -> int:
    """How many answers were looked at; all must end in an EOS, and that row must be one that is trained."""
    for number, response in enumerate(responses, 1):
        if response[-1] not in eos_token_ids:
            raise ValueError(
                f"data: answer {number} ends in token {response[-1]}, not in EOS {list(eos_token_ids)}; a policy "
                "trained on it would never stop: give the model a tokenizer with an EOS, or another --data.template"
            )
    batch = pack([response[:1] for response in responses], responses)
    last = batch.response_rows[batch.response_cu_seqlens[1:].long() - 1]
    if not (batch.weights[last] > 0).all():
        raise ValueError("data: EOS rows have no weight; this is a fault of rto_fast, please report it")
    return len(responses)


def check_round_trip(tokenizer: PreTrainedTokenizerBase, response: list[int]) -> int:
    """How many characters an answer's text has; written and read again it must be the same, whitespace aside."""

    def text(ids: list[int]) -> str:
        return "".join(str(tokenizer.decode(ids, skip_special_tokens=True)).split())

    once = text(response)
    again = text(tokenizer(once_spaced := tokenizer.decode(response, skip_special_tokens=True))["input_ids"])
    if once != again:
        at = next((i for i, (a, b) in enumerate(zip(once, again, strict=False)) if a != b), min(len(once), len(again)))
        raise ValueError(
            f"model.path: the tokenizer does not read back what it writes: {once[at : at + 20]!r} became "
            f"{again[at : at + 20]!r}; its files do not belong together"
        )
    return len(once_spaced)


def check_trial_export(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LanguageModel]
) -> None:
    """Write the model to a temporary folder, load it again and compare logits bit by bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        save_stage(folder, model.hf, tokenizer, {"stage": "trial"})
        check_export(folder, model, load)
