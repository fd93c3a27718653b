"""The one training loop by itself, on a stage of one vector: every number can be worked out by hand."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rto_fast.config import OptimConfig
from rto_fast.training import loop

# without momentum and with an eps far above any gradient AdamW moves by lr times gradient / eps: plain descent
PLAIN = OptimConfig(lr=0.5, schedule="constant", warmup=0.0, betas=(0.0, 0.0), eps=1.0, max_grad_norm=0.0)


@dataclass
class Batch:
    """The loss is the sum of slopes . weight."""

    slopes: list[list[float]]

    @property
    def packed(self):
        return SimpleNamespace(num_rows=len(self.slopes))


class Lines:
    """A stage whose steps are given: lists of micro-batches, and what each step's sum is divided by."""

    def __init__(self, weight: nn.Parameter, steps: list[tuple[list[Batch], float]], metrics: dict | None = None):
        self.weight, self.given, self.num_steps = weight, steps, len(steps)
        self.metrics = metrics or {}
        self.seen: list[torch.Tensor] = []

    def steps(self):
        for batches, total in self.given:
            yield loop.Step(batches, total, self.metrics)

    def losses(self, batch: Batch, total: float):
        self.seen.append(self.weight.detach().clone())
        slopes = torch.tensor(batch.slopes, dtype=self.weight.dtype)
        yield (slopes @ self.weight).sum() / total, {"rows": torch.tensor(float(len(batch.slopes)))}


def train(steps, config: OptimConfig = PLAIN, log_every: int = 1, metrics: dict | None = None, start=(0.0, 0.0)):
    """The stage, its weight and the logs, trained."""
    weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    state, logs = loop.make_state(config, {"policy": nn.ParameterList([weight])}), []
    stage = Lines(weight, [([Batch(b) for b in batches], total) for batches, total in steps], metrics)
    loop.train(stage, state, lambda step, numbers: logs.append((step, numbers)), log_every)
    return stage, weight.detach(), logs, state


def moved(*gradients: list[float], lr: float = 0.5) -> torch.Tensor:
    """Where plain AdamW of eps 1 goes from 0 by these gradients."""
    return sum(-lr * g / (g.abs() + 1.0) for g in map(lambda x: torch.tensor(x, dtype=torch.float64), gradients))


def test_the_gradient_is_the_sum_over_micro_batches_divided_by_the_weight_of_the_step():
    _, weight, logs, _ = train([([[[1.0, 2.0]], [[3.0, -1.0], [2.0, 2.0]]], 4.0)], start=(1.0, 1.0))
    torch.testing.assert_close(weight, 1.0 + moved([6 / 4, 3 / 4]))
    (step, numbers) = logs[0]
    assert step == 1
    assert numbers["loss"] == pytest.approx((3 + 2 + 4) / 4) and numbers["rows"] == pytest.approx(3 / 4)
    assert numbers["grad_norm/policy"] == pytest.approx(math.hypot(6 / 4, 3 / 4))


def test_a_steps_gradient_is_its_own():
    stage, weight, _, _ = train([([[[1.0, 0.0]]], 1.0), ([[[0.0, 2.0]], [[0.0, 1.0]]], 1.0), ([[[0.5, 0.0]]], 1.0)])
    torch.testing.assert_close(weight, moved([1.0, 0.0], [0.0, 3.0], [0.5, 0.0]))
    # micro-batches of one step see the same weights
    assert torch.equal(stage.seen[1], stage.seen[2]) and not torch.equal(stage.seen[0], stage.seen[1])
    assert stage.weight.grad is None


@pytest.mark.parametrize("norm, factor", [(0.0, 1.0), (10.0, 1.0), (2.5, 0.5), (1.0, 0.2)])
def test_gradients_are_scaled_down_to_the_norm_and_never_up(norm, factor):
    config = OptimConfig(**{**vars(PLAIN), "max_grad_norm": norm})
    _, weight, logs, _ = train([([[[3.0, 4.0]]], 1.0)], config)
    torch.testing.assert_close(weight, moved([3.0 * factor, 4.0 * factor]), rtol=1e-5, atol=0)  # torch adds 1e-6
    assert logs[0][1]["grad_norm/policy"] == pytest.approx(5.0)  # as it was


