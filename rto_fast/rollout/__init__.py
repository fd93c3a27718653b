"""Prompts in, sampled answers out: a lean batched decoder for any Hugging Face causal language model."""

from rto_fast.rollout.decode import Completion, rollout
from rto_fast.rollout.sampling import Sampling

__all__ = ["Completion", "Sampling", "rollout"]
