"""Networks that wait in host memory: where their tensors are inside and outside of `lent`."""

import pytest
import torch
from torch import Tensor, nn

from rto_fast.model.lend import lent
from tests.tiny import language_model

THERE = torch.device("meta")


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """By name, tied ones under each of theirs."""
    return dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers())


@pytest.mark.parametrize("architecture", ["llama", "llama_tied"])
def test_weights_and_buffers_are_there_inside_and_the_hosts_own_afterwards(architecture):
    waits, stays = language_model(architecture), nn.Linear(2, 2, device=THERE)
    own, others = tensors(waits), tensors(stays)
    assert any("inv_freq" in name for name in own)
    with lent((waits, None, stays), THERE):
        lying = tensors(waits)
        assert {x.device.type for x in lying.values()} == {"meta"} == {waits.hf.device.type}
        assert {name: (x.shape, x.dtype) for name, x in lying.items()} == {
            n: (x.shape, x.dtype) for n, x in own.items()
        }
        head, embedding = waits.hf.lm_head.weight, waits.hf.get_input_embeddings().weight
        assert (head is embedding) == (architecture == "llama_tied")
        assert all(tensors(stays)[name] is x for name, x in others.items())
    assert all(tensors(waits)[name] is x for name, x in own.items())


def test_where_they_lie_already_nothing_is_touched():
    model = language_model()
    own = tensors(model)
    with lent((model,), torch.device("cpu")):
        assert all(tensors(model)[name] is x for name, x in own.items())


def test_they_go_back_after_an_error_also_where_there_is_no_room_for_all(monkeypatch):
    model = language_model()
    own = tensors(model)
    with pytest.raises(RuntimeError, match="inside"), lent((model,), THERE):
        raise RuntimeError("inside")
    assert all(tensors(model)[name] is x for name, x in own.items())
    room, plain = [3], Tensor.to

    def to(self, device):
        room[0] -= 1
        if room[0] < 0:
            raise torch.OutOfMemoryError
        return plain(self, device)

    monkeypatch.setattr(Tensor, "to", to)
    with pytest.raises(torch.OutOfMemoryError), lent((model,), THERE):
        raise AssertionError("that there is no room was not noticed")
    assert all(tensors(model)[name] is x for name, x in own.items())
