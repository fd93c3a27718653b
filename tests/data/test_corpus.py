"""What becomes of a run's files: every setting of [data] is heard, and nothing lands where it does not belong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rto_fast.config import DataConfig
from rto_fast.data.corpus import _sentence_ends, load_corpus
from tests.tiny_run import write_model, write_pairs

LIMITS = DataConfig(template="none", max_prompt=10, max_length=24, held_out=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pairs(tmp_path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl")


def test_the_settings_of_data_are_heard(tokenizer, pairs):
    whole = replace(LIMITS, path=str(pairs))
    found = load_corpus(whole, tokenizer, 0)
    assert len(found.pairs) + len(found.held_out) == 24
    short = load_corpus(replace(whole, max_prompt=4), tokenizer, 0)
    assert {len(p.prompt) for p in short.pairs} == {4}
    few = load_corpus(replace(whole, max_rows=10), tokenizer, 0)
    assert len(few.pairs) + len(few.held_out) == 10
    plain = load_corpus(replace(whole, template="plain", max_prompt=16), tokenizer, 0)
    assert "Human" not in tokenizer.get_vocab()  # so that the plain turns come out as unknown words
    assert tokenizer.unk_token_id in plain.pairs[0].prompt and tokenizer.unk_token_id not in found.pairs[0].prompt
    assert not load_corpus(replace(whole, held_out=0), tokenizer, 0).held_out
    others = [load_corpus(whole, tokenizer, seed).held_out for seed in range(1, 5)]
    assert any(held_out != found.held_out for held_out in others)


def test_prompts_are_distinct(tokenizer, pairs):
    found = load_corpus(replace(LIMITS, path=str(pairs)), tokenizer, 0)
    asked = [tuple(p.prompt) for p in found.pairs]
    assert len(set(asked)) < len(asked)
    assert sorted(map(tuple, found.prompts)) == sorted(set(asked))


def test_a_prompt_keeps_its_own_right_answer_where_rows_are_dropped(tokenizer, tmp_path):
    rows = [{"prompt": "", "reference": "0"}]
    rows += [{"prompt": f"what is the {animal}", "reference": animal} for animal in ("cat", "dog", "cow")]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_corpus(replace(LIMITS, prompts=str(tmp_path / "prompts.jsonl"), held_out=0), tokenizer, 0)
    assert len(found.references) == 3
    for prompt, answer in found.references.items():
        assert tokenizer.decode(prompt[-1:]) == answer


def test_a_mark_ends_a_sentence_with_blanks_behind_it_too():
    class Decoder:
        texts = ["word", ".", "! ", "no?", "line\n", ".5", "\n ", "end. x"]

        def __len__(self):
            return len(self.texts)

        def decode(self, ids):
            return self.texts[ids[0]]

    assert _sentence_ends(Decoder()) == frozenset({1, 2, 3, 4, 6})
