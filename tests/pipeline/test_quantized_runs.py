"""Runs whose adapters lie on a base in 4 bits. They ask for a GPU; with that question left out a CPU does them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rto_fast.config import AdapterConfig, DPOConfig, SFTConfig
from rto_fast.model.load import load_language_model
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import pack
from rto_fast.pipeline import prepare
from rto_fast.pipeline.networks import frozen_on
from rto_fast.runs.open import open_run
from rto_fast.train import main
from tests import kill_harness
from tests.tiny import config
from tests.tiny_run import SETTINGS, WORDS, write_model, write_pairs

pytest.importorskip("bitsandbytes")
QUANTIZED = ["--adapter.rank", "4", "--adapter.alpha", "8", "--adapter.quantize", "nf4"]
BATCH = pack([[1, 5, 6, 7], [1, 5, 6]], [[10, 11, 2], [12, 2]])


def write_wide(folder: Path) -> None:
    """As write_model, and wide enough for whole blocks."""
    write_model(folder)
    wide = config("llama_tied", len(WORDS)).to_dict() | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(type(config("llama_tied")).from_dict(wide)).save_pretrained(folder)


def train(folder: Path, output: str, *more: str) -> int:
    paths = {"--recipe": "tiny.toml", "--model.path": "model", "--data.path": "pairs.jsonl", "--output": output}
    words = [word for flag, name in paths.items() for word in (flag, str(folder / name))]
    return main([*words, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    write_wide(folder / "model")
    write_pairs(folder / "pairs.jsonl", 48)
    (folder / "tiny.toml").write_text(SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "check_quantized", lambda device: None)
        stages = ["--stages", "sft", "dpo", "rm", "rto", "--rto.critic.model", "rm", "--rto.reward.beta-3", "0.5"]
        learns = ["--sft.optim.lr", "1e-3", "--dpo.optim.lr", "1e-2", "--rto.optim.lr", "1e-2"]
        assert train(folder, "run", *QUANTIZED, *stages, *learns, "--export.merge", "True") == 0
    return folder


def logprobs(model) -> torch.Tensor:
    with torch.no_grad():
        return response_logprobs(model, BATCH, 16)


def test_sft_is_merged_into_the_numbers_as_they_were(folder):
    """Half a step of 4 bits is more than it has learnt: added to quantised numbers and quantised again it were gone."""
    before, after = (load_language_model(str(folder / name)).hf.state_dict() for name in ("model", "run/sft"))
    for name, weight in before.items():
        change = (after[name] - weight).abs().max()
        learnt = "_proj" in name
        assert 0 < change < 0.02 if learnt else change == 0, name


def test_a_viewer_looks_at_the_network_that_was_trained(folder, monkeypatch):
    from tests.pipeline.test_wiring import context_of

    monkeypatch.setattr(prepare, "check_quantized", lambda device: None)
    path, adapter = folder / "run", AdapterConfig(rank=4, alpha=8, quantize="nf4")
    given = {"sft": SFTConfig(model=str(path / "sft")), "dpo": DPOConfig(model=str(path / "dpo"))}
    context = context_of(folder, output=str(folder / "new"), adapter=adapter, **given)
    reference = context.load(context.stage_path("sft"))
    viewer = open_run(str(path), device="cpu")
    whole = logprobs(load_language_model(str(path / "sft")))
    assert torch.equal(logprobs(viewer.load(str(path / "sft"))), logprobs(reference))
    assert (logprobs(reference) - whole).abs().max() > 1e-3
    for stage in ("dpo", "rto"):
        made = frozen_on(context, reference, str(path / stage), "dpo.model", stage)
        assert made.base is reference.base
        assert torch.equal(logprobs(viewer.load(str(path / stage))), logprobs(made))
        assert (logprobs(made) - logprobs(reference)).abs().max() > 1e-3
    merged = str(path / "rto_merged")
    assert torch.equal(logprobs(viewer.load(merged)), logprobs(load_language_model(merged)))
    judge = viewer.load_scalar(str(path / "rm"), "rm.model")
    assert judge.base is not None and judge.std > 0


def test_merged_exports_are_whole_models_of_the_numbers_as_they_were(folder):
    run = folder / "run"
    theirs = AutoModelForCausalLM.from_pretrained(run / "rto_merged")
    ours = load_language_model(str(run / "rto"))  # by itself, on the whole base
    with torch.no_grad():
        tokens = torch.tensor([[1, 5, 6, 7, 10]])
        torch.testing.assert_close(theirs(tokens).logits, ours.hf(tokens).logits, rtol=0, atol=1e-5)


def test_killed_runs_on_a_quantised_base_end_bit_for_bit_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "check_quantized", lambda device: None)
    monkeypatch.setattr(kill_harness, "write_model", write_wide)
    command = lambda folder, output: [*kill_harness.arguments(folder, output), *QUANTIZED]  # noqa: E731
    assert kill_harness.harness(tmp_path, 2, 1, command) == 0


@pytest.mark.parametrize(
    "flags, said",
    [
        (QUANTIZED, "adapter.quantize: nf4 is for a CUDA GPU, got cpu; leave it out"),
        (
            ["--adapter.quantize", "nf4"],
            "adapter.quantize must be given together with adapter.rank, e.g. 16, got",
        ),
    ],
)
def test_a_mistake_is_one_sentence(folder, tmp_path, capsys, flags, said):
    assert train(folder, str(tmp_path / "run"), *flags) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_without_the_package_it_says_what_to_install(monkeypatch):
    from rto_fast.model import quantize

    find = importlib.util.find_spec
    monkeypatch.setattr(quantize, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ValueError, match=r'^adapter.quantize: nf4 needs bitsandbytes; pip install "rto_fast\[quant'):
        quantize.check_quantized(torch.device("cuda"))
