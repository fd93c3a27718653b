"""SFT, DPO and the reward model from their papers' equations: what every step of a run logs, the weights at its end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rto_fast.config import DPOConfig, RMConfig, SFTConfig
from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.training.seeds import permutation
from tests.derivation.adamw import AdamW
from tests.derivation.networks import Scalar, said


class Derived(NamedTuple):
    steps: list[dict[str, float]]
    """What each optimizer step logs."""
    weights: list[Tensor]


def passes(rows: Sequence, config: SFTConfig | DPOConfig | RMConfig, seed: int, stage: str) -> list[list]:
    """The rows of every step: passes in a new order each, batches of one size, what is left over is left out."""
    size = min(config.batch_size, len(rows))
    steps, per_pass = max(1, int(config.epochs * len(rows) // size)), len(rows) // size
    orders = [permutation(len(rows), seed, stage, p) for p in range(-(-steps // per_pass))]
    places = [(p, at * size) for p in range(len(orders)) for at in range(per_pass)][:steps]
    return [[rows[i] for i in orders[p][start : start + size]] for p, start in places]


def run(model: nn.Module, batches: list[list], config, loss: Callable[[list], dict[str, Tensor]]) -> Derived:
    optimizer = AdamW({"policy": ([model], config.optim.lr)}, config.optim, len(batches))
    steps = []
    for batch in batches:
        logged = loss(batch)
        logged["loss"].backward()
        steps.append({name: float(x.detach()) for name, x in logged.items()} | optimizer.step())
    return Derived(steps, list(model.parameters()))


def sft(model: nn.Module, rows: list[EncodedDemonstration], config: SFTConfig, seed: int) -> Derived:
    """-log pi(y | x) of the answers' tokens."""

    def loss(batch: list[EncodedDemonstration]) -> dict[str, Tensor]:
        return {"loss": mean([-x.logprobs for x in said(model, batch)], config.average)}

    return run(model, passes(rows, config, seed, "sft"), config, loss)


def dpo(model: nn.Module, reference: nn.Module, rows: list[EncodedPair], config: DPOConfig, seed: int) -> Derived:
    """Rafailov et al. 2023, eq. 7, with a share of wrong labels (Mitchell 2023); Azar et al. 2023, eq. 17."""

    def loss(batch: list[EncodedPair]) -> dict[str, Tensor]:
        with torch.no_grad():
            ref_chosen, ref_rejected = both_logprobs(reference, batch)
        chosen, rejected = both_logprobs(model, batch)
        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        wrong = config.label_smoothing
        if config.loss == "ipo":
            each = (h - 1 / (2 * config.beta)) ** 2
        else:
            each = -(1 - wrong) * F.logsigmoid(config.beta * h) - wrong * F.logsigmoid(-config.beta * h)
        rewards = config.beta * (chosen - ref_chosen), config.beta * (rejected - ref_rejected)
        return {
            "loss": each.mean(),
            "accuracy": agreement(*rewards),
            "margin": (rewards[0] - rewards[1]).mean(),
            "reward_chosen": rewards[0].mean(),
            "reward_rejected": rewards[1].mean(),
            "logp_chosen": chosen.mean(),
            "logp_rejected": rejected.mean(),
        }

    return run(model, passes(rows, config, seed, "dpo"), config, loss)


def rm(model: Scalar, rows: list[EncodedPair], config: RMConfig, seed: int) -> Derived:
    """Bradley-Terry, eq. 2.2 of arXiv:2404.18922; at the end the scores of all answers get mean 0 and deviation 1."""

    def loss(batch: list[EncodedPair]) -> dict[str, Tensor]:
        chosen, rejected = (model.scores(texts) for texts in both(batch))
        return {
            "loss": -(chosen - rejected).sigmoid().log().mean(),
            "accuracy": agreement(chosen, rejected),
            "margin": (chosen - rejected).mean(),
            "score_chosen": chosen.mean(),
            "score_rejected": rejected.mean(),
        }

    derived = run(model, passes(rows, config, seed, "rm"), config, loss)
    with torch.no_grad():
        scores = torch.cat([model.scores(texts) for texts in both(rows)])
    return derived._replace(weights=[*derived.weights, scores.mean(), scores.std(correction=0)])


def mean(each: list[Tensor], average: str) -> Tensor:
    """Of one (n,) tensor per answer: over all tokens, or over each answer's tokens and then over the answers."""
    return torch.cat(each).mean() if average == "token" else sum(x.mean() for x in each) / len(each)


def agreement(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of the pairs whose chosen answer is worth more; a tie is half a pair."""
    points = [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]
    return torch.tensor(points).mean()


def both(pairs: list[EncodedPair]) -> tuple[list[EncodedDemonstration], list[EncodedDemonstration]]:
    """The chosen answers, and the rejected ones."""
    return (
        [EncodedDemonstration(p.prompt, p.chosen) for p in pairs],
        [EncodedDemonstration(p.prompt, p.rejected) for p in pairs],
    )


def both_logprobs(model: nn.Module, pairs: list[EncodedPair]) -> tuple[Tensor, Tensor]:
    return tuple(torch.stack([x.logprobs.sum() for x in said(model, texts)]) for texts in both(pairs))
