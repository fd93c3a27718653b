"""The decoding loop: admit prompts, step all rows, let finished rows go.

P prompts, B rows being decoded now (B <= max_batch), V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rto_fast.rollout.head import float32_logits
from rto_fast.rollout.lane import Batch, check_prompts, eval_mode, mixture_of, without_gaps
from rto_fast.rollout.mixture import Mixture
from rto_fast.rollout.sampling import Sampling, draw, uniform_streams

_LOOK = {"cuda": 8}
"""Steps from one look at the sampled tokens to the next, by device; 1 on others, where looking waits for nothing."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    prompt: list[int]
    response: list[int]
    """The actions: ends with the EOS token when one was sampled; nothing is appended on truncation."""
    logprobs: list[float]
    """One per action, under the distribution it was sampled from (after temperature, top-k and top-p)."""
    finish: str
    """"eos", or "length" when max_new_tokens were made without an EOS."""


def rollout(
    model: PreTrainedModel | Mixture,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    eos_token_ids: tuple[int, ...],
    *,
    seed: int,
    max_batch: int = 64,
    max_context: int | None = None,
    progress: Callable[[int], None] | None = None,
    places: Sequence[int] | None = None,
) -> list[Completion]:
    """Sample one answer per prompt, in the order of the prompts.

    Answer i depends on the model, prompt i, `sampling`, `seed` and i alone: its uniform numbers are a stream of their
    own (`uniform_streams`), turned into tokens by inverse-CDF sampling. max_batch and the other prompts change it only
    through the last bits of the model's own arithmetic. The stream belongs to the place in the list: a prompt moved to
    another place gets another answer, except when greedy.

    model: a Hugging Face causal LM on one device whose layers keep keys and values (full or sliding-window attention),
    or a `Mixture` of several; it runs in eval mode without gradients and gets its modes back. eos_token_ids: sampling
    any of them ends an answer; empty = every answer has max_new_tokens. max_context: lowers the model's own limit,
    never raises it. progress(n) is called with the number of answers that finished since the last call. places: the i
    of each prompt, where the list is a part of a longer one.

    Cost: each prompt is prefilled once, however many answers to it begin together, and without its last token, which is
    the first decoding step's input, so that sampling happens in one place. A step runs all rows; finished rows leave,
    and waiting prompts take their place.
    On a GPU a step is a CUDA graph, recorded for max_batch rows, half, a quarter, ... of them (`graphs`); a network
    that cannot be recorded is launched step by step, and a warning says so.
    Memory: keys and values of max_batch rows in the dtype of the arithmetic, never more positions than the longest
    prompt and max_new_tokens have (on a GPU all of them from the beginning), and (max_batch, V) logits. Which tokens
    were sampled, hence who finished, is looked at after every step, on a GPU after every eighth, at the price of up to
    seven steps of a row that has finished: one device sync each (and one per step more with top_p < 1 without top_k).

    Raises ValueError: an empty prompt, a prompt that does not leave room for max_new_tokens, a model that cannot be
    decoded this way, logits that are not finite.
    """
    mixture = mixture_of(model)
    check_prompts("rollout", mixture.models, prompts, sampling.max_new_tokens, max_batch, max_context)
    with eval_mode(mixture.models), torch.inference_mode(), float32_logits(mixture.models):
        batch = Batch([mixture], prompts, max_batch, sampling.max_new_tokens)
        return _Decoder(batch, sampling, frozenset(eos_token_ids), seed, places or range(len(prompts))).run(progress)


