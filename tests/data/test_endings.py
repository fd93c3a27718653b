"""What ends an answer, and what ends a sentence."""

import json
from types import SimpleNamespace

import pytest

from rto_fast.config import DataConfig
from rto_fast.data import corpus
from rto_fast.data.template import Template
from rto_fast.runs.open import eos_token_ids
from tests.data.tokenizers import CHATML, byte_level, word_level


def model_with(eos):
    return SimpleNamespace(hf=SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos)))


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A tokenizer whose chat template closes a turn with another token than its EOS, and a corpus of it."""
    file = tmp_path_factory.mktemp("endings") / "pairs.jsonl"
    rows = [{"prompt": f"hi {i}", "chosen": "the", "rejected": "no"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = byte_level(template=CHATML)
    config = DataConfig(path=str(file), template="chat", max_prompt=60, max_length=90, held_out=0)
    return tokenizer, corpus.load_corpus(config, tokenizer, 0)


@pytest.mark.parametrize("given, more", [(None, []), (7, [7]), ([7, 9], [7, 9]), ("its own", []), (0, [0])])
def test_the_turns_end_the_tokenizers_eos_and_the_models_all_end_an_answer(chat, given, more):
    tokenizer, read = chat
    turn, eos = (tokenizer.convert_tokens_to_ids(t) for t in ("<|eot|>", "</s>"))
    assert turn != eos and all(p.chosen[-1] == turn for p in read.pairs)
    model = model_with(eos if given == "its own" else given)
    assert eos_token_ids(read.eos_token_ids, model) == (turn, eos, *more)
    assert Template(tokenizer, "chat").eos_token_ids == read.eos_token_ids


def test_a_model_without_a_generation_config_adds_none(chat):
    tokenizer, read = chat
    model = SimpleNamespace(hf=SimpleNamespace(generation_config=None))
    assert eos_token_ids(read.eos_token_ids, model) == read.eos_token_ids and len(read.eos_token_ids) == 2


def test_full_stops_marks_and_line_breaks_end_sentences(chat):
    tokenizer, read = chat
    ends = {tokenizer.decode([i]) for i in read.sentence_end_ids}
    assert ends == {".", "!", "?", "\n", "\n\n"}
    words = word_level("the cat. sat ? a.b mat, .. yes! no; (end.) \u3002")
    assert {words.decode([i]) for i in corpus._sentence_ends(words)} == {"cat.", "?", "..", "yes!"}
