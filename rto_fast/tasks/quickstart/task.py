"""Writes the quickstart task as files: demonstrations, preference pairs, held-out prompts, tokenizer, fresh policy."""

import json
import math
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rto_fast.files.disk import new_folder
from rto_fast.tasks.quickstart.grammar import MAX_ASKED, Question, all_questions, sample_answer
from rto_fast.tasks.quickstart.knowledge import BOS, EOS, PAD, vocabulary
from rto_fast.tasks.quickstart.oracle import oracle_return
from rto_fast.tasks.quickstart.tokenizer import build_tokenizer

NUM_DEMONSTRATIONS = 32_000
NUM_PAIRS = 8_000
NUM_EVAL_PROMPTS = 1_002
"""The same number for one, two and three facts asked."""

LABEL_SCALE = 0.75
"""Bradley-Terry: P(first preferred) = sigmoid(LABEL_SCALE * (R1 - R2)); about a fifth of the labels are wrong."""

llama_config = partial(
    LlamaConfig,
    hidden_size=128,
    intermediate_size=480,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    tie_word_embeddings=True,
)


def write_task(folder: Path, seed: int) -> None:
    """As `tasks.Task`, in about a second: demonstrations are answers of both authors to the training prompts, pairs are
    two answers of unequal oracle return, the distinct prompts of eval.jsonl occur in neither.

    Texts are words joined by single spaces and hold no special tokens. ValueError when the folder holds anything.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"write_task: folder must be new or empty, got {str(folder)!r}; name another or remove it")
    with new_folder(folder) as partial:
        train, held_out = split_questions(seed)
        _write_lines(partial / "demonstrations.jsonl", demonstrations(train, NUM_DEMONSTRATIONS, seed))
        _write_lines(partial / "pairs.jsonl", preference_pairs(train, NUM_PAIRS, seed))
        _write_lines(partial / "eval.jsonl", ({"prompt": q.prompt} for q in held_out))
        build_tokenizer().save_pretrained(partial / "model")
        fresh_model(seed).save_pretrained(partial / "model")


def split_questions(seed: int) -> tuple[list[list[Question]], list[Question]]:
    """(training questions grouped by facts asked, held-out questions in random order), without overlap."""
    rng = Random(f"{seed} split")
    train, held_out = [], []
    for num_asked in range(1, MAX_ASKED + 1):
        questions = list(all_questions(num_asked))
        rng.shuffle(questions)
        share = NUM_EVAL_PROMPTS // MAX_ASKED
        held_out += questions[:share]
        train.append(questions[share:])
    rng.shuffle(held_out)
    return train, held_out


def demonstrations(train: list[list[Question]], count: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {prompt, completion} with one sampled answer each; one, two and three facts are asked equally often."""
    rng = Random(f"{seed} demonstrations")
    for _ in range(count):
        question = rng.choice(rng.choice(train))
        yield {"prompt": question.prompt, "completion": " ".join(sample_answer(rng, question))}


def preference_pairs(train: list[list[Question]], count: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows {prompt, chosen, rejected}: P(a chosen over b) = sigmoid(LABEL_SCALE (R(a) - R(b))), R the oracle return.

    Pairs of equal return are drawn again: no label of theirs would be right or wrong.
    """
    rng = Random(f"{seed} pairs")
    while count:
        question = rng.choice(rng.choice(train))
        first, second = sample_answer(rng, question), sample_answer(rng, question)
        gap = oracle_return(question.prompt, [*first, EOS]) - oracle_return(question.prompt, [*second, EOS])
        if gap == 0:
            continue
        if rng.random() >= 1 / (1 + math.exp(-LABEL_SCALE * gap)):
            first, second = second, first
        yield {"prompt": question.prompt, "chosen": " ".join(first), "rejected": " ".join(second)}
        count -= 1


def fresh_model(seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of 0.5 M parameters in float32; leaves torch's global random state alone."""
    words = vocabulary()
    config = llama_config(
        vocab_size=len(words),
        max_position_embeddings=64,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
