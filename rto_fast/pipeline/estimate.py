"""What a run needs in memory: arithmetic on the sizes of its networks, the same before a card is rented and before the
first step.

T rows of a micro-batch, H hidden, I width of an MLP, V vocabulary, L layers. Bytes throughout.

A stage is at its peak in one of four moments, and what they have in common is there once:

    update    weights + gradients + moments + saved activations + what a layer's backward makes
    head      the same, with a buffer of logits in the place of the latter
    scoring   weights + moments + a forward's own tensors and the buffer of logits      (RTO's family)
    rollout   weights + moments + keys and values + a step's logits                     (RTO's family)

Left out: the library's own (a CUDA context takes about half a GiB), the allocator's fragments, log-probs and rewards.
"""

from typing import NamedTuple

import torch

from rto_fast.config import Config, member
from rto_fast.kernels.common.workspace import CPU_TILE_BYTES, workspace_bytes

MOMENTS = 2
"""Of each trained number, in its own type (AdamW)."""


class Sizes(NamedTuple):
    """A network's numbers, as its configuration says them."""

    body: int
    """Parameters without a head"""
    head: int
    """Parameters of the language head; 0 where it is the embedding"""
    matrices: int
    """Parameters of all layers' linear maps"""
    sides: tuple[tuple[str, int], ...]
    """Of one layer's linear maps the name, and inputs and outputs added up: an adapter has rank times as many
    parameters"""
    layers: int
    hidden: int
    query: int
    """Numbers of a token's queries in one layer"""
    kv: int
    """... of its keys; and of its values"""
    mlp: int
    vocab: int
    context: int | None
    """Longest sequence in tokens: its positions, or its sliding window where that is shorter"""
    gated: bool
    """The MLP multiplies two maps"""
    fused: bool
    """Queries, keys and values come of one map"""
    rotary: bool
    rms: bool
    """Norms are made of elementary steps, each of which saves its operand; layer_norm is one"""
    head_norms: bool
    """Queries and keys are normed"""
    parallel: bool
    """Attention and MLP read the same stream"""
    composed: bool
    """The MLP's activation is made of elementary steps (gelu_new)"""
    stored: int | None = None
    """Bytes of one weight on the disk, where the configuration says it"""

    def adapted(self, targets: tuple[str, ...]) -> "Sizes":
        """With the linear maps alone that get an adapter (adapter.targets)."""
        if "all-linear" in targets:
            return self
        return self._replace(sides=tuple(x for x in self.sides if f".{x[0]}".endswith(tuple(f".{t}" for t in targets))))

    @property
    def parameters(self) -> int:
        return self.body + self.head


class Arithmetic(NamedTuple):
    """What numbers take."""

    weights: int = 4
    """Of the trained weights, and of the residual stream under autocast"""
    half: bool = False
    """Autocast: matrices are multiplied in a half-precision type"""
    cpu: bool = True

    @property
    def operands(self) -> int:
        """What matrices are multiplied in, and frozen weights are kept in."""
        return 2 if self.half else self.weights


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


class Disk(NamedTuple):
    exports: int
    """The folders of all finished stages"""
    checkpoints: int
    """Of the largest running stage"""


def frozen(s: Sizes, how: Arithmetic) -> int:
    """Bytes of a whole network that is not trained: its linear maps in the type of the arithmetic (model/precision)."""
    maps = s.matrices + s.head
    return how.operands * maps + how.weights * (s.parameters - maps)


def saved(s: Sizes, how: Arithmetic, *, full: bool, rank: int | None) -> int:
    """Bytes that one layer saves of each row for its backward (counted in transformers' code, with our attention).

    full  its own weights are trained; rank: of an adapter that is trained on it

    Without autocast one tensor serves all maps that read it; autocast casts it for each of them anew, and leaves the
    residual stream, and what an elementary norm multiplies its weight with, in the weights' type.
    """
    a, w = how.operands, how.weights
    norms = w * s.hidden * ((1 if s.parallel else 2) + 2 * (s.rms and full))
    read = 1 if s.fused else 3, 2 if s.gated else 1
    inputs = a * s.hidden * sum(read) if how.half else w * s.hidden * 2
    made = a * (s.query + 2 * s.kv) if s.fused or not s.rotary else 0  # its values are a view of all of it
    turned = a * (s.query + s.kv * (1 if s.fused else 2)) if s.rotary else 0
    normed = (s.query + s.kv) * (a + w * full) if s.head_norms else 0
    # off CUDA every run of sequences has an output of its own, and they are put together
    out = a * s.query * (2 if how.cpu else 1)
    act = a * s.mlp * ((4 if s.gated else 2) + 3 * s.composed)
    return norms + inputs + made + turned + normed + out + act + a * (rank or 0) * len(s.sides)


def graph(s: Sizes, how: Arithmetic, rows: int, *, checkpointing: bool, rank: int | None, full: bool) -> int:
    """Bytes that a network's forward on T rows leaves for its backward, up to the last hidden states."""
    layer = saved(s, how, full=full, rank=rank) * rows
    end = (1 + (s.rms and full)) * how.weights * s.hidden * rows
    # a trained weight is cast once until the forward's end; a frozen one lies there cast
    casts = 2 * s.matrices if how.half and full else 0
    if checkpointing:
        inputs = s.layers * how.weights * s.hidden * rows
        return inputs + layer + end + casts
    return s.layers * layer + end + casts


