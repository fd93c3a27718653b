"""Checks before the first step: what would make every later number wrong.

Each returns what it measured and raises ValueError, with the mend, where that is not what it has to be.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rto_fast import attention
from rto_fast.export import check_export, save_stage
from rto_fast.model import LanguageModel
from rto_fast.packing import pack
from rto_fast.scoring import response_logprobs

Sequences = Sequence[tuple[list[int], list[int]]]
"""(prompt, response) as token ids."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest accepted |packed - alone| in nats; a cross-sequence leak or a wrong head shows as 0.4 and more."""


@torch.no_grad()
def check_packing(model: LanguageModel, sequences: Sequences, dtype: torch.dtype, workspace_mb: int | None) -> float:
    """Packed log-probs of (prompt, response) pairs against each sequence alone through the model's own logits.

    Returns the largest difference in nats; raises ValueError above the tolerance of `dtype`, that of the arithmetic.
    """
    was_training = model.training
    model.eval()
    prompts, responses = [p for p, _ in sequences], [r for _, r in sequences]
    batch, rows = (x.to(model.hf.device) for x in pack(prompts, responses))
    packed = response_logprobs(model, batch, rows, workspace_mb)
    model.hf.set_attn_implementation("sdpa")
    try:
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


def _alone(model: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    tokens = torch.tensor([prompt + response], device=model.hf.device)
    logits = model.hf(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]


def check_ratio(model: LanguageModel, sequences: Sequences, dtype: torch.dtype, workspace_mb: int | None) -> float:
    """Log-probs as they are scored against those of a training forward: PPO's first ratio is 1 and its first KL 0.

    Returns the largest difference in nats; raises ValueError above the tolerance of `dtype`.
    """
    was_training = model.training
    batch, rows = (x.to(model.hf.device) for x in pack([p for p, _ in sequences], [r for _, r in sequences]))
    with torch.no_grad():
        scored = response_logprobs(model.eval(), batch, rows, workspace_mb)
    with torch.enable_grad():
        trained = response_logprobs(model.train(), batch, rows, workspace_mb).detach()
    model.train(was_training)
    gap = (scored - trained).abs().max().item()
    if not gap <= TOLERANCE[dtype]:
        raise ValueError(
            f"model.path: log-probs of a training forward differ from scored ones by {gap:.3g} nat (at most "
            f"{TOLERANCE[dtype]} wanted), so that PPO's first ratio would not be 1; look for dropout or noise that "
            "is on in training only"
        )
    return gap


def check_eos(responses: Sequence[list[int]], eos_token_ids: Sequence[int]) -> int:
    """How many answers were looked at; all must end in an EOS, and that row must be one that is trained."""
    for number, response in enumerate(responses, 1):
        if response[-1] not in eos_token_ids:
            raise ValueError(
                f"data: answer {number} ends in token {response[-1]}, not in EOS {list(eos_token_ids)}; a policy "
                "trained on it would never stop: give the model a tokenizer with an EOS, or another --data.template"
            )
    batch, rows = pack([response[:1] for response in responses], responses)
    last = rows.index[rows.cu_seqlens[1:].long() - 1]
    if not (batch.weights[last] > 0).all():
        raise ValueError("data: EOS rows have no weight; this is a fault of rto_fast, please report it")
    return len(responses)


def check_round_trip(tokenizer: PreTrainedTokenizerBase, response: list[int]) -> int:
    """How many letters an answer's text has; written and read again it must be the same, blanks aside."""

    def text(ids: list[int]) -> str:
        return "".join(tokenizer.decode(ids, skip_special_tokens=True).split())

    once = text(response)
    again = text(tokenizer(once_spaced := tokenizer.decode(response, skip_special_tokens=True))["input_ids"])
    if once != again:
        at = next((i for i, (a, b) in enumerate(zip(once, again, strict=False)) if a != b), min(len(once), len(again)))
        raise ValueError(
            f"model.path: the tokenizer does not read back what it writes: {once[at : at + 20]!r} became "
            f"{again[at : at + 20]!r}; its files do not belong together"
        )
    return len(once_spaced)


def check_trial_export(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, load: Callable[[str], LanguageModel]
) -> None:
    """Write the model to a temporary folder, load it again and compare logits bit by bit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "export"
        save_stage(folder, model.hf, tokenizer, {"stage": "trial"})
        check_export(folder, model, load)
