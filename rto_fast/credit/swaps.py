"""Answers with known wrong tokens: does the token reward rank the swapped ones lowest?"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from math import comb
from typing import Any

import numpy as np

from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.evaluate.heatmap import Heatmap
from rto_fast.evaluate.policies import interval
from rto_fast.evaluate.stats import Estimate, credit_auc, win_rate
from rto_fast.evaluate.token_rewards import TokenRewards


@dataclass(frozen=True)
class Ranking:
    """How the swapped tokens of corrupted answers rank among all tokens of their answer, EOS included."""

    answers: int
    swapped: int
    """Swapped tokens of all answers"""
    lowest: Estimate
    """Share of answers whose k swapped tokens are their k lowest: each is below every token that was not swapped"""
    tokens: Estimate
    """Share of swapped tokens that are among the k lowest of their answer"""
    chance: float
    """What `lowest` would be with rewards at random: the mean of 1 / (n choose k)"""
    auc: Estimate
    """P(reward of a token left alone > reward of a swapped one), over all answers together"""
    gap: float
    """Mean reward of the tokens left alone minus that of the swapped ones"""

    def figures(self) -> dict[str, Any]:
        """As credit.json has them."""
        intervals = {name: interval(getattr(self, name)) for name in ("lowest", "tokens", "auc")}
        ends = {"low": self.lowest.low, "high": self.lowest.high}
        return {**vars(self), **intervals, "lowest": intervals["lowest"] | ends}

    def lines(self, left_out: int) -> dict[str, str]:
        """As people read them: name -> text."""
        lost = f"; {left_out} without some tokens of their own left out" if left_out else ""
        lowest, tokens = (
            "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * x for x in share)) for share in (self.lowest, self.tokens)
        )
        auc = "{:.3f} [{:.3f}, {:.3f}]".format(*self.auc)
        return {
            "corrupted answers": f"{self.answers}, with {self.swapped} swapped tokens{lost}",
            "swapped tokens are the lowest": f"{lowest} of answers; by chance {100 * self.chance:.2g} %",
            "swapped tokens among the lowest": f"{tokens} of tokens",
            "AUC of swapped against the rest": f"{auc}, means {self.gap:.3f} apart",
        }


def swapped_places(right: Sequence[int], corrupted: Sequence[int]) -> list[int]:
    """Places in `corrupted` of the tokens that are not in a longest-match alignment with `right` (difflib)."""
    matcher = SequenceMatcher(None, right, corrupted, autojunk=False)
    return [i for kind, _, _, start, end in matcher.get_opcodes() if kind != "equal" for i in range(start, end)]


def rank(rewards: Sequence[np.ndarray], places: Sequence[Sequence[int]]) -> Ranking:
    """rewards: (tokens,) of each corrupted answer; places: its swapped tokens, at least one and not all.

    A tie counts against. Intervals: Wilson's over answers; over tokens, too narrow where an answer has several.
    """
    lowest, tokens, chance = [], [], []
    for r, swapped in zip(rewards, places, strict=True):
        others = np.delete(r, swapped)
        lowest.append(r[list(swapped)].max() < others.min())
        # among the k lowest of n: fewer than k tokens, itself included, are as low
        tokens += [np.count_nonzero(r <= r[i]) <= len(swapped) for i in swapped]
        chance.append(1 / comb(len(r), len(swapped)))
    signs = [np.where(np.isin(np.arange(len(r)), p), -1, 1) for r, p in zip(rewards, places, strict=True)]
    every, sign = np.concatenate(rewards), np.concatenate(signs)
    gap = every[sign > 0].mean() - every[sign < 0].mean()
    return Ranking(
        answers=len(lowest),
        swapped=len(tokens),
        lowest=_share(lowest),
        tokens=_share(tokens),
        chance=float(np.mean(chance)),
        auc=credit_auc(rewards, signs),
        gap=float(gap),
    )


def _share(hits: Sequence[bool | np.bool_]) -> Estimate:
    # a hit (1) wins against one half and a miss (0) loses: the win rate is the share, with Wilson's interval
    return win_rate(np.array(hits, float), np.full(len(hits), 0.5))


def rank_corrupted(
    scorer: TokenRewards, pairs: Sequence[EncodedPair], examples: int
) -> tuple[dict[str, Any], dict[str, str], list[Heatmap]]:
    """Rank the swapped tokens of (chosen = right, rejected = corrupted) pairs.

    Returns the ranking's figures and lines, and maps of the first `examples` cases (right, corrupted). A pair is left
    out where nothing, or everything, of the corrupted answer differs; ValueError when none is left.
    """
    places = [swapped_places(p.chosen, p.rejected) for p in pairs]
    usable = [i for i, (pair, x) in enumerate(zip(pairs, places, strict=True)) if 0 < len(x) < len(pair.rejected)]
    if not usable:
        raise ValueError(
            f"corrupted: no answer of {len(pairs)} has some tokens of its own beside some of the chosen one's; a "
            "corrupted answer is the chosen one with a few words replaced"
        )
    answers = [EncodedDemonstration(pairs[i].prompt, pairs[i].rejected) for i in usable]
    rewards = scorer.rewards(answers)
    ranking = rank(rewards, [places[i] for i in usable])
    maps: list[Heatmap] = []
    for number, i in enumerate(usable[:examples]):
        right = EncodedDemonstration(pairs[i].prompt, pairs[i].chosen)
        signs = [-1 if t in places[i] else 0 for t in range(len(pairs[i].rejected))]
        maps.append(scorer.heatmap(f"case {i + 1}, right", right, scorer.rewards([right])[0].tolist()))
        maps.append(scorer.heatmap(f"case {i + 1}, corrupted", answers[number], rewards[number].tolist(), signs))
    return ranking.figures(), ranking.lines(len(pairs) - len(usable)), maps