class _Decoder:
    """State of one rollout; row b of every list and tensor here is row b of the cache."""

    def __init__(self, batch: Batch, sampling: Sampling, eos: frozenset[int], seed: int, places: Sequence[int]):
        self.batch, self.prompts, self.sampling, self.eos = batch, batch.prompts, sampling, eos
        self.uniforms: Tensor | None = None
        if sampling.temperature > 0:
            streams = uniform_streams(seed, max(places, default=-1) + 1, sampling.max_new_tokens)
            self.uniforms = streams[list(places)].to(batch.device)
        self.responses: list[list[int]] = [[] for _ in self.prompts]
        self.finish: list[str] = [""] * len(self.prompts)
        self.owners: list[int] = []
        """Which prompt each row belongs to."""
        self.history: list[tuple[list[int], list[int], Tensor]] = []
        """(owners, how many tokens of each count, log-probs (steps, rows) on the device) of every look: read once at
        the end."""

    def run(self, progress: Callable[[int], None] | None) -> list[Completion]:
        while self.batch.waiting or self.owners:
            if admitted := self.batch.admit(len(self.owners)):
                self.owners += admitted
                self._upload()
            if (num_finished := self._look([self._step() for _ in range(self._steps())])) and progress is not None:
                progress(num_finished)
        logprobs: list[list[float]] = [[] for _ in self.prompts]
        flat = iter(torch.cat([made.T.flatten() for *_, made in self.history]).tolist() if self.history else [])
        for owners, kept, made in self.history:
            for owner, count in zip(owners, kept, strict=True):
                logprobs[owner] += list(islice(flat, len(made)))[:count]
        return [
            Completion(list(p), r, lp, f)
            for p, r, lp, f in zip(self.prompts, self.responses, logprobs, self.finish, strict=True)
        ]

    def _upload(self) -> None:
        """The rows have changed: send their last tokens, positions and places to the device again."""
        last = [self.responses[i][-1] if self.responses[i] else self.prompts[i][-1] for i in self.owners]
        self.positions_host = [len(self.prompts[i]) + len(self.responses[i]) - 1 for i in self.owners]
        counts = [len(self.responses[i]) for i in self.owners]
        data = torch.tensor([last, self.positions_host, self.owners, counts]).to(self.batch.device)
        self.tokens, self.positions, self.owner_ids, self.counts = data.unbind(0)

    def _steps(self) -> int:
        """How many there are to the next look: none makes an answer longer than max_new_tokens."""
        room = self.sampling.max_new_tokens - max(len(self.responses[i]) for i in self.owners)
        return min(_LOOK.get(self.batch.device.type, 1), room)

    def _step(self) -> tuple[Tensor, Tensor]:
        """One token for every row, and its log-prob."""
        width = max(self.positions_host) + 1
        (logits,) = self.batch.step(self.tokens, self.positions, width)
        uniforms = None if self.uniforms is None else self.uniforms[self.owner_ids, self.counts]
        tokens, logprobs = draw(logits, uniforms, self.sampling)
        self.tokens = tokens.clamp(min=0)  # -1, of logits that are not finite, is refused at the next look
        self.positions, self.counts = self.positions + 1, self.counts + 1
        self.positions_host = [p + 1 for p in self.positions_host]
        return tokens, logprobs

    def _look(self, made: list[tuple[Tensor, Tensor]]) -> int:
        """Append the tokens of these steps to their answers; returns how many answers they finished."""
        tokens, logprobs = (torch.stack(parts) for parts in zip(*made, strict=True))
        before = [len(self.responses[i]) for i in self.owners]
        finished = {row for row, line in enumerate(tokens.T.tolist()) if self._append(self.owners[row], line)}
        kept = [len(self.responses[i]) - n for i, n in zip(self.owners, before, strict=True)]
        self.history.append((self.owners, kept, logprobs))
        if finished:
            self._leave(finished)
        return len(finished)

    def _append(self, owner: int, tokens: list[int]) -> bool:
        """Whether the answer ends with one of them; those behind it do not count."""
        response = self.responses[owner]
        for token in tokens:
            if token < 0:
                raise ValueError(
                    f"rollout: the logits for prompt {owner} after {len(response)} new tokens are not finite; "
                    "look for NaN or inf in the model's weights"
                )
            response.append(token)
            if token in self.eos or len(response) == self.sampling.max_new_tokens:
                self.finish[owner] = "eos" if token in self.eos else "length"
                return True
        return False

    def _leave(self, finished: set[int]) -> None:
        """Close the gaps with rows from the end, so that the rows in use stay 0 ... B-1."""
        rows = without_gaps(dict.fromkeys(row for row in range(len(self.owners)) if row not in finished))
        self.batch.keep(rows)
        self.owners = [self.owners[row] for row in rows]
        if self.owners:
            self._upload()
