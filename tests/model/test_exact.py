"""The comparison with the library's own log-probs tells a leak between sequences from rounding."""

import pytest
import torch

from rto_fast.model import attention
from rto_fast.model.exact import TOLERANCE, check_packing
from rto_fast.model.language import LanguageModel
from tests.tiny import language_model, sequences

EXAMPLES = list(zip(*sequences([(3, 24), (2, 29), (5, 30)]), strict=True))


def far_from_zero(architecture: str = "gpt_neox") -> LanguageModel:
    """All logits are some 48 more, which cancels in log-probs: in bfloat16 each is rounded to a quarter."""
    model = language_model(architecture)
    with torch.no_grad():
        model.hf.gpt_neox.final_layer_norm.bias[0] = 8.0
        model.hf.get_output_embeddings().weight[:, 0] = 6.0
    return model


def stored(model: LanguageModel, dtype: torch.dtype) -> LanguageModel:
    for parameter in model.hf.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("autocast", [False, True], ids=["stored", "autocast"])
def test_rounding_of_the_librarys_logits_is_not_taken_for_a_leak(autocast):
    model = far_from_zero() if autocast else stored(far_from_zero(), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        gap = check_packing(model, EXAMPLES, torch.bfloat16, 16)
        tokens = torch.tensor([EXAMPLES[0][0] + EXAMPLES[0][1]])
        rounded = model.hf(tokens, use_cache=False).logits
    assert 32 < rounded.abs().mean() < 64 and rounded.dtype == torch.bfloat16  # and no hook is left
    assert gap < TOLERANCE[torch.bfloat16] / 8


@pytest.mark.parametrize("autocast", [False, True], ids=["stored", "autocast"])
def test_a_leak_is_seen_beside_rounding(autocast, monkeypatch):
    monkeypatch.setattr(
        attention,
        "_runs_of_equal_length",
        lambda q, k, v, cu_seqlens, scale, window, softcap: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale
        )[0].transpose(0, 1),
    )
    model = far_from_zero()
    with torch.no_grad():
        for layer in model.hf.gpt_neox.layers:
            layer.attention.dense.weight *= 30
            layer.attention.query_key_value.weight *= 10
    model = model if autocast else stored(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), pytest.raises(ValueError, match="cannot be trained"):
        check_packing(model, EXAMPLES, torch.bfloat16, 16)
