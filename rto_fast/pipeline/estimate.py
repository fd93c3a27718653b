"""What a run needs in memory: arithmetic on the sizes of its networks, the same before a card is rented and before the
first step.

Bytes throughout; of one network they are in footprint.py.

A stage is at its peak in one of four moments, and what they have in common is there once:

    update    weights + gradients + moments + saved activations + what a layer's backward makes
    head      the same, with a buffer of logits in the place of the latter
    scoring   weights + moments + a forward's own tensors and the buffer of logits      (RTO's family)
    rollout   weights + moments + keys and values + a step's logits                     (RTO's family)

With offload.frozen frozen weights count in `scoring` alone, with offload.optimizer of the moments a bucket.
Left out: the library's own (a CUDA context takes about half a GiB), the allocator's fragments, log-probs and rewards.
"""

from typing import NamedTuple

from rto_fast.config import Config, RTOConfig, member
from rto_fast.pipeline.footprint import (
    Arithmetic,
    Sizes,
    adapter,
    cached,
    dequantized,
    frozen,
    graph,
    logits,
    within_backward,
    within_forward,
)
from rto_fast.training.adamw8 import BYTES as ADAM8
from rto_fast.training.host_adamw import BUCKET


def moments(config: Config, how: Arithmetic, trained: int) -> int:
    """Bytes of Adam's two of each trained number, in its own type or in 8 bits (training/adamw8)."""
    return round(2 * trained * (ADAM8 if config.adam_bits == 8 else how.weights))


class Need(NamedTuple):
    """A stage's bytes. The parts are not there all at once; `peak` is the largest moment."""

    weights: int
    gradients: int
    states: int
    """Adam's moments"""
    activations: int
    """Saved for a micro-batch's backward, the half-precision copies of weights among them"""
    cache: int
    """Keys and values of a rollout"""
    workspace: int
    """Logits, and what is made and given back within one layer"""
    peak: int
    host: int = 0
    """In host memory, what waits there (offload)"""


class Disk(NamedTuple):
    exports: int
    """The folders of all finished stages"""
    checkpoints: int
    """Of the largest running stage"""


class Models(NamedTuple):
    """The networks that settings name, by their own sizes."""

    policy: Sizes
    """pi_ref, pi_dpo and, unless it starts from another, the critic are as large"""
    critic: Sizes | None = None
    """Of rto.critic.model"""
    score: Sizes | None = None
    """Of rm.model"""
    dpo_is_adapter: bool = True
    """Where adapters are trained, dpo.model is one on the same base"""

    def adapted(self, targets: tuple[str, ...]) -> "Models":
        critic = self.critic and self.critic.adapted(targets)
        return self._replace(policy=self.policy.adapted(targets), critic=critic)


def needs(config: Config, models: Models, how: Arithmetic) -> dict[str, Need]:
    """What each stage of a run needs that is not given by the user; the evaluation after it needs less."""
    stages, models = (
        [stage for stage in config.stages if not config.given(stage)],
        models.adapted(config.adapter.targets),
    )
    return {stage: _need(config, models, how, stage) for stage in stages}


