"""Tokenizers that are sound pass their trial, whatever their habits."""

import json

import pytest

from rto_fast.data import trial
from rto_fast.data.tokenizer import load_tokenizer
from tests.data.tokenizers import byte_level, sentencepiece_style, word_level
from tests.tiny import SHARED

PADDED = {"strategy": {"Fixed": 4096}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}


@pytest.mark.parametrize("made", [byte_level(adds="bos and eos"), sentencepiece_style(), word_level()])
def test_a_sound_tokenizer_passes(made, tmp_path):
    made.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == made.get_vocab()


def test_a_tokenizer_that_pads_passes(tmp_path):
    word_level().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "padding": {**PADDED, "pad_to_multiple_of": None}}))
    assert load_tokenizer(tmp_path)(["the cat"])["input_ids"] == [[3, 4]]


@pytest.mark.skipif(not SHARED.is_dir(), reason="real tokenizers are not part of the project")
@pytest.mark.parametrize("name", ["tokenizers/gpt-neox-20b", "tokenizers/gpt2", "models/stories260K"])
def test_a_real_tokenizer_passes(name):
    assert len(load_tokenizer(SHARED / name)) > 500


def test_a_tokenizer_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    byte_level().save_pretrained(tmp_path)
    monkeypatch.setattr(trial, "SECONDS", 0.001)
    monkeypatch.setattr(trial, "_sizes", lambda tokenizer, text: iter(lambda: 0, 1))
    with pytest.raises(ValueError, match="model.path: no tokenizer can be loaded: .* does not end within"):
        load_tokenizer(tmp_path)
