"""What a token reward is made of, in one object from the configuration to every backend."""

import math
from typing import NamedTuple

from torch import Tensor

# in the order of csrc/token_reward_gae.cpp
GRANULARITIES = ("token", "sentence", "response")


class RewardSpec(NamedTuple):
    """The reward and its discounting: of R response rows in S sequences; token_reward_gae has the equation."""

    beta_1: float
    """beta_1, the dense reward's weight; with 0 no log-prob of the DPO model is read"""
    beta_2: float
    """beta_2, the KL's weight"""
    clip: float = math.inf
    """c > 0, the dense reward's bound after its weight; inf for none"""
    scores: Tensor | None = None
    """(S,) float score of each sequence; not read while beta_3 is 0"""
    beta_3: float = 0.0
    """beta_3, the score's weight"""
    score_clip: float = 10.0
    """k > 0, the score's bound before its weight; inf for none"""
    terminal: Tensor | None = None
    """(S,) float that the last row is paid besides, unscaled and unclamped"""
    granularity: str = "token"
    """Where the dense reward is paid: on every "token", or its sum at the end of a "sentence" or of the "response" """
    sentence_ends: Tensor | None = None
    """(R,) bool: rows that end a sentence; needed by granularity "sentence" alone"""
    shaping_only: bool = False
    """The last row is paid minus the sum of the dense rewards before it, in place of its own"""
    gamma: float = 1.0
    """gamma, in [0, 1]"""
    lam: float = 0.95
    """lambda, in [0, 1]"""
    counted: Tensor | None = None
    """(S,) bool: sequences whose advantages enter the moments; None counts all"""

    def select(self, sequences: Tensor, rows: Tensor) -> "RewardSpec":
        """That of some sequences, by their numbers (S',) int64 and those of their response rows (R',) int64."""

        def of(x: Tensor | None, at: Tensor) -> Tensor | None:
            return None if x is None else x[at]

        return self._replace(
            scores=of(self.scores, sequences),
            terminal=of(self.terminal, sequences),
            counted=of(self.counted, sequences),
            sentence_ends=of(self.sentence_ends, rows),
        )
