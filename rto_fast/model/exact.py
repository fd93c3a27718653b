"""Whether a model can be trained on packed rows: its log-probs there equal those of each sequence alone.

Each check returns the largest difference in nats, and raises ValueError, with the fix, where that is above the
tolerance of `dtype`, the arithmetic's.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, pack

Sequences = Sequence[tuple[list[int], list[int]]]
"""(prompt, response) as token ids."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest accepted |packed - alone| in nats; a cross-sequence leak or a wrong head shows as 0.4 and more."""


@torch.no_grad()
def check_packing(model: LanguageModel, sequences: Sequences, dtype: torch.dtype, workspace_mb: int | None) -> float:
    """Packed log-probs of (prompt, response) pairs against each sequence alone through the model's own logits."""
    was_training = model.training
    packed = response_logprobs(model.eval(), _packed(model, sequences), workspace_mb)
    model.hf.set_attn_implementation("sdpa")
    try:
        with _float32_head(model.hf.get_output_embeddings(), dtype):
            alone = torch.cat([_alone(model, prompt, response) for prompt, response in sequences])
    finally:
        model.hf.set_attn_implementation(attention.NAME)
        model.train(was_training)
    gap = (packed - alone).abs().max().item()
    bound = TOLERANCE[dtype]
    if not math.isfinite(gap):
        raise ValueError(
            f"model.path: log-probs of {type(model.hf).__name__} are not finite ({gap}); its weights are too large for "
            f"{str(dtype).removeprefix('torch.')}, or its config.json is not theirs: give an undamaged copy"
        )
    if not gap <= bound:
        raise ValueError(
            f"model.path: packed log-probs of {type(model.hf).__name__} differ from one-by-one ones by {gap:.3g} nat "
            f"(at most {bound} wanted); this architecture cannot be trained on packed rows here"
        )
    return gap


def _packed(model: LanguageModel, sequences: Sequences) -> PackedBatch:
    return pack([prompt for prompt, _ in sequences], [response for _, response in sequences]).to(model.hf.device)


@contextmanager
def _float32_head(head: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the library's head leaves float32 logits of its hidden states and weights in `dtype`, as ours does.

    Logits of 32 to 64 in bfloat16 are off by up to 0.125 each, which would hide a small leak or look like one.
    """

    def unrounded(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hidden, weight, bias = inputs[0].to(dtype).float(), module.weight, module.bias
        assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))  # of a Linear
        with torch.autocast(hidden.device.type, enabled=False):
            # piece by piece: no float32 copy of the whole weight
            logits = torch.cat([F.linear(hidden, rows.to(dtype).float()) for rows in weight.split(8192)], -1)
            return logits if bias is None else logits + bias.to(dtype).float()

    if dtype == torch.float32:  # its own logits are that already
        yield
        return
    hook = head.register_forward_hook(unrounded)
    try:
        yield
    finally:
        hook.remove()


def _alone(model: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    tokens = torch.tensor([prompt + response], device=model.hf.device)
    logits = model.hf(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]


def check_ratio(model: LanguageModel, sequences: Sequences, dtype: torch.dtype, workspace_mb: int | None) -> float:
    """Log-probs as they are scored against those of a training forward: PPO's first ratio is 1 and its first KL 0."""
    was_training, batch = model.training, _packed(model, sequences)
    with torch.no_grad():
        scored = response_logprobs(model.eval(), batch, workspace_mb)
    with torch.enable_grad():
        trained = response_logprobs(model.train(), batch, workspace_mb).detach()
    model.train(was_training)
    gap = (scored - trained).abs().max().item()
    if not gap <= TOLERANCE[dtype]:
        raise ValueError(
            f"model.path: log-probs of a training forward differ from scored ones by {gap:.3g} nat (at most "
            f"{TOLERANCE[dtype]} wanted), so that PPO's first ratio would not be 1; look for dropout or noise that "
            "is on in training only"
        )
    return gap
