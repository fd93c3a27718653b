"""The three ways of decoding, each as rows of figures: beam search, best of n, realignment.

P prompts.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rto_fast.decode.options import Options
from rto_fast.decode.source import Source
from rto_fast.evaluate.policies import Evaluation, interval
from rto_fast.evaluate.stats import mean_estimate, win_rate
from rto_fast.rollout import Completion, Mixture, Sampling, beam_search, realign, rollout
from rto_fast.training.seeds import derive

Row = dict[str, Any]
Progress = Callable[[int], None]


def num_rows(options: Options, num_prompts: int) -> int:
    """Rows that everything decodes together, for the progress bar: a beam is a row, and so is a sample."""
    samplers = 2 + (options.policy is not None)
    beams = sum(options.beams) * len(options.search)
    samples = samplers * max(options.best_of, default=0)
    return num_prompts * (2 + beams + samples + (samplers - 1) * len(options.strengths))


@dataclass(frozen=True)
class Lab:
    """Decodes with one source, and measures against its two baselines."""

    source: Source
    options: Options
    progress: Progress
    baselines: dict[str, Evaluation]
    """The DPO policy "sampled" and "greedy": what the other rows are compared with."""

    def beam(self) -> Iterator[Row]:
        """One row per search and number of beams."""
        source, options = self.source, self.options
        for search in options.search if options.beams else ():
            for num_beams in options.beams:
                started = time.perf_counter()

                def progress(prompts: int, beams: int = num_beams) -> None:
                    self.progress(prompts * beams)

                found = beam_search(
                    source.dpo.hf,
                    source.prompts,
                    source.eos_token_ids,
                    num_beams=num_beams,
                    max_new_tokens=source.sampling.max_new_tokens,
                    length_penalty=options.length_penalty,
                    reference=source.reference.hf if search == "implicit_reward" else None,
                    max_batch=options.max_batch,
                    progress=progress,
                )
                seconds = time.perf_counter() - started
                setting = {"search": search, "beams": num_beams, "length_penalty": options.length_penalty}
                # they were not drawn from a distribution, so they have no log-probs under it
                answers = [Completion(best.prompt, best.response, [], best.finish) for (best,) in found]
                yield setting | self._row(answers, seconds)

    def best_of(self) -> Iterator[Row]:
        """One row per sampler, judge and n. The samples of a small n are among those of a larger one."""
        for sampler in self._names("dpo", "reference") if self.options.best_of else ():
            yield from self._best_of(sampler)

    def realignment(self) -> Iterator[Row]:
        """One row per base and strength: pi ~ pi_base (pi_dpo / pi_ref)^b, sampled."""
        source = self.source
        for base in self._names("reference"):
            for strength in self.options.strengths:
                started = time.perf_counter()
                model = realign(getattr(source, base).hf, source.dpo.hf, source.reference.hf, strength)
                answers = sample(source, model, self.options.max_batch, self.progress)
                seconds = time.perf_counter() - started
                # the sampler's log-probs are those of what it sampled from: after temperature and top-p
                own = np.array([sum(a.logprobs) for a in answers])
                yield {"base": self._label(base), "strength": strength} | self._row(answers, seconds, own)

    def _names(self, *names: str) -> tuple[str, ...]:
        return names if self.source.policy is None else (*names, "policy")

    def _label(self, name: str) -> str:
        return Path(self.options.policy).name if name == "policy" and self.options.policy else name

    def _best_of(self, sampler: str) -> Iterator[Row]:
        source = self.source
        model, drawn, sums, seconds = getattr(source, sampler).hf, [], [], []
        started = time.perf_counter()
        for i in range(max(self.options.best_of)):
            answers = sample(source, model, self.options.max_batch, self.progress, i)
            drawn.append(answers)
            sums.append([source.logprobs(m, answers) for m in (source.dpo, source.reference)])
            seconds.append(time.perf_counter() - started)
        dpo, reference = np.stack(sums, axis=1)
        for rank, scores in (("implicit_reward", dpo - reference), ("likelihood", dpo)):
            for n in self.options.best_of:
                # the first of equal best
                best = scores[:n].argmax(0)
                places = np.arange(len(source.prompts))
                answers = [drawn[i][place] for place, i in enumerate(best)]
                measured = source.measure(answers, dpo[best, places], reference[best, places])
                setting = {"sampler": self._label(sampler), "rank": rank, "n": n}
                yield setting | self._figures(measured, dpo[best, places], seconds[n - 1])

    def _row(self, answers: list[Completion], seconds: float, own: np.ndarray | None = None) -> Row:
        dpo, reference = (self.source.logprobs(m, answers) for m in (self.source.dpo, self.source.reference))
        return self._figures(self.source.measure(answers, dpo, reference, own), dpo, seconds)

    def _figures(self, measured: Evaluation, likelihood: np.ndarray, seconds: float) -> Row:
        return {
            **measured.summary(),
            "likelihood": interval(mean_estimate(likelihood)),
            "win_rate": {k: interval(win_rate(measured.judged, b.judged)) for k, b in self.baselines.items()},
            "seconds": round(seconds, 2),
            "samples": self.source.texts([a.response for a in measured.answers[: self.options.samples]]),
        }


def sample(
    source: Source,
    model: PreTrainedModel | Mixture,
    max_batch: int,
    progress: Progress,
    i: int = 0,
    greedy: bool = False,
) -> list[Completion]:
    """Every prompt's i-th sample, or its greedy answer. Sample 0 has the random numbers of a run's own evaluation."""
    sampling = Sampling(temperature=0, max_new_tokens=source.sampling.max_new_tokens) if greedy else source.sampling
    return rollout(
        model,
        source.prompts,
        sampling,
        source.eos_token_ids,
        seed=derive(source.seed, "evaluation", *([i] if i else [])),
        max_batch=max_batch,
        progress=progress,
    )


def open_lab(source: Source, options: Options, progress: Progress) -> Lab:
    """Make the baselines' answers."""
    baselines = {}
    for name in ("sampled", "greedy"):
        answers = sample(source, source.dpo.hf, options.max_batch, progress, greedy=name == "greedy")
        dpo, reference = (source.logprobs(m, answers) for m in (source.dpo, source.reference))
        baselines[name] = source.measure(answers, dpo, reference)
    return Lab(source, options, progress, baselines)
