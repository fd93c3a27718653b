"""The three ways of decoding, each as rows of figures: beam search, best of n, realignment.

P prompts.
"""

import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from rto_fast.decode.options import Options
from rto_fast.decode.source import Source
from rto_fast.decode.tables import Row
from rto_fast.evaluate.policies import interval
from rto_fast.evaluate.stats import mean_estimate, win_rate
from rto_fast.rollout import Completion, Mixture, Sampling, beam_search, realign, rollout
from rto_fast.training.seeds import derive

Progress = Callable[[int], None]


def num_rows(options: Options, num_prompts: int) -> int:
    """Rows that everything decodes together, for the progress bar: a beam is a row, and so is a sample."""
    samplers = 2 + (options.policy is not None)
    beams = sum(options.beams) * len(options.search)
    samples = samplers * max(options.best_of, default=0)
    return num_prompts * (2 + beams + samples + (samplers - 1) * len(options.strengths))


class Lab:
    """Decodes with one source, and measures against its two baselines."""

    def __init__(self, source: Source, options: Options, progress: Progress):
        self.source, self.options, self.progress = source, options, progress
        answers = {"sampled": self._sample(source.dpo.hf), "greedy": self._sample(source.dpo.hf, greedy=True)}
        self.baselines = {name: source.measure(found, source.logprobs(found)) for name, found in answers.items()}
        """The DPO policy: what the other rows are compared with."""

    def beam(self) -> Iterator[Row]:
        """One row per search and number of beams."""
        source, options = self.source, self.options
        for search, num_beams in product(options.search, options.beams):
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
            yield setting | self._row(answers, source.logprobs(answers), seconds)

    def best_of(self) -> Iterator[Row]:
        """One row per sampler, judge and n. The samples of a small n are among those of a larger one."""
        source, places = self.source, np.arange(len(self.source.prompts))
        for sampler in self._names("dpo", "reference") if self.options.best_of else ():
            drawn, sums, seconds = [], [], []
            started = time.perf_counter()
            for i in range(max(self.options.best_of)):
                drawn.append(self._sample(getattr(source, sampler).hf, i))
                sums.append(source.logprobs(drawn[i]))
                seconds.append(time.perf_counter() - started)
            dpo, reference = logprobs = np.stack(sums, axis=1)
            for rank, scores in (("implicit_reward", dpo - reference), ("likelihood", dpo)):
                for n in self.options.best_of:
                    # the first of equal best
                    best = scores[:n].argmax(0)
                    answers = [drawn[i][place] for place, i in enumerate(best)]
                    setting = {"sampler": self._label(sampler), "rank": rank, "n": n}
                    yield setting | self._row(answers, logprobs[:, best, places], seconds[n - 1])

    def realignment(self) -> Iterator[Row]:
        """One row per base and strength: pi ~ pi_base (pi_dpo / pi_ref)^b, sampled."""
        source = self.source
        for base, strength in product(self._names("reference"), self.options.strengths):
            started = time.perf_counter()
            answers = self._sample(realign(getattr(source, base).hf, source.dpo.hf, source.reference.hf, strength))
            seconds = time.perf_counter() - started
            # the sampler's log-probs are those of what it sampled from: after temperature and top-p
            own = np.array([sum(a.logprobs) for a in answers])
            setting = {"base": self._label(base), "strength": strength}
            yield setting | self._row(answers, source.logprobs(answers), seconds, own)

    def _names(self, *names: str) -> tuple[str, ...]:
        return names if self.source.policy is None else (*names, "policy")

    def _label(self, name: str) -> str:
        return Path(self.options.policy).name if name == "policy" and self.options.policy else name

    def _sample(self, model: PreTrainedModel | Mixture, i: int = 0, greedy: bool = False) -> list[Completion]:
        """Every prompt's i-th sample, or greedy answer. Sample 0 has the random numbers of a run's own evaluation."""
        source = self.source
        return rollout(
            model,
            source.prompts,
            Sampling(temperature=0, max_new_tokens=source.sampling.max_new_tokens) if greedy else source.sampling,
            source.eos_token_ids,
            seed=derive(source.seed, "evaluation", *([i] if i else [])),
            max_batch=self.options.max_batch,
            progress=self.progress,
        )

    def _row(
        self, answers: list[Completion], logprobs: np.ndarray, seconds: float, own: np.ndarray | None = None
    ) -> Row:
        measured = self.source.measure(answers, logprobs, own)
        return {
            **measured.summary(),
            "likelihood": interval(mean_estimate(logprobs[0])),
            "win_rate": {k: interval(win_rate(measured.judged, b.judged)) for k, b in self.baselines.items()},
            "seconds": round(seconds, 2),
            "samples": self.source.texts([a.response for a in answers[: self.options.samples]]),
        }
