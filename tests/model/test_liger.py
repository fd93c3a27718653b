"""Which networks liger-kernel is asked to change, by a double in its place."""

import sys
from types import ModuleType

import pytest

from rto_fast.model import liger
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
    monkeypatch.setattr(liger, "find_spec", lambda name: name)
    return networks


def test_a_family_that_is_not_served_is_said(changed):
    with pytest.raises(ValueError, match="model.liger: liger-kernel has nothing for gpt_neox; use --model.liger none"):
        apply_liger(language_model("gpt_neox").hf, "cuda")
    with pytest.raises(ValueError, match="model.liger: liger-kernel runs on CUDA only, got cpu"):
        apply_liger(language_model("llama").hf, "cpu")
    assert not changed


def test_it_is_in_every_network_that_it_serves_and_no_other(changed, tmp_path, monkeypatch):
    """By default, on CUDA: of policies, critics and reward models, and nothing is refused."""
    for family in ("gpt_neox", "llama"):
        network = language_model(family).hf
        apply_liger(network, "cuda", None)
        apply_liger(network, "cuda", False)
        apply_liger(network, "cpu", None)
        assert changed == ([network] if family == "llama" else [])
    changed.clear()
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl")
    context = context_of(tmp_path)
    assert context.config.model.liger is None
    model = context.load(str(tmp_path / "model"))
    monkeypatch.setattr(networks, "apply_liger", lambda network, _, wanted: apply_liger(network, "cuda", wanted))
    scalar = networks.scalar_on(context, model, "rm", bias=False)
    assert changed == [scalar.backbone]


def test_without_the_package_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(liger, "find_spec", lambda name: None)
    apply_liger(language_model("llama").hf, "cuda", None)
    with pytest.raises(ValueError, match="model.liger: liger-kernel is not installed; use --model.liger none"):
        apply_liger(language_model("llama").hf, "cuda", True)
