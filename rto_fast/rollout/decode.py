"""The decoding loop: admit prompts, step all rows, let finished rows go.

P prompts, B rows being decoded now (B <= max_batch), V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rto_fast.rollout.cache import RowCache
from rto_fast.rollout.sampling import Sampling, draw, uniform_streams

_PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Prompt tokens per prefill call: prompts come sorted by length, so that small calls have little padding, and on a
CPU their activations stay in the cache; a GPU has to be filled."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    prompt: list[int]
    response: list[int]
    """The actions: ends with the EOS token when one was sampled; nothing is appended on truncation."""
    logprobs: list[float]
    """One per action, under the distribution it was sampled from (after temperature, top-k and top-p)."""
    finish: str
    """"eos", or "length" when max_new_tokens were made without an EOS."""


def rollout(
    model: nn.Module,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    eos_token_ids: tuple[int, ...],
    *,
    seed: int,
    max_batch: int = 64,
    max_context: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Sample one answer per prompt, in the order of the prompts.

    Answer i depends on the model, prompt i, `sampling`, `seed` and i alone: its uniform numbers are a stream of their
    own (`uniform_streams`), turned into tokens by inverse-CDF sampling. max_batch and the other prompts change it only
    through the last bits of the model's own arithmetic. The stream belongs to the place in the list: a prompt moved to
    another place gets another answer, except when greedy.

    model: a Hugging Face causal LM on one device whose layers keep keys and values (full or sliding-window attention);
    it runs in eval mode without gradients and gets its modes back. eos_token_ids: sampling any of them ends an answer;
    empty = every answer has max_new_tokens. max_context: lowers the model's own limit, never raises it. progress(n) is
    called with the number of answers that finished since the last call.

    Cost: each prompt is prefilled once and without its last token, which is the first decoding step's input, so that
    sampling happens in one place. A step runs all rows; finished rows leave, and waiting prompts take their place.
    Memory: keys and values of max_batch rows, as long as the longest row got, and (max_batch, V) logits. One device
    sync per step (which token was sampled, hence who finished); looking at every k-th step only would save the others
    at the price of up to k - 1 wasted tokens per answer.

    Raises ValueError: an empty prompt, a prompt that does not leave room for max_new_tokens, a model that cannot be
    decoded this way, logits that are not finite.
    """
    _check(model, prompts, sampling, max_batch, max_context)
    uniforms = None
    if sampling.temperature > 0:
        uniforms = uniform_streams(seed, len(prompts), sampling.max_new_tokens)
    with _eval_mode(model), torch.inference_mode():
        return _Decoder(model, prompts, sampling, frozenset(eos_token_ids), uniforms, max_batch).run(progress)


