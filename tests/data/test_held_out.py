"""Evaluation prompts are trained on nowhere, whatever files are given; the notes say what was removed."""

import json
import re

import pytest

from rto_fast.config import DataConfig
from rto_fast.data.corpus import Corpus, load_corpus
from tests.data.tokenizers import byte_level

TOKENIZER = byte_level()
LIMITS = {"template": "plain", "max_prompt": 64, "max_length": 128}


def rows(count: int, *answers: str, first: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}"} | {a: f"{a} {i}" for a in answers} for i in range(first, first + count)]


def load(folder, *, held_out: int = 12, **files: list[dict]) -> Corpus:
    paths = {}
    for name, content in files.items():
        paths[name] = str(folder / f"{name}.jsonl")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return load_corpus(DataConfig(**paths, held_out=held_out, **LIMITS), TOKENIZER, 0)


def removed(corpus: Corpus, source: str) -> int:
    note = next(note for note in corpus.notes if note.startswith(f"{source}: "))
    found = re.search(r"removed: (\d+) whose prompt is held out for evaluation", note)
    return int(found[1]) if found else 0


PAIRS = rows(60, "chosen", "rejected")


def test_prompts_that_are_held_out_are_not_rolled_out(tmp_path):
    corpus = load(tmp_path, path=PAIRS, prompts=rows(60))
    assert len(corpus.evaluation) == 12 and len(corpus.prompts) == 48
    assert not [p for p in corpus.prompts if p in corpus.evaluation] and removed(corpus, "prompts") == 12


def test_prompts_that_are_held_out_are_not_demonstrated(tmp_path):
    corpus = load(tmp_path, path=PAIRS, demonstrations=rows(60, "completion"))
    assert len(corpus.evaluation) == 12 and len(corpus.demonstrations) == 48
    assert removed(corpus, "demonstrations") == 12 and removed(corpus, "pairs") == 0
    # prompts without pairs are split too
    corpus = load(tmp_path, prompts=rows(60), demonstrations=rows(60, "completion"))
    assert len(corpus.evaluation) == 12 and removed(corpus, "demonstrations") == 12


def test_prompts_of_a_file_of_ones_own_are_not_in_the_pairs(tmp_path):
    corpus = load(tmp_path, path=PAIRS, evaluation=rows(10, first=55), held_out=0)
    assert len(corpus.evaluation) == 10 and len(corpus.pairs) == len(corpus.demonstrations) == 55
    assert not [p.prompt for p in corpus.pairs if p.prompt in corpus.evaluation] and removed(corpus, "pairs") == 5


def test_prompts_are_the_same_by_words_and_by_what_the_model_sees_of_them(tmp_path):
    tail = "t" * 80
    asked = [{"prompt": "question  3 "}, {"prompt": f"long ago {tail}"}, {"prompt": [{"role": "user", "content": "q"}]}]
    pairs = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("question 3", f"lately {tail}", "q", "question 4")]
    corpus = load(tmp_path, path=pairs, evaluation=asked, held_out=0)
    assert len(corpus.pairs) == 1 and removed(corpus, "pairs") == 3


def test_a_source_with_nothing_else_is_an_error_that_names_it(tmp_path):
    wanted = (
        r"^data.demonstrations: none of the 10 rows is left .*: 10 x prompt is held out for evaluation; give rows with "
        r"other prompts, or hold out fewer with --data.held-out or another --data.evaluation$"
    )
    with pytest.raises(ValueError, match=wanted):
        load(tmp_path, path=PAIRS, demonstrations=rows(10, "completion"), evaluation=rows(10))
    with pytest.raises(ValueError, match="^data.path: none of the 60 rows is left"):
        load(tmp_path, path=PAIRS, evaluation=rows(60), held_out=0)


def test_data_without_a_leak_is_left_as_it_is(tmp_path):
    corpus = load(tmp_path, path=PAIRS, evaluation=rows(10, first=60), held_out=0)
    assert len(corpus.pairs) == 60 and corpus.notes[0].endswith("; dropped: none")
