"""Checks before the first step: what would make every later number wrong."""

import torch

from rto_fast import attention
from rto_fast.model import LanguageModel
from rto_fast.packing import pack
from rto_fast.scoring import response_logprobs

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest accepted |packed - alone| in nats; a cross-sequence leak or a wrong head shows as 0.4 and more."""


@torch.no_grad()
def check_packing(
    model: LanguageModel, sequences: list[tuple[list[int], list[int]]], dtype: torch.dtype, workspace_mb: int | None
) -> float:
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