def _need(config: Config, models: Models, how: Arithmetic, stage: str) -> Need:
    s, rank = models.policy, config.adapter.rank
    # a sequence is never split, nor is a pair
    longest = config.data.max_length * (2 if stage in ("dpo", "rm") else 1)
    rows = max(config.microbatch_rows, longest)
    if stage == "sft" and config.adapter.full_sft:
        rank = None
    full, checkpointing, w = rank is None, config.model.gradient_checkpointing, how.weights
    quantized = config.adapter.quantize is not None and not full
    unpacked = dequantized(s, how) * quantized
    own = s.parameters if rank is None else adapter(s, rank)
    # a CPU's memory is the host's
    waits, moments_wait = (x and not how.cpu for x in (config.offload.frozen, config.offload.optimizer))
    bucket = moments(config, how, max(BUCKET, s.vocab * s.hidden * full))

    def kept(network: Sizes) -> int:
        return graph(network, how, rows, checkpointing=checkpointing, rank=rank, full=full)

    policy = kept(s)
    # of the response rows, in the worst case all: a copy, and a gradient that is there before the backward
    ends = 2 * how.operands * rows * s.hidden
    head_copy = 2 * s.vocab * s.hidden * how.half * full
    if stage in ("sft", "dpo", "rm"):
        trained = own if stage != "rm" or rank else s.body
        weights = w * trained if full else frozen(s, how, quantized) + w * own
        room = logits(s, how, rows, config.workspace_mb, chunked=True)
        if stage == "rm":
            ends = head_copy = room = 0
        gradients, states, activations = w * trained, moments(config, how, trained), policy + ends + head_copy
        workspace = max(room, within_backward(s, how, rows) + unpacked)
        host, states = (states, min(states, bucket)) if moments_wait else (0, states)
        # behind the backward a bucket of moments takes the place of the activations
        rest = max(activations + workspace, states) if moments_wait else states + activations + workspace
        return Need(weights, gradients, states, activations, 0, workspace, weights + gradients + rest, host)

    rl = member(config.rto, stage)
    separate = rl.critic.kind == "separate"
    critic = (models.critic or s) if separate else None
    of_critic = 0 if critic is None else critic.body if rank is None else adapter(critic, rank)
    trained = own + of_critic
    under, looks, judge = _frozen(config, rl, models, how)
    resting = looks + judge if waits else 0
    weights = w * trained + under + looks + judge - resting
    gradients, states = w * trained, moments(config, how, trained)
    host = resting + states * moments_wait
    states = min(states, bucket) if moments_wait else states
    there = states * (not moments_wait)

    room = logits(s, how, rows, config.workspace_mb, chunked=False)
    # the policy's graph is gone before the critic's is made
    of_policy, backward = policy + ends + head_copy, within_backward(s, how, rows) + unpacked
    of_critic_graph, critic_backward = (kept(critic), within_backward(critic, how, rows)) if critic else (0, 0)
    critic_backward += unpacked
    activations = max(of_policy, of_critic_graph)
    widest = of_policy + max(room, backward), of_critic_graph + critic_backward
    update = weights + gradients + there + max(*widest, states - there)

    casts = 2 * (s.matrices + (critic.matrices if critic else 0)) * (how.half and full)
    ready = weights + there + casts
    # three last hidden states, the policy's head, and of one forward its widest point
    tile = logits(s, how, rows, config.workspace_mb, chunked=True)
    heads = 3 * how.operands * rows * s.hidden + head_copy + max(tile, within_forward(s, how, rows) + unpacked)
    scoring = ready + heads + max(looks, judge) * waits
    places = min(rl.sampling.batch_size, rl.rollouts)
    cache, copy = cached(s, how, places, config.data.max_prompt, config.max_new_tokens)
    step = 4 * 4 * places * s.vocab  # logits, their softmax, and what is drawn from it
    rollout = ready + cache + max(copy, step + head_copy)
    workspace = max(room, backward, critic_backward)
    peak = max(update, scoring, rollout)
    return Need(weights, gradients, states, activations, cache, workspace, peak, host)


def _frozen(config: Config, rl: RTOConfig, models: Models, how: Arithmetic) -> tuple[int, int, int]:
    """Bytes of what lies under the trained adapters, of the other networks that score answers, and of the judge."""
    s, rank, quantized = models.policy, config.adapter.rank, config.adapter.quantize is not None
    under, looks = (frozen(s, how, quantized), 0) if rank is not None else (0, frozen(s, how))
    if rl.reward.beta_1 and rank is not None and models.dpo_is_adapter:
        under += how.weights * adapter(s, rank)
    elif rl.reward.beta_1:
        looks += frozen(s, how, quantized)
    scored = bool(rl.reward.beta_3) and not (rl.score.rule or rl.score.server)
    score = (models.score or s) if scored or "rm" in config.stages else None
    return under, looks, frozen(score, how) - how.operands * score.head if score else 0


def disk(config: Config, models: Models, how: Arithmetic) -> Disk:
    """Finished stages' folders, and checkpoints of the one that is running (checkpoint.keep, and one being written)."""
    models = models.adapted(config.adapter.targets)
    s, rank = models.policy, config.adapter.rank
    best = config.checkpoint.best is not None
    exports = largest = 0
    for stage in config.stages:
        if config.given(stage):
            continue
        whole = rank is None or stage == "sft"
        # rto and its family are stored as the base model is, but never wider than trained
        narrow = min(s.stored or how.weights, how.weights) if stage not in ("sft", "dpo", "rm") else how.weights
        dtype = {"float32": 4, "bfloat16": 2, "float16": 2}.get(config.export.dtype, narrow)
        exports += (1 + best) * (s.parameters * dtype if whole or config.export.merge else 0)
        exports += (1 + best) * (how.weights * adapter(s, rank) if rank and not whole else 0)
        separate = stage in config.members and member(config.rto, stage).critic.kind == "separate"
        own_rank = None if stage == "sft" and config.adapter.full_sft else rank
        trained = s.parameters if own_rank is None else adapter(s, own_rank)
        if separate:
            c = models.critic or s
            trained += c.body if own_rank is None else adapter(c, own_rank)
        largest = max(largest, trained * how.weights + moments(config, how, trained))
    return Disk(exports, (config.checkpoint.keep + 1 + best) * largest)
