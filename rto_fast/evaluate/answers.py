"""Answers as text, how varied they are, and answers.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast.files.digests import write_recorded
from rto_fast.rollout import Completion

if TYPE_CHECKING:
    from rto_fast.evaluate.policies import Evaluation


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


def valid(text: str) -> str:
    """The text with halves of surrogate pairs, which no file and no request can hold, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def prompt_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The prompt as text, without its BOS."""
    begins = bool(answer.prompt) and answer.prompt[0] == tokenizer.bos_token_id
    return valid(tokenizer.decode(answer.prompt[begins:]))


def answer_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The answer as text, without the EOS that ended it and whitespace around it."""
    return valid(tokenizer.decode(words(answer))).strip()


def write_answers(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    evaluations: Mapping[str, "Evaluation"],
    count: int,
    judged: Mapping[str, np.ndarray] | None = None,
) -> None:
    """answers.jsonl: one line per prompt and policy, for the first `count` prompts.

    {"index", "prompt", "policy", "response", "judged", "kl", "tokens", "finish"}; judged is what decides comparisons
    (`Evaluation.judged`, or the given (answers,) array of each policy; null where that is NaN), kl is
    log pi/pi_ref of the answer in nats, tokens counts EOS.
    """
    judged = {name: e.judged for name, e in evaluations.items()} if judged is None else judged
    lines = []
    for i in range(min(count, *(len(e.answers) for e in evaluations.values()))):
        for name, evaluation in evaluations.items():
            answer = evaluation.answers[i]
            row = {
                "index": i,
                "prompt": prompt_text(tokenizer, answer),
                "policy": name,
                "response": answer_text(tokenizer, answer),
                "judged": None if np.isnan(judged[name][i]) else float(judged[name][i]),
                "kl": float(evaluation.kl[i]),
                "tokens": len(answer.response),
                "finish": answer.finish,
            }
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_recorded(path, "".join(lines))
