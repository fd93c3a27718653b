"""Answers as text: what a judge reads, samples.md and answers.jsonl."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast.evaluate.policies import Evaluation, words
from rto_fast.files.digests import write_recorded
from rto_fast.files.disk import write_whole
from rto_fast.files.text import valid
from rto_fast.rollout import Completion


def prompt_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The prompt as text, without its BOS."""
    begins = bool(answer.prompt) and answer.prompt[0] == tokenizer.bos_token_id
    return valid(str(tokenizer.decode(answer.prompt[begins:])))


def answer_text(tokenizer: PreTrainedTokenizerBase, answer: Completion) -> str:
    """The answer as text, without the EOS that ended it and whitespace around it."""
    return valid(str(tokenizer.decode(words(answer)))).strip()


def write_samples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    evaluations: dict[str, Evaluation],
    count: int,
    judged: Mapping[str, np.ndarray] = {},
) -> None:
    """samples.md: the first `count` prompts and every policy's answer to them; `judged` as in `write_answers`."""
    lines = ["# Samples", "", "Answers to held-out prompts; special tokens are shown.", ""]
    some = next(iter(evaluations.values()))
    for i in range(min(count, len(some.answers))):
        lines += [f"## {i + 1}", "", *_quote(str(tokenizer.decode(some.answers[i].prompt))), ""]
        for name, evaluation in evaluations.items():
            worth = judged.get(name, evaluation.judged)[i]
            said = str(tokenizer.decode(evaluation.answers[i].response))
            lines += [f"**{name}**" + ("" if np.isnan(worth) else f" ({worth:+.3f})"), "", *_quote(said), ""]
    write_whole(path, "\n".join(lines))


def _quote(text: str) -> list[str]:
    """Indented as code, so that whatever a model wrote stays text."""
    return ["    " + line for line in valid(text).splitlines()] or ["    "]


def write_answers(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    evaluations: Mapping[str, Evaluation],
    count: int,
    judged: Mapping[str, np.ndarray] = {},
) -> None:
    """answers.jsonl: one line per prompt and policy, for the first `count` prompts.

    {"index", "prompt", "policy", "response", "judged", "kl", "tokens", "finish"}; judged is what decides comparisons
    (`Evaluation.judged`, or the given (answers,) array of a policy; null where that is NaN), kl is
    log pi/pi_ref of the answer in nats, tokens counts EOS.
    """
    lines = []
    for i in range(min(count, *(len(e.answers) for e in evaluations.values()))):
        for name, evaluation in evaluations.items():
            answer, worth = evaluation.answers[i], judged.get(name, evaluation.judged)[i]
            row = {
                "index": i,
                "prompt": prompt_text(tokenizer, answer),
                "policy": name,
                "response": answer_text(tokenizer, answer),
                "judged": None if np.isnan(worth) else float(worth),
                "kl": float(evaluation.kl[i]),
                "tokens": len(answer.response),
                "finish": answer.finish,
            }
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    write_recorded(path, "".join(lines))
