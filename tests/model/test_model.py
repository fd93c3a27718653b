"""The head that a model hands to the operators: the logits that the family defines, in the dtype of the arithmetic."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma3TextConfig, GraniteConfig

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.scalar import critic_from
from rto_fast.packing import pack
from tests.stages.test_stages import eager_logprob
from tests.tiny import IDS, SIZES, language_model, sequences

SCALED = {
    "times": CohereConfig(vocab_size=61, **SIZES, **IDS, num_key_value_heads=2, logit_scale=0.25, pad_token_id=0),
    "divided": GraniteConfig(vocab_size=61, **SIZES, **IDS, num_key_value_heads=2, logits_scaling=3.0),
    "capped": Gemma3TextConfig(
        vocab_size=61, **SIZES, **IDS, num_key_value_heads=2, head_dim=12, final_logit_softcapping=1.5, pad_token_id=0
    ),
}


@pytest.mark.parametrize("scaling", SCALED)
def test_logits_are_scaled_as_the_family_defines_them(scaling):
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(SCALED[scaling], attn_implementation=attention.register())
    torch.nn.init.normal_(hf.get_output_embeddings().weight, std=0.3)
    model = LanguageModel(hf).double()
    prompts, responses = sequences([(3, 4), (2, 9), (5, 1)])
    with torch.no_grad():
        got = response_logprobs(model, pack(prompts, responses), None).split([len(r) for r in responses])
        for prompt, response, ours in zip(prompts, responses, got, strict=True):
            # float64 on both sides
            torch.testing.assert_close(ours.sum(), eager_logprob(model, prompt, response), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_head_multiplies_in_the_dtype_of_the_arithmetic(dtype):
    """float32 weights and a float32 residual stream, whose GEMM with the head must not be a float32 one on a GPU."""
    model, seen = language_model("llama"), []
    batch = pack(*sequences([(3, 4), (2, 5)]))

    def head_rows(hidden, head):
        seen.append((hidden.dtype, head.weight.dtype, torch.is_autocast_enabled("cpu")))
        return hidden

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        model(batch, head_rows)
        values = critic_from(model)(batch)
    assert seen == [(dtype, dtype, False)] and values.dtype == torch.float32


def test_a_head_has_its_bias_in_the_same_dtype():
    model = language_model("gpt_neox")
    model.hf.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(61))
    head = model.head().to(torch.bfloat16)
    assert head.weight.dtype == head.bias.dtype == torch.bfloat16 and head.options()["bias"] is head.bias
