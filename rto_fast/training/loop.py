"""The one training loop: it knows batches and losses, but no stage, model or kernel by name."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rto_fast.config import GuardConfig, OptimConfig
from rto_fast.packing import PackedBatch
from rto_fast.training import mesh
from rto_fast.training.adamw8 import BLOCK, make_adamw8
from rto_fast.training.guards import StepGuard
from rto_fast.training.host_adamw import HostAdamW
from rto_fast.training.metrics import peak_memory_mb


class Batch(Protocol):
    """What the loop asks of a micro-batch; the rest is between a stage's steps and its loss."""

    @property
    def packed(self) -> PackedBatch: ...


B = TypeVar("B", bound=Batch)
T = TypeVar("T")

Note = Callable[[str], None]
"""Logs what goes on between two steps; set by whoever shows progress."""


def silent(text: str) -> None:
    """A Note that nobody reads."""


def ignored(sums: dict[str, Tensor]) -> None:
    """What a stage that keeps nothing of its statistics does with them."""


@dataclass(frozen=True, slots=True)
class Step(Generic[B]):
    """The micro-batches of one optimizer step."""

    batches: list[B]
    total: float
    """Weight of the whole step over all micro-batches (tokens, answers or pairs): the loss sums are divided by it."""
    metrics: dict[str, Tensor | float] = field(default_factory=dict)
    """What the stage has to say before this step, e.g. about the rollout that it trains on."""
    idle: int = 0
    """How many of the batches, the last ones, count for nothing: other ranks have more to do."""
    after: Callable[[dict[str, Tensor]], None] = ignored
    """Called with the sums of all statistics, when the step is done and not yet saved."""


class Stage(Protocol[B]):
    num_steps: int
    note: Note

    def steps(self) -> Iterator[Step[B]]: ...

    def losses(self, batch: B, total: float) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The loss in parts, sums over rows divided by `total`, with statistics that are sums; all on the device.

        A part goes backward before the next is asked for: networks that share no trained weights are a part each, and
        the activations of one of them are there at a time. The gradients are those of the sum, bit for bit.
        """


@dataclass(slots=True)
class TrainState:
    """Everything that changes while a stage runs. Random streams are derived from the seed and these counters."""

    optimizer: torch.optim.Optimizer
    optim: OptimConfig
    """The schedule of the learning rates, and the limit of gradient norms."""
    step: int = 0
    progress: dict[str, float] = field(default_factory=dict)
    """Counters and controllers of the stage, e.g. its iteration and its KL coefficient."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the stage could not compute again after a step, e.g. the rollout that it is training on."""
    between_steps: bool = True
    """False while a step is being taken: only between steps does the state describe one moment."""
    guard: StepGuard | None = None
    """Set while the stage runs: a state behind a step that was not finite is not to be saved."""

    def save(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors by part and name, facts): all that `restore` needs after a step. Raises BadStep."""
        if self.guard is not None:
            self.guard.raise_if_broken()
        moments = self.optimizer.state_dict()["state"]
        parts = {
            "weights": self._weights(),
            "optimizer": {f"{i}.{name}": x for i, values in moments.items() for name, x in values.items()},
            "stage": self.tensors,
        }
        return parts, {"progress": self.progress}

    def restore(self, step: int, parts: dict[str, dict[str, Tensor]], facts: dict[str, Any]) -> None:
        """Take up what `save` gave. Raises ValueError when it belongs to another model, or to an older version."""
        weights, saved = self._weights(), parts["weights"]
        shapes, wanted = ({name: x.shape for name, x in tensors.items()} for tensors in (saved, weights))
        fit = {"optimizer", "stage"} <= set(parts) and shapes == wanted
        for key, x in parts.get("optimizer", {}).items():
            number = key.partition(".")[0]
            fit = fit and number in saved and _fits(x, saved[number])
        if not fit:
            raise ValueError("checkpoint: its weights are those of another model; start over with --resume False")
        if "reference" in parts["stage"]:  # pi_ref's log-probs, which would be made anew, of the weights trained so far
            raise ValueError(
                "checkpoint: an older rto_fast wrote it; finish the stage with that, or start over with --resume False"
            )
        with torch.no_grad():
            for name, p in weights.items():
                p.copy_(saved[name])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, x in parts["optimizer"].items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = x
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.progress, self.tensors = step, dict(facts["progress"]), dict(parts["stage"])

    def _weights(self) -> dict[str, Tensor]:
        groups = (group["params"] for group in self.optimizer.param_groups)
        return {str(i): p for i, p in enumerate(chain.from_iterable(groups))}

    def parameters(self) -> dict[str, list[Tensor]]:
        """The trained parameters of each network by its name; gradients are clipped per network."""
        networks: dict[str, list[Tensor]] = {}
        for group in self.optimizer.param_groups:
            networks.setdefault(group["network"], []).extend(group["params"])
        return networks

    def set_rates(self, num_steps: int) -> dict[str, float]:
        """Give each network the learning rate of the coming step, of `num_steps` in all; the rates, to be logged."""
        factor = lr_factor(self.step, num_steps, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return {f"lr/{group['network']}": group["lr"] for group in self.optimizer.param_groups}


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether x can be of a weight's state: a count, a moment, or what a moment's blocks share (adamw8)."""
    return x.shape in (torch.Size(()), weight.shape, torch.Size((math.ceil(weight.numel() / BLOCK),)))


