"""Proposition C.2 of Zhong et al. (arXiv:2404.18922): what it costs to fix all actions before the first state is seen.

A finite MDP as float64 tensors: reward (S, A), transition (S, A, S), start (S,), H steps, no KL term. A predetermined
policy is a sequence of H actions (a mixture of them is no better, its value being their mean); an autoregressive one
chooses after seeing the state.
"""

import itertools

import torch
from torch import Tensor

from rto_fast.theory.check import Check, exact, generator


def autoregressive_value(reward: Tensor, transition: Tensor, start: Tensor, horizon: int) -> float:
    """The best value of a policy that sees the state: backward induction."""
    value = reward.new_zeros(len(reward))
    for _ in range(horizon):
        value = (reward + transition @ value).max(1).values
    return float(start @ value)


def predetermined_value(reward: Tensor, transition: Tensor, start: Tensor, horizon: int) -> float:
    """The best value over all A^H sequences of actions, each followed whatever happens."""
    best = -float("inf")
    for actions in itertools.product(range(reward.shape[1]), repeat=horizon):
        states, total = start, 0.0
        for action in actions:
            total += float(states @ reward[:, action])
            states = states @ transition[:, action]
        best = max(best, total)
    return best


def paper_instance() -> tuple[Tensor, Tensor, Tensor, int]:
    """The proof's MDP: states s_0, s_1, s_2, r(s_i, a_j) = 1[i = j], and s_0 leads to s_1 or s_2 with 1/2 each."""
    reward = torch.zeros(3, 2, dtype=torch.float64)
    reward[1, 0] = reward[2, 1] = 1.0
    transition = torch.zeros(3, 2, 3, dtype=torch.float64)
    transition[0, :, 1:] = 0.5
    transition[1, :, 1] = transition[2, :, 2] = 1.0  # never reached within H = 2
    return reward, transition, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), 2


def random_instance(
    states: int, actions: int, horizon: int, deterministic: bool, g: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Normal rewards, one start state, transitions drawn from random softmaxes or to one random state each."""
    reward = torch.randn(states, actions, generator=g, dtype=torch.float64)
    logits = 2 * torch.randn(states, actions, states, generator=g, dtype=torch.float64)
    transition = logits.softmax(2)
    if deterministic:
        transition = torch.nn.functional.one_hot(logits.argmax(2), states).double()
    return reward, transition, torch.eye(states, dtype=torch.float64)[0], horizon


def proposition_c_2(seed: int, count: int) -> list[Check]:
    """The paper's MDP, and where the proposition has no counterpart: in deterministic MDPs."""
    best, fixed = autoregressive_value(*paper_instance()), predetermined_value(*paper_instance())

    def lost(deterministic: bool) -> list[float]:
        drawn = [random_instance(4, 2 + i % 2, 4, deterministic, generator(seed + i)) for i in range(count)]
        return [autoregressive_value(*instance) - predetermined_value(*instance) for instance in drawn]

    gaps = lost(deterministic=False)
    return [
        Check(
            "Prop C.2: predetermined policies lose at least 0.5",
            ">= 0.5",
            f"{best:.3f} - {fixed:.3f} = {best - fixed:.3f}",
            best - fixed >= 0.5 - 1e-12,
        ),
        exact("deterministic MDPs: the two are equal", map(abs, lost(deterministic=True))),
        Check(
            "random stochastic MDPs: autoregressive is never worse",
            ">= 0",
            f"{min(gaps):.2f} to {max(gaps):.2f}",
            min(gaps) >= -1e-12,
        ),
    ]
