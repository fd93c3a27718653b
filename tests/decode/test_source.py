"""The command decodes the prompts that the run itself evaluates, with the run's settings."""

import tomli_w

from rto_fast.config import Config
from rto_fast.config.recipe import build, plain
from rto_fast.data.corpus import load_corpus
from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.decode.options import Options
from rto_fast.decode.source import open_source
from tests.tiny_run import write_model, write_pairs


def config_of(folder, **data):
    settings = {"path": str(write_pairs(folder / "pairs.jsonl", 48)), "template": "none", "max_prompt": 10}
    values = {
        "model": {"path": str(folder / "sft")},
        "data": {**settings, "max_length": 24, "held_out": 40, **data},
        "dpo": {"beta": 0.3},
        "eval": {"prompts": 4, "temperature": 0.7, "top_p": 0.9},
        "seed": 7,
    }
    config = build(Config, values, "test")
    (folder / "config.toml").write_text(tomli_w.dumps(plain(config)))
    for stage in ("sft", "dpo", "rto"):
        write_model(folder / stage)
    return config


def test_held_out_pairs_give_the_prompts(tmp_path):
    config = config_of(tmp_path)
    source = open_source(Options(run=str(tmp_path), device="cpu"))
    corpus = load_corpus(config.data, load_tokenizer(str(tmp_path / "sft")), config.seed)
    assert len(corpus.evaluation) > 4 and source.prompts == corpus.evaluation[:4]
    assert source.eos_token_ids == corpus.eos_token_ids
    sampling = source.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.7, 0.9, 14)
    assert (source.beta, source.seed, source.oracle, source.policy) == (0.3, 7, None, None)


def test_a_file_of_prompts_and_flags_come_first(tmp_path):
    lines = [f'{{"prompt": "what is the colour of a {animal}"}}\n' for animal in ("cat", "dog", "cow", "cat")]
    (tmp_path / "asked.jsonl").write_text("".join(lines))
    config = config_of(tmp_path, evaluation=str(tmp_path / "asked.jsonl"))
    corpus = load_corpus(config.data, load_tokenizer(str(tmp_path / "sft")), config.seed)
    assert open_source(Options(run=str(tmp_path), device="cpu")).prompts == corpus.evaluation
    (tmp_path / "other.jsonl").write_text("".join(lines[:2]))
    flags = dict(prompts=str(tmp_path / "other.jsonl"), policy="rto", beta=0.1, temperature=0.0, seed=1, device="cpu")
    source = open_source(Options(run=str(tmp_path), **flags))
    assert source.prompts == corpus.evaluation[:2]
    assert (source.beta, source.seed, source.sampling.temperature) == (0.1, 1, 0.0)
    assert source.policy is not None and source.policy is not source.dpo


def test_a_model_named_twice_is_loaded_once(tmp_path):
    config_of(tmp_path)
    source = open_source(Options(run=str(tmp_path), policy=str(tmp_path / "dpo"), reference="sft", device="cpu"))
    assert source.policy is source.dpo and source.reference is not source.dpo
