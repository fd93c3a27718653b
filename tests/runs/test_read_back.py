"""A finished folder is compared with the model that was written, within the memory of one tensor."""

import gc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from rto_fast.data.tokenizer import load_tokenizer
from rto_fast.model.scalar import critic_from
from rto_fast.runs import read_back
from rto_fast.runs.export import as_classifier, save_stage
from rto_fast.runs.read_back import check_export
from tests.tiny import ARCHITECTURES, IDS, SIZES, language_model
from tests.tiny_run import write_model


@pytest.fixture
def tokenizer(tmp_path):
    return load_tokenizer(write_model(tmp_path / "tokenizer"))


def network(architecture: str, tokenizer) -> PreTrainedModel:
    if architecture == "reward model":
        critic = critic_from(language_model("gpt_neox"), bias=False)
        torch.nn.init.normal_(critic.head.weight)
        return as_classifier(critic, tokenizer)
    if architecture == "experts":  # which have other names in a file
        more = dict(moe_intermediate_size=8, num_experts=4, num_experts_per_tok=2, head_dim=12, num_key_value_heads=2)
        return AutoModelForCausalLM.from_config(Qwen3MoeConfig(vocab_size=61, **SIZES, **IDS, **more))
    return language_model(architecture).hf


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "reward model", "experts"])
def test_a_weight_that_differs_is_named_and_one_that_is_missing_too(architecture, dtype, tokenizer, tmp_path):
    hf, file = network(architecture, tokenizer), tmp_path / "out/model.safetensors"
    save_stage(tmp_path / "out", hf, tokenizer, {}, dtype)
    check_export(tmp_path / "out", hf, tokenizer, dtype)
    weights = load_file(file)
    for name in sorted(weights)[:: max(1, len(weights) // 4)]:
        other = weights[name].clone()
        other.view(-1)[-1] += 1
        save_file(weights | {name: other}, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="reads back to another "):
            check_export(tmp_path / "out", hf, tokenizer, dtype)
    save_file({key: x for key, x in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds no .*; check|are missing"):
        check_export(tmp_path / "out", hf, tokenizer, dtype)


@pytest.mark.parametrize("name, what", [("config.json", "configuration"), ("tokenizer_config.json", "tokenizer")])
def test_what_goes_with_the_weights_loads(name, what, tokenizer, tmp_path):
    hf = network("llama", tokenizer)
    save_stage(tmp_path / "out", hf, tokenizer, {})
    (tmp_path / "out" / name).write_text("{")
    with pytest.raises(ValueError, match=f"export: no {what} can be loaded"):
        check_export(tmp_path / "out", hf, tokenizer)


def bytes_alive() -> int:
    storages = {}
    for x in gc.get_objects():
        if issubclass(type(x), torch.Tensor) and x.device.type != "meta":
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_second_model_is_alive_while_one_is_compared(dtype, tokenizer, tmp_path, monkeypatch):
    hf = network("llama", tokenizer)
    save_stage(tmp_path / "out", hf, tokenizer, {}, dtype)
    most = []

    class Watched:
        def __init__(self, *words, **options):
            self.file = safe_open(*words, **options)

        def keys(self):
            return self.file.keys()

        def get_tensor(self, name):
            found = self.file.get_tensor(name)
            most.append(bytes_alive())
            return found

    monkeypatch.setattr(read_back, "safe_open", Watched)
    gc.collect()
    before, largest = bytes_alive(), max(p.numel() for p in hf.parameters()) * 4
    size = sum(p.numel() for p in hf.parameters()) * 4
    check_export(tmp_path / "out", hf, tokenizer, dtype)
    assert len(most) == len(list(hf.parameters()))
    assert max(most) - before <= 3 * largest < size / 2