def within_backward(s: Sizes, how: Arithmetic, rows: int) -> int:
    """Gradients of one layer's MLP and stream, while what they were made of is still there."""
    return rows * (how.operands * s.mlp * (2 if s.gated else 1) + how.weights * s.hidden * 2)


def within_forward(s: Sizes, how: Arithmetic, rows: int) -> int:
    """What a forward without a backward holds at its widest point, the MLP of one layer."""
    return rows * (how.operands * s.mlp * (3 if s.gated else 2) + how.weights * s.hidden * 2)


def cached(s: Sizes, how: Arithmetic, places: int, prompt: int, new: int) -> tuple[int, int]:
    """(bytes at the end of the longest answers, bytes of the copy while the last tensor grows): rollout/cache.py.

    The last token of an answer is never written.
    """
    start, limit = prompt + min(64, new) - 1, prompt + new - 1
    numbers = places * s.kv * limit * how.operands
    return s.layers * 2 * numbers, numbers if limit > start else 0


def logits(s: Sizes, how: Arithmetic, rows: int, workspace_mb: int | None, *, chunked: bool) -> int:
    """The buffer of a head's float32 logits; `chunked` ones come in tiles, which are small on a CPU."""
    limit = workspace_bytes(torch.device("cpu" if how.cpu else "cuda"), workspace_mb)
    if how.cpu and chunked:
        limit = min(limit, CPU_TILE_BYTES)
    return min(limit, 4 * rows * s.vocab)


def adapter(s: Sizes, rank: int) -> int:
    """Parameters of one adapter."""
    return rank * s.layers * sum(sides for _, sides in s.sides)


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
    own = s.parameters if rank is None else adapter(s, rank)

    def kept(network: Sizes) -> int:
        return graph(network, how, rows, checkpointing=checkpointing, rank=rank, full=full)

    policy = kept(s)
    # of the response rows, in the worst case all: a copy, and a gradient that is there before the backward
    ends = 2 * how.operands * rows * s.hidden
    # the head's gradient is made before it is added to the one that is there
    d_head = w * s.vocab * s.hidden * full
    head_copy = 2 * s.vocab * s.hidden * how.half * full
    if stage in ("sft", "dpo", "rm"):
        trained = own if stage != "rm" or rank else s.body
        weights = w * trained if full else frozen(s, how) + w * own
        room = logits(s, how, rows, config.workspace_mb, chunked=True)
        if stage == "rm":
            ends = d_head = head_copy = room = 0
        gradients, states, activations = w * trained, MOMENTS * w * trained, policy + ends + head_copy
        workspace = d_head + max(room, within_backward(s, how, rows))
        peak = weights + gradients + states + activations + workspace
        return Need(weights, gradients, states, activations, 0, workspace, peak)

    rl = member(config.rto, stage)
    separate = rl.critic.kind == "separate"
    critic = (models.critic or s) if separate else None
    of_critic = 0 if critic is None else critic.body if rank is None else adapter(critic, rank)
    trained = own + of_critic
    # pi_ref or the base, and pi_dpo
    fixed = frozen(s, how)
    if rl.reward.beta_1:
        fixed += w * adapter(s, rank) if rank is not None and models.dpo_is_adapter else frozen(s, how)
    scored = bool(rl.reward.beta_3) and not (rl.score.rule or rl.score.server)
    score = (models.score or s) if scored or "rm" in config.stages else None
    fixed += frozen(score, how) - how.operands * score.head if score else 0
    weights = fixed + w * trained
    gradients, states = w * trained, MOMENTS * w * trained

    activations = policy + ends + head_copy + (kept(critic) if critic else 0)
    room = logits(s, how, rows, config.workspace_mb, chunked=False)
    backward = within_backward(critic or s, how, rows)
    head = policy + ends + head_copy + room + d_head  # the critic's forward comes after it
    update = weights + gradients + states + max(head, activations + d_head + backward)

    casts = 2 * (s.matrices + (critic.matrices if critic else 0)) * (how.half and full)
    ready = weights + states + casts
    # three last hidden states, the policy's head, and of one forward its widest point
    tile = logits(s, how, rows, config.workspace_mb, chunked=True)
    scoring = ready + 3 * how.operands * rows * s.hidden + head_copy + max(tile, within_forward(s, how, rows))
    places = min(rl.sampling.batch_size, rl.rollouts)
    cache, copy = cached(s, how, places, config.data.max_prompt, config.max_new_tokens)
    step = 4 * 4 * places * s.vocab  # logits, their softmax, and what is drawn from it
    rollout = ready + cache + max(copy, step + head_copy)
    workspace = max(room + d_head, d_head + backward)
    peak = max(update, scoring, rollout)
    return Need(weights, gradients, states, activations, cache, workspace, peak)


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
        largest = max(largest, trained * how.weights * (1 + MOMENTS))
    return Disk(exports, (config.checkpoint.keep + 1 + best) * largest)
