"""Moments of 8 bits: bitsandbytes' steps against the paper's formula, refused steps, checkpoints, runs."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from rto_fast.config import Config, OffloadConfig, OptimConfig
from rto_fast.model.language import LanguageModel
from rto_fast.pipeline import prepare
from rto_fast.pipeline.estimate import moments
from rto_fast.pipeline.footprint import Arithmetic
from rto_fast.training import adamw8
from rto_fast.training.loop import TrainState, make_state
from tests import kill_harness
from tests.pipeline.test_quantized_runs import train, write_wide
from tests.tiny_run import SETTINGS, write_pairs

pytest.importorskip("bitsandbytes")
from bitsandbytes.functional import create_dynamic_map  # noqa: E402

CONFIG = OptimConfig(lr=0.01, weight_decay=0.3, betas=(0.9, 0.95))
MAPS = create_dynamic_map(signed=True), create_dynamic_map(signed=False)


def state_of(bits: int = 8) -> TrainState:
    """Two matrices of whole blocks and one that ends within a block; biases are too small for 8 bits."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64), nn.Linear(64, 65))
    return make_state(CONFIG, {"policy": network}, bits=bits)


def take(state: TrainState, number: int, refused: float = 0.0) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in state.parameters()["policy"]:
        p.grad = torch.randn(p.shape, generator=generator) * 10 ** torch.randn(p.shape, generator=generator)
    state.optimizer.found_inf = torch.tensor(refused)
    state.optimizer.step()


def blocks(x: Tensor) -> Tensor:
    flat = x.flatten()
    return nn.functional.pad(flat, (0, -len(flat) % 256)).view(-1, 256)


def number_of(values: dict[str, Tensor], which: int, like: Tensor) -> Tensor:
    """The moment that codes and their blocks' largest stand for."""
    codes, largest = blocks(values[f"state{which}"]).long(), values[f"absmax{which}"][:, None]
    return (MAPS[which - 1][codes] * largest).flatten()[: like.numel()].view_as(like)


def test_steps_are_those_of_the_paper():
    state = state_of()
    params = state.parameters()["policy"]
    before = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
    for step in range(1, 5):
        weights = [p.detach().clone() for p in params]
        take(state, step)
        held, after = state.optimizer.state_dict()["state"], []
        for number, (p, weight, (m, v)) in enumerate(zip(params, weights, before, strict=True)):
            m, v = 0.9 * m + 0.1 * p.grad, 0.95 * v + 0.05 * p.grad**2
            decay = 0.3 if p.ndim == 2 else 0.0
            scaled = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + CONFIG.eps)
            torch.testing.assert_close(p.detach(), weight * (1 - 0.01 * decay) - 0.01 * scaled, rtol=1e-5, atol=1e-6)
            values = held[number]
            assert int(values["step"]) == step
            if p.numel() < 4096:
                torch.testing.assert_close((values["state1"], values["state2"]), (m, v))
                after.append((m, v))
                continue
            for which, moment in ((1, m), (2, v)):
                assert values[f"state{which}"].dtype == torch.uint8
                of_block = blocks(moment).abs().amax(1, keepdim=True)
                torch.testing.assert_close(values[f"absmax{which}"], of_block[:, 0])
                scaled = (blocks(moment) / of_block).flatten()[: moment.numel()]
                best = (scaled[:, None] - MAPS[which - 1]).abs().amin(1)
                kept = blocks(number_of(values, which, moment)) / of_block
                error = (kept.flatten()[: moment.numel()] - scaled).abs()
                # no other of the 256 is nearer, but for what its code for CPUs rounds before it looks
                assert (error <= best + 2**-15).all()
            after.append((number_of(values, 1, m), number_of(values, 2, v)))
        before = after


def test_a_refused_step_leaves_everything_as_it_was():
    state, straight = state_of(), state_of()
    take(state, 1)
    held = {part: {k: x.clone() for k, x in tensors.items()} for part, tensors in state.save()[0].items()}
    take(state, 2, refused=1.0)
    assert all(torch.equal(x, held[part][k]) for part, named in state.save()[0].items() for k, x in named.items())
    take(state, 3)
    take(straight, 1)
    take(straight, 3)
    for p, q in zip(state.parameters()["policy"], straight.parameters()["policy"], strict=True):
        assert torch.equal(p, q)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit():
    straight, begun, resumed = state_of(), state_of(), state_of()
    for number in range(6):
        take(straight, number)
    for number in range(3):
        take(begun, number)
    parts, facts = begun.save()
    resumed.restore(3, {part: {k: x.clone() for k, x in named.items()} for part, named in parts.items()}, facts)
    for number in range(3, 6):
        take(resumed, number)
    a, b = straight.save()[0], resumed.save()[0]
    assert a["optimizer"].keys() == b["optimizer"].keys()
    assert all(torch.equal(x, b[part][k]) for part, named in a.items() for k, x in named.items())


def test_a_checkpoint_of_another_network_is_refused():
    state, other = state_of(), state_of()
    take(state, 0)
    parts, facts = state.save()
    parts["optimizer"]["0.absmax1"] = parts["optimizer"]["0.absmax1"][1:]
    with pytest.raises(ValueError, match="those of another model"):
        other.restore(1, parts, facts)


def test_the_bytes_are_those_that_are_reckoned(tmp_path):
    write_wide(tmp_path)
    from transformers import AutoModelForCausalLM

    model = LanguageModel(AutoModelForCausalLM.from_pretrained(tmp_path))
    state = make_state(CONFIG, {"policy": model}, bits=8)
    for p in state.parameters()["policy"]:
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    trained = {number: p.numel() for number, p in enumerate(state.parameters()["policy"])}
    wide = {number: n for number, n in trained.items() if n >= 4096}
    held = state.optimizer.state_dict()["state"]
    of_wide = sum(x.numel() * x.element_size() for i in wide for name, x in held[i].items() if name != "step")
    assert of_wide == moments(Config(adam_bits=8), Arithmetic(), sum(wide.values()))
    assert len(wide) >= 6 and of_wide < 0.26 * moments(Config(), Arithmetic(), sum(wide.values()))


def test_killed_runs_end_bit_for_bit_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "check_adam8", lambda device: None)
    monkeypatch.setattr(kill_harness, "write_model", write_wide)
    command = lambda folder, output: [*kill_harness.arguments(folder, output), "--adam-bits", "8"]  # noqa: E731
    assert kill_harness.harness(tmp_path, 2, 1, command) == 0


def test_a_mistake_is_one_sentence(tmp_path, capsys, monkeypatch):
    write_wide(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 48)
    (tmp_path / "tiny.toml").write_text(SETTINGS)
    assert train(tmp_path, "run", "--adam-bits", "8") == 2
    assert "adam_bits: 8 is for a CUDA GPU, got cpu; leave it out" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="^offload.optimizer must be False where adam_bits is 8, got True"):
        Config(adam_bits=8, offload=OffloadConfig(optimizer=True))
    find = importlib.util.find_spec
    monkeypatch.setattr(adamw8, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(ValueError, match=r'^adam_bits: 8 needs bitsandbytes; pip install "rto_fast\[quantized\]"'):
        adamw8.check_adam8(torch.device("cuda"))
