"""Recorded steps, without a GPU: operations are written down as they are made and repeated on the same memory.

As in a CUDA graph whatever Python does between them is done once, and what waits for the device cannot be recorded.
"""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rto_fast.kernels.decode_attention import decode_attention_reference
from rto_fast.model import attention
from rto_fast.rollout import Sampling, beam_search, graphs, lane, rollout
from tests.rollout.test_ragged_step import same
from tests.rollout.test_rollout import CONFIGS, build, ragged

attention.register()
EOS = tuple(range(3, 9))
WAITS = {torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Recording(TorchDispatchMode):
    """What a step does to tensors."""

    made: list["Recording"] = []

    def __init__(self):
        super().__init__()
        self.calls = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing\nand a page more")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        self.replays += 1
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(step, pool):
    recording = Recording()
    with recording:
        logits = step()
    Recording.made.append(recording)
    return recording.replay, logits


@pytest.fixture
def plain(monkeypatch):
    """Steps as on a GPU, none recorded; the operator's definition, which waits for nothing."""
    monkeypatch.setattr(lane, "_FUSED", {"cpu"})

    def definition(*args, window, softcap):
        return decode_attention_reference(*args, window, softcap)

    monkeypatch.setattr(attention, "decode_attention", definition)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(Recording, "made", [])
    monkeypatch.setattr(graphs, "_record", record)
    return lambda: monkeypatch.setattr(lane, "DEVICES", {"cpu"})


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"gemma2_window"}))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.filterwarnings("error")
def test_the_same_answers_as_step_by_step(name, temperature, plain, recorded):
    """Rows leave and enter, so that 6 places are padded from 5, 4 and 3; prompts are repeated."""
    model, prompts = build(name, attention.NAME), ragged(16) + ragged(2) * 2
    sampling = Sampling(temperature=temperature, max_new_tokens=20)
    wanted = rollout(model, prompts, sampling, EOS, seed=5, max_batch=6)
    recorded()
    same(rollout(model, prompts, sampling, EOS, seed=5, max_batch=6), wanted)
    assert 2 <= len(Recording.made) <= 4  # of 6, 3, 2 and 1 rows
    assert sum(recording.replays for recording in Recording.made) > 20


@pytest.mark.filterwarnings("error")
def test_beams_are_recorded_too(plain, recorded):
    model, prompts = build("llama", attention.NAME), ragged(6)
    run = lambda: beam_search(model, prompts, (5, 6), num_beams=3, max_new_tokens=9, max_batch=9)  # noqa: E731
    wanted = run()
    recorded()
    for [ours], [theirs] in zip(run(), wanted, strict=True):
        assert ours.response == theirs.response and ours.score == pytest.approx(theirs.score, abs=1e-4)
    assert Recording.made


def test_what_waits_for_the_device_is_stepped_as_ever(plain, recorded, monkeypatch):
    model, prompts = build("llama", attention.NAME), ragged()
    wanted = rollout(model, prompts, Sampling(max_new_tokens=12), (), seed=0, max_batch=4)
    inner = model.model.forward

    def looks(*args, position_ids, **kwargs):
        assert position_ids.max().item() >= 0
        return inner(*args, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", looks)
    recorded()
    said = r"the steps of LlamaForCausalLM cannot be recorded \(operation not permitted when stream is capturing\)"
    with pytest.warns(UserWarning, match=said) as heard:
        same(rollout(model, prompts, Sampling(max_new_tokens=12), (), seed=0, max_batch=4), wanted)
    assert len(heard) == 1


def test_a_step_that_holds_still_what_changes_is_found(plain, recorded, monkeypatch):
    """A network that counts its own steps in Python would be replayed with the first count."""
    model, prompts = build("llama", attention.NAME), ragged()
    wanted = rollout(model, prompts, Sampling(temperature=0, max_new_tokens=12), (), seed=0, max_batch=4)
    real = attention.decode_attention
    held = []

    def once(query, keys, values, lengths, *args, **kwargs):
        held.append(lengths.clone())
        return real(query, keys, values, torch.tensor(lengths.tolist()), *args, **kwargs)

    monkeypatch.setattr(attention, "decode_attention", once)
    monkeypatch.setattr(Recording, "__torch_dispatch__", _blind)
    recorded()
    with pytest.warns(UserWarning, match=r"\(a replay computes something else\); they are launched one by one"):
        same(rollout(model, prompts, Sampling(temperature=0, max_new_tokens=12), (), seed=0, max_batch=4), wanted)


def _blind(self, func, types, args=(), kwargs=None):
    """As a graph, but it lets waits pass."""
    out = func(*args, **(kwargs or {}))
    self.calls.append((func, args, kwargs or {}, out))
    return out


def test_without_a_failure_nothing_is_said_of_another_device():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rollout(build("llama", attention.NAME), ragged(3), Sampling(max_new_tokens=3), (), seed=0)
