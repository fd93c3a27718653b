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


def _with(tmp_path, part: str, steps: list[dict]):
    """A sound tokenizer's file with these steps before its own."""
    sentencepiece_style().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content[part][f"{part}s"] = [*steps, *content[part][f"{part}s"]]
    file.write_text(json.dumps(content))


def _replace(content: str, **pattern: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    "steps",
    [
        [_replace("of the " * 143, Regex="o\\x66 the")],
        [_replace("of the " * 2, Regex="(?<=o\\x66 )the")] * 4,
        [_replace("e", Regex="(?<=.{2000})")] * 6,
        [_replace("abc" * 1000, String="abc" * 500)] * 6,
        [{"type": "Precompiled", "precompiled_charsmap": ""}] * 2,
    ],
    ids=["long", "spelt otherwise", "in long texts only", "long patterns that double", "tables"],
)
def test_what_may_grow_is_refused_whether_a_text_is_found_or_not(steps, part, tmp_path, monkeypatch):
    """The pattern is an expression, or so long, that no text that is tried holds it."""
    monkeypatch.setattr(trial, "in_child", lambda *args, **kwargs: None)
    _with(tmp_path, part, steps)
    with pytest.raises(ValueError, match=f"characters of one by what its {part} replaces, at most 32 for each"):
        load_tokenizer(tmp_path)


def test_usual_replacements_pass(tmp_path):
    usual = [_replace('"', String="``"), _replace(" ", Regex="\\s+"), _replace("▁", Regex=" {2,}")]
    _with(tmp_path, "normalizer", usual * 4)
    assert load_tokenizer(tmp_path)("the  cat")["input_ids"]
