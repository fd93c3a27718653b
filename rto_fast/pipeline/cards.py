"""Graphics cards, and what bounds a run's speed on them."""

from typing import NamedTuple

from rto_fast.config import Config, member
from rto_fast.model.quantize import BYTES as NF4
from rto_fast.pipeline.estimate import Models
from rto_fast.pipeline.footprint import Arithmetic


class Card(NamedTuple):
    memory: int
    """Bytes, as the makers count them"""
    bandwidth: float
    """Bytes a second"""
    flops: float
    """Of bfloat16 with float32 sums, dense, a second"""


RESERVED = 10**9
"""Bytes of a card that are nobody's: CUDA's context, the libraries' buffers, the allocator's fragments."""
# NVIDIA's data sheets: H100 and H200 (SXM), A100 (SXM 80 GB, PCIe 40 GB), L40S, DGX B200 (an eighth of it); the
# GeForce ones from the Ada (v1.1) and GA102 (v2.1) architecture white papers. Where a sheet gives FLOP/s with
# sparsity, half of it stands here.
CARDS = {
    "h100-80g": Card(80 * 10**9, 3.35e12, 989e12),
    "a100-80g": Card(80 * 10**9, 2.039e12, 312e12),
    "a100-40g": Card(40 * 10**9, 1.555e12, 312e12),
    "l40s-48g": Card(48 * 10**9, 0.864e12, 362e12),
    "rtx-4090": Card(24 * 10**9, 1.008e12, 165e12),
    "rtx-3090": Card(24 * 10**9, 0.936e12, 71e12),
    "h200": Card(141 * 10**9, 4.8e12, 989e12),
    "b200": Card(180 * 10**9, 8.0e12, 2250e12),
}


def tokens_per_second(config: Config, models: Models, how: Arithmetic, card: Card) -> float:
    """The most that a rollout can make: every step reads the weights once and the keys and values of all rows.

    At the mean length, half of an answer behind a prompt of full length. Of weights that are trained under autocast the
    half-precision copy is read, of a quantised base its 4 bits.
    """
    s, rl = models.policy, config.rto
    rows = min(rl.sampling.batch_size, rl.rollouts)
    kept = rows * (config.data.max_prompt + config.max_new_tokens / 2) * s.layers * s.kv * 2 * how.operands
    width = NF4 if config.adapter.quantize else how.operands
    weights = width * s.matrices + how.operands * s.vocab * s.hidden
    return rows * card.bandwidth / (weights + kept)


def step_flops(config: Config, models: Models, stage: str) -> float:
    """Of one optimizer step on sequences of full length: 6 N for each token that N weights learn from, 2 N for each
    that frozen ones or a scoring forward look at (Kaplan et al. 2020, section 2.1; attention's own products are left
    out). An adapter's base makes no gradients of weights: 4 N. Checkpointing computes the forward once more, 2 N.
    """
    s, c = models.policy, models.critic or models.policy
    again = 2 * config.model.gradient_checkpointing
    tuned = config.adapter.rank is not None and not (stage == "sft" and config.adapter.full_sft)
    learns = (4 if tuned else 6) + again
    working, critic = (x.matrices - x.idle for x in (s, c))
    policy = working + s.vocab * s.hidden
    length = config.data.max_length
    if stage in ("sft", "dpo", "rm"):
        batch = {"sft": config.sft.batch_size, "dpo": config.dpo.batch_size, "rm": config.rm.batch_size}[stage]
        sequences = batch * (1 if stage == "sft" else 2)
        looks = 2 if stage == "dpo" else 0  # pi_ref, once for every pair
        return sequences * length * (policy if stage != "rm" else working) * (learns + looks)
    rl = member(config.rto, stage)
    critic *= rl.critic.kind == "separate"
    tokens = rl.minibatch * (config.data.max_prompt + config.max_new_tokens)
    # every answer is scored once by every network and learnt from in ppo_epochs passes
    scoring = 2 * (policy * (2 + bool(rl.reward.beta_1)) + critic) / rl.ppo_epochs
    return tokens * ((policy + critic) * learns + scoring)
