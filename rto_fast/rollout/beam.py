"""Beam search over a policy's likelihood, or over its implicit reward: many prompts and all their beams in one batch.

P prompts, K beams, A prompts being searched now: B = A * K rows, V vocabulary. Beam j of the prompt in slot a is row
a * K + j of the cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rto_fast.config.checks import check
from rto_fast.rollout.head import float32_logits
from rto_fast.rollout.lane import Batch, check_prompts, eval_mode, mixture_of, without_gaps
from rto_fast.rollout.mixture import Mixture


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One answer that a search found."""

    prompt: list[int]
    response: list[int]
    """Ends with the EOS token where there was one, as a Completion's does"""
    token_scores: list[float]
    """One per token: log pi, or log pi - log pi_ref when a reference was given"""
    score: float
    """sum(token_scores) / len(response)^length_penalty: what the hypotheses competed by"""
    finish: str
    """"eos", or "length" when max_new_tokens were made without an EOS"""


def beam_search(
    model: PreTrainedModel | Mixture,
    prompts: Sequence[list[int]],
    eos_token_ids: tuple[int, ...],
    *,
    num_beams: int,
    max_new_tokens: int = 128,
    length_penalty: float = 0.0,
    reference: PreTrainedModel | Mixture | None = None,
    num_return: int = 1,
    max_batch: int = 256,
    max_context: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Hypothesis]]:
    """The best answers that a beam of K = `num_beams` finds for each prompt, best first, `num_return` of them.

    Maximises sum_t log pi(a_t|s_t). For the optimal policy of the token MDP this is the search of "From r to Q*" eq.
    12 for the return plus V* of where it stops, r + beta log pi_ref summed along the way (eq. 13): a DPO model is its
    own reward, value and search heuristic. With `reference`, maximises sum_t log pi(a_t|s_t) - log pi_ref(a_t|s_t)
    instead, DPO's implicit reward over beta without the pull back to pi_ref.

    An answer is complete at its first EOS, or at max_new_tokens without one; complete answers of every length compete
    by score = sum / length^length_penalty (0: the plain sum of eq. 13; 1: the mean, which favours long answers).
    One step extends the K live beams by every token. Of all extensions, the complete ones among the K best sums join
    the answers found, of which the num_return best are kept; the K best others live on. A prompt is done when
    num_return answers are found and no live beam can still beat the last of them: log-probs only lower a sum, so that
    a live sum s ends at s / max_new_tokens^length_penalty at most (at s / (length + 1)^length_penalty for a penalty
    <= 0). Sums of a difference to the reference have no such bound: that search runs to max_new_tokens.

    One beam without a penalty or a reference is greedy decoding, token for token; as many beams as there are live
    prefixes is exhaustive search. Sums are float64 over float32 log-probs. Answers depend on the other prompts and on
    max_batch through the last bits of the model's arithmetic alone.

    model, eos_token_ids, max_context, progress: as in `rollout`. max_batch: rows of the cache; max_batch // K prompts
    (at least one) are searched together, and others take their place as they finish.
    Cost: every step runs K rows per prompt and copies the rows of beams that fork, one sync per step; keys and values
    of max_batch rows, (max_batch, V) logits, twice that with a reference.

    Raises ValueError: as `rollout`, and for num_beams, num_return, max_new_tokens or length_penalty out of range, or a
    reference with another vocabulary.
    """
    check(num_beams >= 1, "beam_search: num_beams", ">= 1", num_beams)
    few = 1 <= num_return <= num_beams
    check(few, "beam_search: num_return", f"between 1 and num_beams = {num_beams}", num_return)
    check(max_new_tokens >= 1, "beam_search: max_new_tokens", ">= 1", max_new_tokens)
    check(-10 <= length_penalty <= 10, "beam_search: length_penalty", "between -10 and 10", length_penalty)
    mixtures = [mixture_of(m) for m in (model, reference) if m is not None]
    models = tuple(m for mixture in mixtures for m in mixture.models)
    # one check for all that decode together: one vocabulary, one device
    Mixture(models, (1.0,) * len(models))
    check_prompts("beam_search", models, prompts, max_new_tokens, max_batch, max_context)
    with eval_mode(models), torch.inference_mode(), float32_logits(models):
        batch = Batch(mixtures, prompts, max(1, max_batch // num_beams), max_new_tokens, num_beams)
        eos, bounded = frozenset(eos_token_ids), reference is None
        return _Search(batch, eos, num_beams, max_new_tokens, length_penalty, num_return, bounded).run(progress)


class _Node(NamedTuple):
    """A live beam: its last token, and the beam it extends (None: the prompt)."""

    parent: "_Node | None"
    token: int
    token_score: float


class _Slot:
    """The search of one prompt."""

    def __init__(self, prompt: int, num_beams: int, last_token: int, position: int):
        self.prompt, self.position, self.length = prompt, position, 0
        """`position` of the next input; `length` of the live beams."""
        self.beams: list[_Node | None] = [None] * num_beams
        self.tokens = [last_token] * num_beams
        """Next input of each row. A row without a beam runs with -inf for its sum, and nothing comes of it."""
        self.sums = [0.0] + [-inf] * (num_beams - 1)
        self.found: list[tuple[float, _Node, str]] = []
        """(score, last token, finish) of the best complete answers, best first."""


@dataclass
class _Search:
    batch: Batch
    """Of the policy, and of the reference where there is one."""
    eos: frozenset[int]
    num_beams: int
    max_new_tokens: int
    length_penalty: float
    num_return: int
    bounded: bool
    slots: list[_Slot] = field(default_factory=list)

    def run(self, progress: Callable[[int], None] | None) -> list[list[Hypothesis]]:
        prompts = self.batch.prompts
        self.results: list[list[Hypothesis]] = [[] for _ in prompts]
        while self.batch.waiting or self.slots:
            for i in self.batch.admit(len(self.slots)):
                self.slots.append(_Slot(i, self.num_beams, prompts[i][-1], len(prompts[i]) - 1))
            if (num_done := self._step()) and progress is not None:
                progress(num_done)
        return self.results

    def _step(self) -> int:
        """One token for every beam; returns how many prompts it finished."""
        parents: dict[int, list[int]] = {}
        for a, (slot, candidates) in enumerate(zip(self.slots, self._candidates(), strict=True)):
            continued = self._advance(slot, candidates)
            if continued is None:
                self.results[slot.prompt] = [self._hypothesis(slot, *answer) for answer in slot.found]
            else:
                parents[a] = continued
        order = without_gaps(parents)
        self.batch.keep([a * self.num_beams + parent for a in order for parent in parents[a]])
        num_done = len(self.slots) - len(order)
        self.slots = [self.slots[a] for a in order]
        return num_done

    def _candidates(self) -> np.ndarray:
        """(A, 4, N) float64: sum, token, parent beam and token score of each prompt's best extensions, best first."""
        beams = self.num_beams
        data = [(slot.tokens[j], slot.position, slot.sums[j]) for slot in self.slots for j in range(beams)]
        rows = torch.tensor(data, dtype=torch.float64).to(self.batch.device)
        tokens, positions = rows[:, 0].long(), rows[:, 1].long()
        width = max(slot.position for slot in self.slots) + 1
        scores, *others = (x.float().log_softmax(-1) for x in self.batch.step(tokens, positions, width))
        for theirs in others:
            # what the policy rules out stays ruled out, also where the reference does so too (-inf - -inf)
            scores = torch.where(scores.isneginf(), scores, scores - theirs)
        # K others live on, whichever EOS tokens are ahead of them
        per_row = min(beams + len(self.eos), scores.shape[1])
        values, ids = _top(scores, per_row)
        sums = (rows[:, 2:] + values.double()).view(len(self.slots), -1)
        # stable: on equal sums the order of beams and tokens stands
        sums, order = sums.sort(dim=1, descending=True, stable=True)
        kept = slice(min(beams * (1 + len(self.eos)), sums.shape[1]))
        sums, order = sums[:, kept], order[:, kept]
        ids, values = (x.view(len(self.slots), -1).gather(1, order).double() for x in (ids, values))
        return torch.stack((sums, ids, (order // per_row).double(), values), 1).cpu().numpy()

    def _advance(self, slot: _Slot, candidates: np.ndarray) -> list[int] | None:
        """Take the best extensions into the slot: the beam that each row continues, or None when it is done."""
        slot.length += 1
        slot.position += 1
        children: list[tuple[float, _Node, int]] = []
        for rank, (total, token, parent, token_score) in enumerate(candidates.T.tolist()):
            if rank == 0 and not isfinite(total):
                raise ValueError(
                    f"beam_search: the scores for prompt {slot.prompt} after {slot.length - 1} new tokens are not "
                    "finite; look for NaN or inf in the models' weights"
                )
            # after the possible extensions come the impossible ones, and those of rows without a beam
            if total == -inf or (rank >= self.num_beams and len(children) == self.num_beams):
                break
            node = _Node(slot.beams[int(parent)], int(token), token_score)
            if node.token in self.eos or slot.length == self.max_new_tokens:
                if rank < self.num_beams:
                    finish = "eos" if node.token in self.eos else "length"
                    slot.found.append((total / slot.length**self.length_penalty, node, finish))
            elif len(children) < self.num_beams:
                children.append((total, node, int(parent)))
        slot.found = sorted(slot.found, key=lambda answer: -answer[0])[: self.num_return]
        if not children or self._decided(slot, children[0][0]):
            return None
        return self._place(slot, children)

    def _decided(self, slot: _Slot, best_live: float) -> bool:
        """Whether no live beam can enter the answers found."""
        if not self.bounded or len(slot.found) < self.num_return:
            return False
        length = self.max_new_tokens if self.length_penalty > 0 else slot.length + 1
        return best_live / length**self.length_penalty <= slot.found[-1][0]

    def _place(self, slot: _Slot, children: list[tuple[float, _Node, int]]) -> list[int]:
        """Give the children rows: the best child of a beam stays on its row, so that only forks are copied."""
        placed: dict[int, tuple[float, _Node, int]] = {}
        for child in children:
            placed.setdefault(child[2], child)
        free = [row for row in range(self.num_beams) if row not in placed]
        forked = [child for child in children if placed[child[2]] is not child]
        placed |= dict(zip(free, forked, strict=False))
        rows = [placed.get(row, (-inf, None, row)) for row in range(self.num_beams)]
        slot.sums, slot.beams, parents = map(list, zip(*rows, strict=True))
        slot.tokens = [0 if node is None else node.token for node in slot.beams]
        return parents

    def _hypothesis(self, slot: _Slot, score: float, last: _Node | None, finish: str) -> Hypothesis:
        steps = []
        while last is not None:
            steps.append(last)
            last = last.parent
        steps.reverse()
        prompt = list(self.batch.prompts[slot.prompt])
        return Hypothesis(prompt, [n.token for n in steps], [n.token_score for n in steps], score, finish)


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """topk whose first of equal best is the lowest token, as greedy decoding has it."""
    values, ids = scores.topk(k)
    best = scores.argmax(-1, keepdim=True)
    ids = ids.where(ids != best, ids[:, :1])
    ids[:, :1] = best
    return values, ids
