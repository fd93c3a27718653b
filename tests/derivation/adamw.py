"""AdamW (Loshchilov & Hutter, arXiv:1711.05101, algorithm 2), clipping, and the learning rate's schedule."""

import math

import torch
from torch import Tensor, nn

from rto_fast.config import OptimConfig


class AdamW:
    """Networks by name, each with its own peak learning rate and its own gradient norm."""

    def __init__(self, networks: dict[str, tuple[list[nn.Module], float]], config: OptimConfig, num_steps: int):
        self.config, self.num_steps, self.done = config, num_steps, 0
        self.networks = {name: ([p for m in ms for p in m.parameters()], lr) for name, (ms, lr) in networks.items()}
        # what multiplies a vector decays; what scales or shifts one (norms, biases) does not
        kinds = [k for ms, _ in networks.values() for m in ms for k in m.modules()]
        self.decaying = {id(k.weight) for k in kinds if isinstance(k, nn.Linear | nn.Embedding)}
        self.moments: dict[int, tuple[int, Tensor, Tensor]] = {}

    @property
    def factor(self) -> float:
        """Share of the peak learning rate at the coming step."""
        c, step = self.config, self.done
        rising = math.ceil(c.warmup * self.num_steps)
        if step < rising:
            return (step + 1) / rising
        if c.schedule == "constant":
            return 1.0
        along = (step - rising) / (self.num_steps - rising)
        height = {"linear": 1 - along, "cosine": (1 + math.cos(math.pi * along)) / 2}[c.schedule]
        return height + c.min_lr * (1 - height)

    @torch.no_grad()
    def step(self) -> dict[str, float]:
        """Take one; what there is to log of it."""
        factor, logged = self.factor, {}
        for name, (parameters, lr) in self.networks.items():
            live = [p for p in parameters if p.grad is not None]
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in live))
            logged |= {f"grad_norm/{name}": norm, f"lr/{name}": lr * factor}
            most = self.config.max_grad_norm
            shrink = most / norm if 0 < most < norm else 1.0
            for p in live:
                self._move(p, p.grad * shrink, lr * factor)
                p.grad = None
        self.done += 1
        return logged

    def _move(self, p: Tensor, gradient: Tensor, lr: float) -> None:
        (b1, b2), decay = self.config.betas, self.config.weight_decay if id(p) in self.decaying else 0.0
        t, m, v = self.moments.get(id(p), (0, torch.zeros_like(p), torch.zeros_like(p)))
        t, m, v = t + 1, b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        self.moments[id(p)] = t, m, v
        p -= lr * ((m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.config.eps) + decay * p)
