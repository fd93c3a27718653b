"""Answers as text, and how varied they are."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rto_fast.files.text import valid
from rto_fast.rollout import Completion


def words(answer: Completion) -> list[int]:
    """The answer's tokens without the EOS that ended it."""
    return answer.response[:-1] if answer.finish == "eos" else answer.response


def distinct(answers: Sequence[Completion], n: int) -> float:
    """distinct-n: different n-grams over all n-grams of all answers together, EOS left out (Li et al. 2016, section 5).

    It falls as answers are added, so only equal numbers of answers compare. 0 when no answer has n tokens.
    """
    grams: set[tuple[int, ...]] = set()
    total = 0
    for answer in answers:
        tokens = words(answer)
        grams.update(zip(*(tokens[i:] for i in range(n)), strict=False))
        total += max(0, len(tokens) - n + 1)
    return len(grams) / total if total else 0.0


def prompt_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The prompt as text, without its BOS."""
    begins = bool(answer.prompt) and answer.prompt[0] == tokenizer.bos_token_id
    return valid(str(tokenizer.decode(answer.prompt[begins:])))


def answer_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The answer as text, without the EOS that ended it and whitespace around it."""
    return valid(str(tokenizer.decode(words(answer)))).strip()
