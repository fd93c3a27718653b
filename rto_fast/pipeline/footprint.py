"""What one network takes: bytes of its weights, of what a forward leaves for the backward, of a rollout's cache.

T rows of a micro-batch, H hidden, I width of an MLP, V vocabulary, L layers. Bytes throughout.
"""

from typing import NamedTuple

import torch

from rto_fast.kernels.common.workspace import CPU_TILE_BYTES, workspace_bytes
from rto_fast.model.quantize import BYTES as NF4


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
    """Numbers of a token between an MLP's maps, in all experts that it is given to"""
    vocab: int
    context: int | None
    """Longest sequence in tokens"""
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
    chosen: int = 0
    """Experts that a token is given to; 0 is an MLP for all"""
    idle: int = 0
    """Parameters of the experts that a token is not given to, which cost memory alone"""
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


def frozen(s: Sizes, how: Arithmetic, quantized: bool = False) -> int:
    """Bytes of a whole network that is not trained: its linear maps in the type of the arithmetic (model/precision),
    or those of its layers in 4 bits (model/quantize)."""
    matrices = round(NF4 * s.matrices) if quantized else how.operands * s.matrices
    return matrices + how.operands * s.head + how.weights * (s.parameters - s.matrices - s.head)


def dequantized(s: Sizes, how: Arithmetic) -> int:
    """Bytes of the largest linear map's numbers, which a quantised one makes anew whenever it multiplies."""
    return how.operands * s.hidden * max(s.mlp, s.query)


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
    sorted_ = 2 * a * s.hidden * s.chosen  # what each expert reads, and what it says before it is weighed
    return norms + inputs + made + turned + normed + out + act + sorted_ + a * (rank or 0) * len(s.sides)


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

    The last token of an answer is never written. On a GPU all of it is there from the beginning.
    """
    start, limit = prompt + min(64, new) - 1, prompt + new - 1
    numbers = places * s.kv * limit * how.operands
    return s.layers * 2 * numbers, numbers if how.cpu and limit > start else 0


def logits(s: Sizes, how: Arithmetic, rows: int, workspace_mb: int | None, *, chunked: bool) -> int:
    """The buffer of a head's float32 logits; `chunked` ones come in tiles, which are small on a CPU."""
    limit = workspace_bytes(torch.device("cpu" if how.cpu else "cuda"), workspace_mb)
    if how.cpu and chunked:
        limit = min(limit, CPU_TILE_BYTES)
    return min(limit, 4 * rows * s.vocab)


def adapter(s: Sizes, rank: int) -> int:
    """Parameters of one adapter."""
    return rank * s.layers * sum(sides for _, sides in s.sides)