def make_state(
    config: OptimConfig,
    networks: Mapping[str, nn.Module | None],
    on_host: bool = False,
    bits: int = 32,
    **peak_lr: float,
) -> TrainState:
    """AdamW over the networks that there are, nothing trained yet: matrices decay, norms and biases do not.

    A network's learning rate peaks at config.lr, or where its name is given: `critic=1e-5`. on_host: see HostAdamW;
    bits of a moment, 8 or 32: see adamw8.
    """
    groups = []
    for name, module in networks.items():
        lr = peak_lr.get(name, config.lr)
        trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        for params, weight_decay in ((matrices, config.weight_decay), (others, 0.0)):
            if params:
                groups.append(dict(params=params, weight_decay=weight_decay, network=name, lr=lr, peak_lr=lr))
    if bits == 8:
        return TrainState(make_adamw8(groups, config.betas, config.eps), config)
    adamw = HostAdamW if on_host else torch.optim.AdamW
    return TrainState(adamw(groups, betas=config.betas, eps=config.eps, fused=True), config)


def lr_factor(step: int, num_steps: int, config: OptimConfig) -> float:
    """Share of the peak learning rate at `step` (0-based): a linear warm-up, then the schedule down to min_lr."""
    warmup = math.ceil(config.warmup * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    falling = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr + (1 - config.min_lr) * falling


def train(
    stage: Stage[B],
    state: TrainState,
    log: Callable[[int, dict[str, float]], None],
    log_every: int = 1,
    autocast: torch.dtype | None = None,
    after_step: Callable[[TrainState], None] = lambda state: None,
    guards: GuardConfig = GuardConfig(),  # noqa: B008  (frozen)
) -> None:
    """Run the stage from state.step to its end: normalise, backward, clip, step, log.

    log(step, metrics) is called every `log_every` steps and whenever the stage reports; only then do statistics reach
    the host. after_step(state) is called when a step is done and logged: the state can be saved there, and only there.
    A step whose loss or gradient is not finite is not taken, nor is any after it; that is decided on the device, and
    the next logged step or save raises BadStep. `guards` says what happens to large gradients.
    """
    device = state.optimizer.param_groups[0]["params"][0].device
    precision = partial(torch.autocast, device.type, autocast, enabled=autocast is not None)
    rows, since = 0, time.perf_counter()
    state.guard = guard = StepGuard(guards, device)
    for step in _under(precision, stage.steps()):
        state.between_steps = False
        rates = state.set_rates(stage.num_steps)
        sums: dict[str, Tensor] = {}
        counted = step.batches[: len(step.batches) - step.idle]
        rows += sum(batch.packed.num_rows for batch in counted)
        for batch in counted:
            for loss, stats in _under(precision, stage.losses(batch, step.total)):
                loss.backward()
                for name, value in {"loss": loss.detach() * step.total, **stats}.items():
                    sums[name] = sums[name] + value if name in sums else value
        if not counted:  # whoever has nothing to do still has to know what there is to add up
            sums = _names(_under(precision, stage.losses(step.batches[0], step.total)))
        mesh.add_up(sums, state.parameters())
        step.after(sums)
        norms = {f"grad_norm/{name}": _clip(ps, state.optim.max_grad_norm) for name, ps in state.parameters().items()}
        logged = (state.step + 1) % log_every == 0 or bool(step.metrics) or state.step + 1 == stage.num_steps
        refused = guard.refuse(state.step + 1, step.batches, sums["loss"], list(norms.values()))
        state.optimizer.found_inf = refused  # type: ignore[attr-defined]  # a fused step reads it, GradScaler sets it too
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.between_steps = True
        if logged:
            means = {name: value / step.total for name, value in sums.items()}
            metrics = {name: float(value) for name, value in {**step.metrics, **means, **norms, **rates}.items()}
            metrics |= guard.report(metrics["loss"])
            metrics["tokens_per_second"] = mesh.ranks() * rows / (time.perf_counter() - since)
            metrics["memory/peak_mb"] = peak_memory_mb(device)
            rows, since = 0, time.perf_counter()
            log(state.step, metrics)
        after_step(state)


@torch.no_grad()
def _names(losses: Iterator[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Zeros by the names of a step's statistics."""
    return {name: torch.zeros_like(x) for loss, stats in losses for name, x in {"loss": loss, **stats}.items()}


def _under(context: Callable[[], AbstractContextManager[Any]], items: Iterator[T]) -> Iterator[T]:
    """The same items, each made under the context: rollout, scoring and losses in one precision, no backward in it."""
    while True:
        with context():
            item = next(items, None)
        if item is None:
            return
        yield item


def _clip(parameters: list[Tensor], max_norm: float) -> Tensor:
    """Scale one network's gradients down to max_norm; the norm before that, on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:  # a policy while its critic warms up; of nothing, torch makes a norm on the CPU
        return torch.zeros((), device=parameters[0].device)
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