class _Decoder:
    """State of one rollout; row b of every list and tensor here is row b of the cache."""

    def __init__(self, model, prompts, sampling, eos, uniforms, max_batch):
        self.model, self.prompts, self.sampling, self.eos = model, prompts, sampling, eos
        self.device = model.get_input_embeddings().weight.device
        self.uniforms = None if uniforms is None else uniforms.to(self.device)
        self.prefill_tokens = _PREFILL_TOKENS.get(self.device.type, 16384)
        self.masks = _StepMasks(model)
        self.waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        longest = max((len(p) for p in prompts), default=0)
        self.max_batch = min(max_batch, len(prompts))
        self.cache = RowCache(self.max_batch, longest + min(64, sampling.max_new_tokens))
        self.responses: list[list[int]] = [[] for _ in prompts]
        self.finish: list[str] = [""] * len(prompts)
        self.owners: list[int] = []
        """Which prompt each row belongs to."""
        self.history: list[tuple[list[int], Tensor]] = []
        """(owners, log-probs on the device) of every step: read once at the end."""

    def run(self, progress: Callable[[int], None] | None) -> list[Completion]:
        while self.waiting or self.owners:
            # refilling at half measured best: sooner mixes old rows with new, and attention is as wide as the oldest
            if self.waiting and 2 * len(self.owners) <= self.max_batch:
                self._admit()
            num_finished = self._step()
            if progress is not None and num_finished:
                progress(num_finished)
        logprobs: list[list[float]] = [[] for _ in self.prompts]
        flat = torch.cat([step for _, step in self.history]).tolist() if self.history else []
        for owner, logprob in zip((o for owners, _ in self.history for o in owners), flat, strict=True):
            logprobs[owner].append(logprob)
        return [
            Completion(list(p), r, lp, f)
            for p, r, lp, f in zip(self.prompts, self.responses, logprobs, self.finish, strict=True)
        ]

    def _admit(self) -> None:
        """Fill the free rows with the longest waiting prompts."""
        while self.waiting and len(self.owners) < self.max_batch:
            length = len(self.prompts[self.waiting[-1]]) - 1
            room = min(self.max_batch - len(self.owners), max(1, self.prefill_tokens // max(1, length)))
            chosen = [self.waiting.pop() for _ in range(min(room, len(self.waiting)))]
            if length > 0:
                self._prefill(chosen, length)
            self.owners += chosen
        self._upload()

    def _prefill(self, chosen: list[int], length: int) -> None:
        # padding on the right needs no mask: causal attention never looks there, and later writes cover it
        rows = [self.prompts[i][:-1] for i in chosen]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.device)
        self.cache.begin_prefill(len(self.owners))
        # no position's logits are wanted
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        self._forward(ids, torch.arange(length, device=self.device)[None], None, logits_to_keep=nothing)

    def _forward(self, ids: Tensor, positions: Tensor, mask, **kwargs) -> Tensor:
        return self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **kwargs,
        ).logits

    def _upload(self) -> None:
        """The rows have changed: send their last tokens, positions and places to the device again."""
        last = [self.responses[i][-1] if self.responses[i] else self.prompts[i][-1] for i in self.owners]
        self.positions_host = [len(self.prompts[i]) + len(self.responses[i]) - 1 for i in self.owners]
        counts = [len(self.responses[i]) for i in self.owners]
        data = torch.tensor([last, self.positions_host, self.owners, counts]).to(self.device)
        self.tokens, self.positions, self.owner_ids, self.counts = data.unbind(0)

    def _step(self) -> int:
        """One token for every row; returns how many answers it finished."""
        width = max(self.positions_host) + 1
        self.cache.begin_step(self.positions, width)
        mask = self.masks(self.positions, width)
        logits = self._forward(self.tokens[:, None], self.positions[:, None], mask)[:, -1]
        if not self.cache.storage:
            raise ValueError(f"rollout: {type(self.model).__name__} stored no keys and values; use its own generate()")
        uniforms = None if self.uniforms is None else self.uniforms[self.owner_ids, self.counts]
        self.tokens, logprobs = draw(logits, uniforms, self.sampling)
        self.history.append((self.owners, logprobs))
        self.positions, self.counts = self.positions + 1, self.counts + 1
        self.positions_host = [p + 1 for p in self.positions_host]
        finished = []
        for row, (owner, token) in enumerate(zip(self.owners, self.tokens.tolist(), strict=True)):
            response = self.responses[owner]
            response.append(token)
            if token in self.eos:
                self.finish[owner] = "eos"
                finished.append(row)
            elif len(response) == self.sampling.max_new_tokens:
                self.finish[owner] = "length"
                finished.append(row)
            if token < 0:
                raise ValueError(
                    f"rollout: the logits for prompt {owner} after {len(response) - 1} new tokens are not finite; "
                    "look for NaN or inf in the model's weights"
                )
        if finished:
            self._leave(finished)
        return len(finished)

    def _leave(self, finished: list[int]) -> None:
        """Close the gaps with rows from the end, so that the rows in use stay 0 ... B-1."""
        num_left = len(self.owners) - len(finished)
        gone = set(finished)
        target = [row for row in finished if row < num_left]
        source = [row for row in range(num_left, len(self.owners)) if row not in gone]
        owners = list(self.owners)
        if target:
            self.cache.move_rows(*torch.tensor([source, target]).to(self.device).unbind(0))
            for s, t in zip(source, target, strict=True):
                owners[t] = owners[s]
        self.owners = owners[:num_left]
        if self.owners:
            self._upload()


class _StepMasks:
    """The additive attention masks of one decoding step, made once for all layers."""

    def __init__(self, model: nn.Module):
        config = model.config.get_text_config()
        self.window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if self.window else "full_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"rollout: layer_types of {type(model).__name__} must be full_attention or sliding_attention, "
                f"got {sorted(kinds)}; use the model's own generate()"
            )
        self.kinds, self.dtype = kinds, model.get_input_embeddings().weight.dtype

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


def _check(model: nn.Module, prompts: Sequence[list[int]], sampling: Sampling, max_batch: int, max_context: int | None):
    if max_batch < 1:
        raise ValueError(f"rollout: max_batch must be >= 1, got {max_batch}")
    own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = {"max_position_embeddings": own, "max_context": max_context}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    name = min(limits, key=limits.get, default=None)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"rollout: prompts[{i}] is empty; give at least one token, such as BOS")
        if name is not None and len(prompt) + sampling.max_new_tokens > limits[name]:
            room = limits[name] - sampling.max_new_tokens
            raise ValueError(
                f"rollout: prompts[{i}] has {len(prompt)} tokens, and with max_new_tokens={sampling.max_new_tokens} "
                f"exceeds {name}={limits[name]}; "
                + (
                    f"shorten the prompt to {room} tokens or lower max_new_tokens"
                    if room > 0
                    else "lower max_new_tokens"
                )
            )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
