"""A run on data of one's own: its held-out pairs are shown, its training pairs are trained on."""

import pytest
import tomli_w

from rto_fast.config import Config, DataConfig, ModelConfig
from rto_fast.config.recipe import plain
from rto_fast.credit.follow import starts_of
from rto_fast.credit.options import Watch
from rto_fast.credit.source import open_source
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model.load import load_language_model
from tests.tiny_run import WORDS, write_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model, pairs = write_model(folder / "sft"), write_pairs(folder / "pairs.jsonl")
    load_language_model(str(model)).hf.save_pretrained(folder / "dpo")
    load_tokenizer(model).save_pretrained(folder / "dpo")
    data = DataConfig(path=str(pairs), template="none", max_prompt=10, max_length=24, held_out=6)
    config = Config(recipe="own", model=ModelConfig(path=str(model)), data=data)
    (folder / "config.toml").write_text(tomli_w.dumps(plain(config)))
    return folder


def test_held_out_and_training_pairs_are_apart(folder):
    source = open_source(Watch(str(folder), device="cpu"))
    shown, trained = source.pairs(None), source.corpus.pairs
    assert 0 < len(shown) <= 6 and len(shown) + len(trained) == 24
    assert not {tuple(p.prompt) for p in shown} & {tuple(p.prompt) for p in trained}
    assert len(source.pairs(str(folder / "pairs.jsonl"))) == 24
    assert source.oracle is None
    # without demonstrations the run's SFT was on the chosen answers
    assert starts_of(source, ("chosen", "demonstrations", "none")) == ["chosen", "none"]


def test_models_of_two_tokenizers_are_refused(folder, tmp_path):
    other = write_model(tmp_path / "other", [*WORDS[:-1], "!"])
    with pytest.raises(ValueError, match="reference"):
        open_source(Watch(dpo=str(folder / "dpo"), reference=str(other), device="cpu"))
