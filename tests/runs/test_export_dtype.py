"""The type of an export's weights: a policy's follows the base, what later stages compute with stays as trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model.load import load_language_model, stored_dtype
from rto_fast.runs.export import rounded, save_stage
from rto_fast.runs.read_back import check_export
from rto_fast.train import main
from tests.tiny import language_model
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base stored in bfloat16, pairs, and a recipe."""
    folder = tmp_path_factory.mktemp("export")
    base = write_model(folder / "base", WORDS)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    write_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(SETTINGS)
    return folder


def train(place: Path, name: str, *more: str) -> Path:
    words = ["--recipe", place / "tiny.toml", "--model.path", place / "base", "--data.path", place / "pairs.jsonl"]
    assert main([*map(str, words), "--output", str(place / name), "--stages", "sft", "dpo", "rm", "rto", *more]) == 0
    return place / name


def types(folder: Path) -> set[torch.dtype]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {file.get_tensor(key).dtype for key in file.keys()}


def test_a_policy_follows_its_base_and_what_stages_compute_with_does_not(place):
    run = train(place, "auto")
    assert types(run / "rto") == {torch.bfloat16}
    assert all(types(run / stage) == {torch.float32} for stage in ("sft", "dpo", "rm"))
    assert json.loads((run / "rto" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(run / "rto", dtype="auto").dtype == torch.bfloat16
    assert stored_dtype(str(run / "rto")) == torch.bfloat16 and stored_dtype(str(run / "sft")) == torch.float32


def test_a_type_that_is_asked_for_is_every_stages(place):
    run = train(place, "half", "--export.dtype", "float16")
    assert all(types(run / stage) == {torch.float16} for stage in ("sft", "dpo", "rm", "rto"))


def test_the_rounded_export_is_the_trained_weights_rounded_and_training_goes_on_with_its_own(tmp_path):
    model, tokenizer = language_model("llama_tied"), load_tokenizer(write_model(tmp_path / "t"))
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    save_stage(tmp_path / "out", model.hf, tokenizer, {"stage": "sft"}, torch.bfloat16)
    load = lambda path: load_language_model(path, dtype=torch.float32)  # noqa: E731
    check_export(tmp_path / "out", model.hf, tokenizer, torch.bfloat16)
    saved = load(str(tmp_path / "out")).hf.state_dict()
    assert all(torch.equal(saved[name], weight.bfloat16().float()) for name, weight in before.items())
    assert all(torch.equal(weight, before[name]) for name, weight in model.hf.state_dict().items())
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[3, 0] += 1
    with pytest.raises(ValueError, match="reads back to another model.embed_tokens.weight"):
        check_export(tmp_path / "out", model.hf, tokenizer, torch.bfloat16)


def test_a_weight_that_float16_cannot_hold_is_an_error():
    model = language_model("llama_tied")
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[3, 0] = 1e6
    with pytest.raises(ValueError, match="export.dtype: .*embed_tokens.weight has a weight beyond.*bfloat16"):
        rounded(model.hf.state_dict(), torch.float16)
    assert rounded(model.hf.state_dict(), torch.bfloat16)