def test_every_network_has_a_norm_and_a_rate_of_its_own():
    one, two = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    config = OptimConfig(**{**vars(PLAIN), "max_grad_norm": 1.0})
    networks = {"policy": nn.ParameterList([one]), "critic": nn.ParameterList([two])}
    state, logs = loop.make_state(config, networks, critic=0.1), []
    stage = Lines(one, [([Batch([[4.0]])], 1.0)])
    stage.losses = lambda batch, total: iter([((4.0 * one + 0.5 * two).sum(), {})])
    loop.train(stage, state, lambda step, numbers: logs.append(numbers))
    torch.testing.assert_close(one.detach(), moved([1.0]), rtol=1e-5, atol=0)
    torch.testing.assert_close(two.detach(), moved([0.5], lr=0.1))
    assert logs[0]["grad_norm/policy"] == pytest.approx(4.0) and logs[0]["grad_norm/critic"] == pytest.approx(0.5)
    assert (logs[0]["lr/policy"], logs[0]["lr/critic"]) == (0.5, 0.1)


def test_the_rate_of_a_step_is_its_own_and_is_logged():
    config = OptimConfig(**{**vars(PLAIN), "warmup": 0.5, "schedule": "linear", "min_lr": 0.2})
    _, weight, logs, _ = train([([[[1.0, 0.0]]], 1.0)] * 4, config)
    rates = [0.25, 0.5, 0.5, 0.5 * (0.2 + 0.8 / 2)]
    assert [numbers["lr/policy"] for _, numbers in logs] == pytest.approx(rates)
    assert float(weight[0]) == pytest.approx(-sum(rates) / 2)


def test_cosine_and_linear_fall_from_the_end_of_the_warm_up_to_min_lr():
    for schedule, middle in (("linear", 0.55), ("cosine", 0.55), ("constant", 1.0)):
        config = OptimConfig(lr=1.0, warmup=0.2, schedule=schedule, min_lr=0.1)
        factors = [loop.lr_factor(step, 10, config) for step in range(11)]
        assert factors[:3] == [0.5, 1.0, 1.0] and factors[6] == pytest.approx(middle)
        assert factors[10] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    quarter = loop.lr_factor(4, 10, OptimConfig(warmup=0.2, schedule="cosine", min_lr=0.1))
    assert quarter == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)


def test_it_logs_every_so_many_steps_and_at_the_end_and_whatever_a_stage_reports():
    steps = [([[[1.0, 0.0]]], 1.0)] * 5
    assert [step for step, _ in train(steps, log_every=2)[2]] == [2, 4, 5]
    logs = train(steps, log_every=2, metrics={"kl": torch.tensor(3.0)})[2]
    assert [step for step, _ in logs] == [1, 2, 3, 4, 5] and all(numbers["kl"] == 3.0 for _, numbers in logs)


def test_tokens_per_second_are_the_rows_since_the_last_line_over_its_time(monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 16.0, 16.0])  # begin; a line and what comes after it, twice
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    two, three = ([[1.0, 0.0]] * 2, [[0.0, 1.0]] * 3)
    logs = train([([two, three], 1.0), ([two], 1.0), ([three], 1.0), ([three], 1.0)], log_every=2)[2]
    assert [numbers["tokens_per_second"] for _, numbers in logs] == [7 / 2.0, 6 / 4.0]
    assert all(numbers["memory/peak_mb"] > 1 for _, numbers in logs)


def test_it_goes_on_from_the_step_where_the_state_is():
    _, weight, _, state = train([([[[1.0, 0.0]]], 1.0)] * 3)
    assert state.step == 3 and state.between_steps
    config = OptimConfig(**{**vars(PLAIN), "warmup": 0.5})
    stage = Lines(nn.Parameter(torch.zeros(2, dtype=torch.float64)), [([Batch([[1.0, 0.0]])], 1.0)])
    stage.num_steps = 4
    state, logs = loop.make_state(config, {"policy": nn.ParameterList([stage.weight])}), []
    state.step = 3
    loop.train(stage, state, lambda step, numbers: logs.append((step, numbers["lr/policy"])))
    assert logs == [(4, 0.5)]  # the second half is at the peak


def test_matrices_decay_norms_and_biases_never():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.linear, self.norm = nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    net = Net()
    for p in net.parameters():
        nn.init.ones_(p)
    config = OptimConfig(**{**vars(PLAIN), "weight_decay": 0.2})
    state = loop.make_state(config, {"policy": net})
    for p in net.parameters():
        p.grad = torch.zeros_like(p)  # nothing moves but by decay
    state.optimizer.step()
    decayed = {name for name, p in net.named_parameters() if not torch.equal(p, torch.ones_like(p))}
    assert decayed == {"embedding.weight", "linear.weight"}
    assert float(net.linear.weight.detach()[0, 0]) == pytest.approx(1 - 0.5 * 0.2)
    assert [g["peak_lr"] for g in state.optimizer.param_groups] == [0.5, 0.5]
