"""Prompts in, answers out: a lean batched decoder for any Hugging Face causal language model, or a mix of several."""

from rto_fast.rollout.beam import Hypothesis, beam_search
from rto_fast.rollout.decode import Completion, rollout
from rto_fast.rollout.mixture import Mixture, realign
from rto_fast.rollout.sampling import Sampling

__all__ = ["Completion", "Hypothesis", "Mixture", "Sampling", "beam_search", "realign", "rollout"]
