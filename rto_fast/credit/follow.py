"""DPO from several starts, with implicit rewards and eq. 16 measured on the way (see `likelihood`)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rto_fast.credit.kl import kl_per_answer
from rto_fast.credit.options import Follow
from rto_fast.credit.source import Source
from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.evaluate.policies import answer_logprobs
from rto_fast.evaluate.stats import mean_estimate, wins
from rto_fast.model.language import LanguageModel
from rto_fast.rollout import Completion, Sampling, rollout
from rto_fast.runs.open import Run
from rto_fast.stages.dpo import DPO
from rto_fast.stages.sft import SFT
from rto_fast.training import loop
from rto_fast.training.seeds import derive

STARTS = {
    "chosen": "SFT on the chosen answers first",
    "demonstrations": "SFT on demonstrations first",
    "none": "no SFT",
}

_TUNING = 0.25
"""Learning rate of the SFT on chosen answers as a share of the run's, since it goes on from the run's SFT."""


@dataclass(frozen=True)
class Point:
    """Means over answers at one step, and half-widths of their 95 % intervals; nats times beta."""

    step: int
    chosen: float
    chosen_ci95: float
    rejected: float
    rejected_ci95: float
    own: float
    """E_{pi_ref}[beta log pi/pi_ref] over sampled answers"""
    own_ci95: float
    minus_beta_kl: float
    minus_beta_kl_ci95: float
    gap: float
    """own - minus_beta_kl, paired by answer"""
    gap_ci95: float
    accuracy: float
    """Share of pairs whose chosen answer has the higher reward, ties half"""

    def mean(self, figure: str) -> tuple[float, float]:
        """A figure and the half-width of its interval."""
        return getattr(self, figure), getattr(self, f"{figure}_ci95")


@dataclass(frozen=True)
class Curve:
    beta: float
    logprobs: dict[str, float]
    """Mean log pi_ref of the chosen, rejected and sampled answers, nats"""
    points: list[Point]

    def plain(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs, "points": [asdict(p) for p in self.points]}

    def lines(self, title: str) -> list[str]:
        """The points as a table for people."""
        logp = ", ".join(f"{name} {value:.1f}" for name, value in self.logprobs.items())
        lines = [f"{title}: log pi_ref of {logp} nats per answer"]
        lines.append(
            "  step " + " ".join(f"{x:>15}" for x in ("chosen", "rejected", "E_ref[reward]", "-beta KL")) + "    acc"
        )
        for p in self.points:
            cells = ("{:+.3f} +- {:.3f}".format(*p.mean(x)) for x in ("chosen", "rejected", "own", "minus_beta_kl"))
            lines.append(f"  {p.step:>4} {' '.join(cells)} {p.accuracy:>6.2f}")
        return [
            *lines,
            f"  eq. 16: E_ref[reward] - (-beta KL) = {p.gap:+.4f} +- {p.gap_ci95:.4f}; log-likelihood of chosen "
            f"{p.chosen / self.beta:+.2f}, of rejected {p.rejected / self.beta:+.2f} nats",
        ]


def starts_of(source: Source, wanted: Sequence[str]) -> list[str]:
    """The starts that differ: a run without demonstrations did its SFT on the chosen answers."""
    return [s for s in wanted if s != "demonstrations" or source.run.config.data.demonstrations]


def start_model(source: Source, start: str, seed: int, progress: Callable[[int], None]) -> LanguageModel:
    """The model that DPO starts from."""
    run = source.run
    if start == "none":
        return run.load(run.config.model.path, trained=True)
    model = run.load(source.reference_path, "reference", trained=True)
    if start == "chosen" and run.config.data.demonstrations:
        sft = run.config.sft
        config = replace(sft, epochs=1.0, optim=replace(sft.optim, lr=sft.optim.lr * _TUNING))
        answers = [EncodedDemonstration(p.prompt, p.chosen) for p in source.corpus.pairs]
        state = loop.make_state(config.optim, {"policy": model})
        stage = SFT(model, answers, config, state, seed=seed, device=run.device, **run.limits)
        _train(stage, state, run, lambda _: progress(1))
    return model


def dpo_from(
    model: LanguageModel, source: Source, options: Follow, seed: int, progress: Callable[[int], None]
) -> Curve:
    """Train `model` by DPO for `steps` steps on as many pairs as they take, measuring at `points` steps and at 0."""
    run, dpo, steps = source.run, source.run.config.dpo, options.steps
    reference = copy.deepcopy(model).requires_grad_(False).eval()
    pairs = source.corpus.pairs[: steps * dpo.batch_size]
    probe = _Probe(reference, source, pairs[: options.answers], seed)
    curve = Curve(dpo.beta, probe.logprobs, [probe.point(model, 0)])
    at = {round(steps * i / options.points) for i in range(1, options.points + 1)}

    def after(step: int) -> None:
        progress(1)
        if step in at:
            curve.points.append(probe.point(model, step))

    # a file shorter than that is gone through again
    config = replace(dpo, epochs=steps * min(dpo.batch_size, len(pairs)) / len(pairs))
    state = loop.make_state(config.optim, {"policy": model})
    stage = DPO(model, pairs, config, state, seed=seed, device=run.device, **run.limits)
    _train(stage, state, run, after)
    return curve


class _Probe:
    """The answers to measure on, and what pi_ref says of them."""

    def __init__(self, reference: LanguageModel, source: Source, pairs: list[EncodedPair], seed: int):
        config = source.run.config
        self.reference, self.beta, self.limits = reference, config.dpo.beta, source.run.limits
        self.own = rollout(
            reference.hf,
            [p.prompt for p in pairs],
            Sampling(max_new_tokens=config.max_new_tokens),
            source.eos_token_ids,
            seed=derive(seed, "likelihood"),
            max_batch=config.rto.sampling.batch_size,
        )
        known = [EncodedDemonstration(p.prompt, getattr(p, kind)) for kind in ("chosen", "rejected") for p in pairs]
        self.answers: list[Completion | EncodedDemonstration] = [*known, *self.own]
        self.before = self._sums(reference)
        self.logprobs = dict(zip(("chosen", "rejected", "its own"), self.before.mean(1).tolist(), strict=True))

    def _sums(self, model: LanguageModel) -> np.ndarray:
        """(3, answers)"""
        return np.array([x.sum() for x in answer_logprobs(model, self.answers, **self.limits)]).reshape(3, -1)

    def point(self, model: LanguageModel, step: int) -> Point:
        chosen, rejected, own = self.beta * (self._sums(model) - self.before)
        kl = -self.beta * kl_per_answer(self.reference, model, self.own, self.limits["microbatch_rows"])
        cells: dict[str, float] = {}
        figures = {"chosen": chosen, "rejected": rejected, "own": own, "minus_beta_kl": kl, "gap": own - kl}
        for name, values in figures.items():
            estimate = mean_estimate(values)
            cells |= {name: estimate.value, f"{name}_ci95": estimate.ci95}
        return Point(step, accuracy=float(wins(chosen, rejected).mean()), **cells)


def _train(stage: loop.Stage[loop.B], state: loop.TrainState, run: Run, after: Callable[[int], None]) -> None:
    """One stage by the training loop; nothing is written."""
    loop.train(stage, state, lambda *_: None, stage.num_steps, run.autocast, lambda s: after(s.step))
