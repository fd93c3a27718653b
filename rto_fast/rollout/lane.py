"""What every decoding loop stands on: models with their caches, stepped together.

B rows being decoded now, V vocabulary.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rto_fast.model import attention
from rto_fast.model.attention import RaggedStep
from rto_fast.rollout.cache import RowCache
from rto_fast.rollout.mixture import Mixture

_PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Prompt tokens per prefill call: prompts come sorted by length, so that small calls have little padding, and on a
CPU their activations stay in the cache; a GPU has to be filled."""
_FUSED = {"cuda"}
"""Where a step attends by decode_attention. With a mask whose width changes at every step, cuDNN would plan each shape
anew, and every row would pay for the longest."""


def models_of(model: PreTrainedModel | Mixture) -> tuple[PreTrainedModel, ...]:
    return model.models if isinstance(model, Mixture) else (model,)


class Lanes:
    """A model, or the models of a mixture, with one cache each; row b of every cache is the same sequence."""

    def __init__(
        self, model: PreTrainedModel | Mixture, max_rows: int, longest: int, max_new_tokens: int, row_step: int = 1
    ):
        """`longest`: tokens of the longest prompt."""
        self.row_step = row_step
        """Rows from one prompt to the next."""
        self.mixture = model if isinstance(model, Mixture) else None
        # the last token of an answer is no input
        capacity, limit = (longest + new - 1 for new in (min(64, max_new_tokens), max_new_tokens))
        self.lanes = [_Lane(m, max_rows, capacity, limit) for m in models_of(model)]
        self.device = self.lanes[0].device
        self.prefill_tokens = _PREFILL_TOKENS.get(self.device.type, 16384)

    def prefill(self, prompts: Sequence[list[int]], first_row: int) -> None:
        """Write the prompts without their last tokens to rows first_row, first_row + row_step, ...

        The longest prompt comes first. Each last token is the first step's input.
        """
        length = len(prompts[0]) - 1
        if length == 0:
            return
        # padding on the right needs no mask: causal attention never looks there, and later writes cover it
        ids = torch.tensor([p[:-1] + [0] * (length + 1 - len(p)) for p in prompts], device=self.device)
        for lane in self.lanes:
            lane.prefill(ids, first_row, self.row_step)

    def step(self, tokens: Tensor, positions: Tensor, width: int) -> Tensor:
        """Append tokens (B,) at positions (B,) to rows 0 ... B-1 -> (B, V) next-token logits."""
        logits = [lane.step(tokens, positions, width) for lane in self.lanes]
        return logits[0] if self.mixture is None else self.mixture.mix(logits)

    def move_rows(self, source: list[int], target: list[int]) -> None:
        """Copy rows `source` over rows `target`; all are read before any is written."""
        rows = torch.tensor([source, target]).to(self.device)
        for lane in self.lanes:
            lane.cache.move_rows(*rows.unbind(0))


def admit(
    lanes: Sequence[Lanes], prompts: Sequence[list[int]], waiting: list[int], used: int, places: int
) -> list[int]:
    """Prefill the last, longest prompts of `waiting` until all places are used, and return which they are.

    A place is a row, or `row_step` rows of which the first is filled.
    """
    admitted: list[int] = []
    while waiting and used + len(admitted) < places:
        place, length = used + len(admitted), len(prompts[waiting[-1]]) - 1
        room = min(places - place, max(1, lanes[0].prefill_tokens // max(1, length)))
        chosen = [waiting.pop() for _ in range(min(room, len(waiting)))]
        for each in lanes:
            each.prefill([prompts[i] for i in chosen], place * each.row_step)
        admitted += chosen
    return admitted


class _Lane:
    """One model and its cache."""

    def __init__(self, model: PreTrainedModel, max_rows: int, capacity: int, limit: int):
        self.model, self.masks = model, _StepMasks(model)
        self.cache = RowCache(max_rows, capacity, limit)
        # transformers 5.24 renamed the argument, and warns of the old name
        takes = inspect.signature(model.forward).parameters
        self.argument = {"cache" if "cache" in takes else "past_key_values": self.cache}
        self.device = _embedding(model).device
        implementation = getattr(model.config.get_text_config(), "_attn_implementation", None)
        self.fused = self.device.type in _FUSED and implementation == attention.NAME

    def prefill(self, ids: Tensor, first_row: int, row_step: int) -> None:
        self.cache.begin_prefill(first_row, row_step)
        # no position's logits are wanted
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        self._forward(ids, torch.arange(ids.shape[1], device=self.device)[None], None, logits_to_keep=nothing)

    def step(self, tokens: Tensor, positions: Tensor, width: int) -> Tensor:
        self.cache.begin_step(positions, width)
        if self.fused:
            step = RaggedStep(positions + 1, self.masks.windows)
            logits = self._forward(tokens[:, None], positions[:, None], None, ragged_step=step)[:, -1]
            if step.served >= len(self.cache.storage) > 0:
                return logits
            # a network that does not hand it down to all its layers: the step is done again, with masks as all others
            self.fused = False
        logits = self._forward(tokens[:, None], positions[:, None], self.masks(positions, width))[:, -1]
        if not self.cache.storage:
            raise ValueError(f"rollout: {type(self.model).__name__} stored no keys and values; use its own generate()")
        return logits

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor] | None, **kwargs: Tensor | RaggedStep
    ) -> Tensor:
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            return_dict=True,
            **self.argument,
            **kwargs,
        ).logits


def _embedding(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


class _StepMasks:
    """The additive attention masks of one decoding step, made once for all layers."""

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        self.window = getattr(config, "sliding_window", None)
        layers = getattr(config, "layer_types", None)
        if not layers:
            layers = ["sliding_attention" if self.window else "full_attention"] * config.num_hidden_layers
        kinds = set(layers)
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"rollout: layer_types of {type(model).__name__} must be full_attention or sliding_attention, "
                f"got {sorted(kinds)}; use the model's own generate()"
            )
        self.kinds, self.dtype = kinds, _embedding(model).dtype
        self.windows = tuple(self.window if kind == "sliding_attention" else None for kind in layers)
        """Of every layer: what needs no mask."""

    def __call__(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """positions (B,) of the queries -> (B, 1, 1, width), or one such mask per kind of layer."""
        columns, last = torch.arange(width, device=positions.device), positions[:, None]
        hidden = columns > last
        masks = {"full_attention": hidden, "sliding_attention": hidden}
        if self.window is not None and self.window < width:
            masks["sliding_attention"] = hidden | (columns <= last - self.window)
        lowest = torch.finfo(self.dtype).min
        zeros = torch.zeros(hidden.shape, dtype=self.dtype, device=positions.device)
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
    if max_batch < 1:
        raise ValueError(f"{op}: max_batch must be >= 1, got {max_batch}")
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
