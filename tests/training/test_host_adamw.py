"""Moments in host memory: AdamW's updates bit for bit, a bucket of parameters at a time."""

import pytest
import torch
from torch import nn

from rto_fast.config import OptimConfig
from rto_fast.training import host_adamw
from rto_fast.training.host_adamw import HostAdamW
from rto_fast.training.loop import TrainState, make_state

CONFIG = OptimConfig(lr=0.1, weight_decay=0.3)
BUCKET = 40


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch):
    monkeypatch.setattr(host_adamw, "BUCKET", BUCKET)


def state_of(on_host: bool) -> TrainState:
    """Of two networks; one tensor of the first alone fills more than a bucket."""
    torch.manual_seed(0)
    networks = {"policy": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), "critic": nn.Linear(3, 5)}
    return make_state(CONFIG, networks, on_host, critic=0.02)


def take(state: TrainState, numbers: range) -> None:
    """Steps with gradients of their numbers: in step 2 the critic has none, step 3 is refused."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for name, params in state.parameters().items():
            for p in params:
                gradient = torch.randn(p.shape, generator=generator)
                p.grad = None if (name, number) == ("critic", 2) else gradient
        state.optimizer.found_inf = torch.tensor(float(number == 3))
        state.optimizer.step()


def saved(state: TrainState) -> dict[str, torch.Tensor]:
    parts, _ = state.save()
    return {f"{part}.{name}": x.clone() for part, tensors in parts.items() for name, x in tensors.items()}


def test_the_updates_are_adamws_bit_for_bit():
    plain, host = state_of(False), state_of(True)
    assert type(host.optimizer) is HostAdamW and type(plain.optimizer) is torch.optim.AdamW
    for number in range(6):
        before = {name: x.clone() for name, x in saved(host).items() if name.startswith("weights.")}
        take(plain, range(number, number + 1))
        take(host, range(number, number + 1))
        a, b = saved(plain), saved(host)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        moved = not all(torch.equal(b[name], x) for name, x in before.items())
        assert moved == (number != 3)


def test_a_checkpoint_of_one_is_a_checkpoint_of_the_other():
    straight = state_of(False)
    take(straight, range(6))
    for first, second in ((False, True), (True, False), (True, True)):
        begun, resumed = state_of(first), state_of(second)
        take(begun, range(4))
        parts, facts = begun.save()
        parts = {part: {name: x.clone() for name, x in tensors.items()} for part, tensors in parts.items()}
        resumed.restore(4, parts, facts)
        take(resumed, range(4, 6))
        a, b = saved(straight), saved(resumed)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_bucket_of_moments_is_there_at_a_time_and_stays_where_it_is_on_the_host(monkeypatch):
    state, together = state_of(True), []
    plain = torch.optim.AdamW.step

    def step(self):
        together.append([p.numel() for group in self.param_groups for p in group["params"] if p.grad is not None])
        return plain(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    take(state, range(1))
    # matrices decay and come first: 64 alone, 16 + 10, then 15 + 5
    assert sorted(sum(together, [])) == [2, 5, 8, 15, 16, 64]
    assert all(sum(sizes) <= BUCKET or sizes == [64] for sizes in together) and len(together) < 6
    places = {name: x.data_ptr() for name, x in _moments(state).items()}
    take(state, range(1, 2))
    assert places == {name: x.data_ptr() for name, x in _moments(state).items()}
    gradients = [p.grad for params in state.parameters().values() for p in params]
    assert all(g is not None for g in gradients)  # the loop clears them, as with any optimizer


def _moments(state: TrainState) -> dict[str, torch.Tensor]:
    values = state.optimizer.state_dict()["state"]
    return {f"{number}.{name}": x for number, named in values.items() for name, x in named.items()}
