"""Which networks liger-kernel is asked to change, by a double in its place."""

import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from rto_fast.config import ModelConfig
from rto_fast.model.liger import apply_liger
from rto_fast.pipeline import networks
from tests.pipeline.test_wiring import context_of
from tests.tiny import language_model
from tests.tiny_run import write_model, write_pairs


@pytest.fixture
def changed(monkeypatch) -> list:
    networks: list = []
    package, inner, patch = (ModuleType(f"liger_kernel{name}") for name in ("", ".transformers", ".transformers.x"))

    def apply(model, **losses):
        assert losses == {"cross_entropy": False, "fused_linear_cross_entropy": False}
        networks.append(model)

    inner._apply_liger_kernel_to_instance = apply
    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}
    for name, module in (("", package), (".transformers", inner), (".transformers.monkey_patch", patch)):
        monkeypatch.setitem(sys.modules, f"liger_kernel{name}", module)
    return networks


def test_a_family_that_is_not_served_is_said(changed):
    with pytest.raises(
        ValueError, match=r"model.liger: liger-kernel has nothing for GPTNeoXForCausalLM \(gpt_neox\); use"
    ):
        apply_liger(language_model("gpt_neox").hf, "cuda")
    with pytest.raises(ValueError, match="model.liger: liger-kernel runs on CUDA only, got cpu"):
        apply_liger(language_model("llama").hf, "cpu")
    assert not changed


def test_critics_and_reward_models_are_changed_too(changed, tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl")
    context = context_of(tmp_path)
    model = context.load(str(tmp_path / "model"))
    config = replace(context.config, model=ModelConfig(path=str(tmp_path / "model"), liger=True))
    monkeypatch.setattr(networks, "apply_liger", lambda network, device: apply_liger(network, torch.device("cuda")))
    scalar = networks.scalar_on(replace(context, config=config), model, "rm", bias=False)
    assert changed == [scalar.backbone]
