"""What every decoding loop stands on: models with their caches, stepped together.

B rows being decoded now, V vocabulary.
"""

import inspect
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rto_fast.config.checks import check
from rto_fast.model import attention
from rto_fast.model.attention import RaggedStep
from rto_fast.rollout.cache import RowCache
from rto_fast.rollout.graphs import DEVICES, Graphs
from rto_fast.rollout.mixture import Mixture

_FUSED = {"cuda"}
"""Where a step attends by decode_attention. With a mask whose width changes at every step, cuDNN would plan each shape
anew, and every row would pay for the longest."""


def mixture_of(model: PreTrainedModel | Mixture) -> Mixture:
    return model if isinstance(model, Mixture) else Mixture((model,), (1.0,))


class Batch:
    """Prompts that decode together, each in a place of `row_step` rows: row b of every cache is the same sequence.

    The longest prompts come first; others take the places of those that are done.
    """

    def __init__(
        self, mixtures: Sequence[Mixture], prompts: Sequence[list[int]], places: int, new_tokens: int, row_step: int = 1
    ):
        self.prompts, self.row_step = prompts, row_step
        self.waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        self.places = min(places, len(prompts))
        rows, longest = self.places * row_step, max(map(len, prompts), default=0)
        # the last token of an answer is no input
        capacity, limit = (longest + new - 1 for new in (min(64, new_tokens), new_tokens))
        self.mixtures = [(mixture, [_Lane(m, rows, capacity, limit) for m in mixture.models]) for mixture in mixtures]
        self.lanes = [lane for _, lanes in self.mixtures for lane in lanes]
        self.device = self.lanes[0].device
        # prompts come sorted by length, so that small calls have little padding, and on a CPU their activations stay in
        # the cache; a GPU has to be filled
        self.prefill_tokens = 1024 if self.device.type == "cpu" else 16384

    def admit(self, used: int) -> list[int]:
        """Once half of the places are free, fill them all: which prompts took them, whose last tokens come next."""
        admitted: list[int] = []
        # refilling at half measured best: sooner mixes old rows with new, and attention is as wide as the oldest
        while self.waiting and 2 * used <= self.places and (place := used + len(admitted)) < self.places:
            length = len(self.prompts[self.waiting[-1]]) - 1
            chosen, repeats = self._next(self.places - place, max(1, self.prefill_tokens // max(1, length)))
            admitted += chosen + [again for again, _ in repeats]
            if length:
                prompts = [self.prompts[i] for i in chosen]
                # padding on the right needs no mask: causal attention never looks there, and later writes cover it
                ids = torch.tensor([p[:-1] + [0] * (length + 1 - len(p)) for p in prompts], device=self.device)
                first = place + len(chosen)
                rows = [(place + source, first + i) for i, (_, source) in enumerate(repeats)]
                for lane in self.lanes:
                    lane.prefill(ids, place * self.row_step, self.row_step)
                    if rows:
                        source, target = (torch.tensor(rows) * self.row_step).to(self.device).unbind(1)
                        lane.cache.copy_rows(source, target, length)
        return admitted

    def _next(self, places: int, room: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Of those that wait, at most `room` prompts to be read, and (another of the same, place of its first) each.

        The answers to one prompt, as in a group of GRPO, come one after the other and read it once.
        """
        chosen: list[int] = []
        repeats: list[tuple[int, int]] = []
        firsts: dict[tuple[int, ...], int] = {}
        while self.waiting and len(chosen) + len(repeats) < places:
            prompt = tuple(self.prompts[self.waiting[-1]])
            if prompt in firsts:
                repeats.append((self.waiting.pop(), firsts[prompt]))
            elif len(chosen) < room:
                firsts[prompt] = len(chosen)
                chosen.append(self.waiting.pop())
            else:
                break
        return chosen, repeats

    def step(self, tokens: Tensor, positions: Tensor, width: int) -> Iterator[Tensor]:
        """Append tokens (B,) at positions (B,) to rows 0 ... B-1 -> (B, V) next-token logits of each mixture."""
        for mixture, lanes in self.mixtures:
            yield mixture.mix([lane.step(tokens, positions, width) for lane in lanes])

    def keep(self, source: Sequence[int]) -> None:
        """Let row b go on from what row source[b] has seen."""
        if moves := [(old, new) for new, old in enumerate(source) if old != new]:
            old, new = torch.tensor(moves).to(self.device).unbind(1)
            for lane in self.lanes:
                lane.cache.move_rows(old, new)


def without_gaps(live: Collection[int]) -> list[int]:
    """Who of `live`, which ascend, is to stand at 0 ... len(live) - 1: the last ones close the gaps."""
    late = (i for i in live if i >= len(live))
    return [i if i in live else next(late) for i in range(len(live))]


class _Lane:
    """One model and its cache."""

    def __init__(self, model: PreTrainedModel, max_rows: int, capacity: int, limit: int):
        config, self.name = model.config.get_text_config(), type(model).__name__
        self.window = getattr(config, "sliding_window", None)
        layers = getattr(config, "layer_types", None)
        if not layers:
            layers = ["sliding_attention" if self.window else "full_attention"] * config.num_hidden_layers
        self.windows = tuple(self.window if kind == "sliding_attention" else None for kind in layers)
        """Of every layer: what needs no mask."""
        kinds = set(layers)
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"rollout: layer_types of {self.name} must be full_attention or sliding_attention, "
                f"got {sorted(kinds)}; use the model's own generate()"
            )
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        self.kinds, self.dtype, self.device = kinds, embedding.dtype, embedding.device
        implementation = getattr(config, "_attn_implementation", None)
        self.fused = self.device.type in _FUSED and implementation == attention.NAME
        # shapes that stay as they are: rows pay for their own length alone
        self.cache = RowCache(max_rows, limit if self.fused else capacity, limit, whole=self.fused)
        self.graphs = Graphs(max_rows, self.device, self.name) if self.fused and self.device.type in DEVICES else None
        # transformers 5.24 renamed the argument, and warns of the old name
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self.forward = partial(model, use_cache=True, return_dict=True, **{name: self.cache})

    def prefill(self, ids: Tensor, first_row: int, row_step: int) -> None:
        """Append whole prompts as rows first_row, first_row + row_step, ..."""
        self.cache.begin_prefill(first_row, row_step)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        # no position's logits are wanted
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        self.forward(input_ids=ids, position_ids=positions, attention_mask=None, logits_to_keep=nothing)

    def step(self, tokens: Tensor, positions: Tensor, width: int) -> Tensor:
        if self.fused:
            rows, inputs = len(tokens), (tokens, positions)
            if self.graphs is not None:
                inputs = self.graphs.inputs(tokens, positions)
            take = partial(self._ragged, *inputs, width)
            logits = take() if self.graphs is None else self.graphs.run(len(inputs[0]), take)
            if logits is not None:
                self.cache.begin_step(inputs[1], width)  # which a replay, in which Python has no part, did not
                return logits[:rows]
            # a network that does not hand it down to all its layers: the step is done again, with masks as all others
            self.fused = self.cache.whole = False
        self.cache.begin_step(positions, width)
        masks = self._masks(positions, width)
        out = self.forward(input_ids=tokens[:, None], position_ids=positions[:, None], attention_mask=masks)
        if not self.cache.storage:
            raise ValueError(f"rollout: {self.name} stored no keys and values; use its own generate()")
        return out.logits[:, -1]

    def _ragged(self, tokens: Tensor, positions: Tensor, width: int) -> Tensor | None:
        """Logits of a step without masks; None where a layer did not get to know of it."""
        self.cache.begin_step(positions, width)
        step = RaggedStep(positions + 1, self.windows)
        out = self.forward(
            input_ids=tokens[:, None], position_ids=positions[:, None], attention_mask=None, ragged_step=step
        )
        return out.logits[:, -1] if step.served >= len(self.cache.storage) > 0 else None

    def _masks(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """The additive attention masks of one step, made once for all layers.

        positions (B,) of the queries -> (B, 1, 1, width), or one such mask per kind of layer.
        """
        columns, last = torch.arange(width, device=positions.device), positions[:, None]
        hidden = columns > last
        masks = {"full_attention": hidden, "sliding_attention": hidden}
        if self.window is not None and self.window < width:
            masks["sliding_attention"] = hidden | (columns <= last - self.window)
        zeros = torch.zeros(hidden.shape, dtype=self.dtype, device=positions.device)
        lowest = torch.finfo(self.dtype).min
        masks = {kind: zeros.masked_fill(masks[kind], lowest)[:, None, None] for kind in self.kinds}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def check_prompts(
    op: str,
    models: Sequence[PreTrainedModel],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    max_batch: int,
    max_context: int | None = None,
) -> None:
    """Raises ValueError unless every prompt and its answer fit every model."""
    check(max_batch >= 1, f"{op}: max_batch", ">= 1", max_batch)
    own = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
    limits = [(n, "max_position_embeddings") for n in own] + [(max_context, "max_context")]
    limit, name = min(((n, name) for n, name in limits if n is not None), default=(inf, ""))
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"{op}: prompts[{i}] is empty; give at least one token, such as BOS")
        if (room := limit - max_new_tokens) < len(prompt):
            shorten = f"shorten the prompt to {room} tokens or " if room > 0 else ""
            raise ValueError(
                f"{op}: prompts[{i}] has {len(prompt)} tokens, and with max_new_tokens={max_new_tokens} "
                f"exceeds {name}={limit}; {shorten}lower max_new_tokens"
            )


@contextmanager
def eval_mode(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Eval mode inside, every module's own mode back afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
