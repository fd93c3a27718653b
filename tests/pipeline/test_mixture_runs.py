"""Runs of mixtures of experts, whole and with adapters."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig

from rto_fast.train import main
from tests.tiny import IDS, SIZES
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    write_model(folder / "model")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(WORDS), **SIZES, **IDS, pad_token_id=0, num_key_value_heads=2, num_local_experts=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    write_pairs(folder / "pairs.jsonl", 48)
    (folder / "tiny.toml").write_text(SETTINGS)
    return folder


def train(folder, output: str, *more: str) -> int:
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--data.path": "pairs.jsonl", "--output": output}
    words = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    return main([*words, "--device", "cpu", *more])


def changed(folder, stage: str) -> set[str]:
    """Which weights a stage leaves other than the model's."""
    before, after = (AutoModelForCausalLM.from_pretrained(x).state_dict() for x in (folder / "model", stage))
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


def test_routers_and_experts_are_trained(folder):
    assert train(folder, "whole", "--model.gradient-checkpointing", "True") == 0
    for stage in ("sft", "dpo", "rto"):
        moved = changed(folder, folder / "whole" / stage)
        for layer in (0, 1):
            assert {f"model.layers.{layer}.mlp.{x}" for x in ("gate.weight", "experts.down_proj")} <= moved
    config = AutoModelForCausalLM.from_pretrained(folder / "whole/rto").config
    assert config.model_type == "mixtral" and "rto_experts" not in (folder / "whole/rto/config.json").read_text()


def test_adapters_leave_experts_alone(folder):
    assert train(folder, "adapters", "--adapter.rank", "4", "--export.merge", "True") == 0
    names = load_file(folder / "adapters/rto/adapter_model.safetensors").keys()
    assert names and all(".self_attn." in name for name in names)
    moved = changed(folder, folder / "adapters/rto_merged")
    assert moved and all(".self_attn." in name for name in moved)


def test_an_adapter_for_experts_is_refused(folder, capsys):
    assert train(folder, "refused", "--adapter.rank", "4", "--adapter.targets", "w1", "w3", "q_proj") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "adapter.targets: the experts of a MixtralForCausalLM have no adapters here; name other layers" in said
