"""A base in 4 bits: what it computes, what it holds, and what adapters on it learn. bitsandbytes has CPU code too."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from rto_fast.model import attention
from rto_fast.model.adapter_files import lora
from rto_fast.model.language import LanguageModel
from rto_fast.model.logprobs import response_logprobs
from rto_fast.model.precision import cast_matrices
from rto_fast.model.quantize import BLOCK, BYTES, layer_maps, quantize
from rto_fast.packing import pack
from rto_fast.pipeline import footprint
from rto_fast.pipeline.footprint import Arithmetic
from rto_fast.pipeline.sizes import sizes_of
from tests.tiny import config

pytest.importorskip("bitsandbytes")
BATCH = pack([[1, 5, 6, 7], [1, 5, 6]], [[10, 11, 2], [12, 2]])


def language_model(architecture: str, **sizes) -> LanguageModel:
    said = config(architecture).to_dict() | {"hidden_size": 64, "intermediate_size": 128, **sizes}
    made = type(config(architecture)).from_dict({key: x for key, x in said.items() if key != "head_dim"})
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(made, attn_implementation=attention.register())
    torch.nn.init.normal_(hf.get_output_embeddings().weight, std=0.3)
    return LanguageModel(hf)


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """What the paper says, section 3: of each number the nearest quantile times its block's largest, in float32."""
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    above, below = (quantile(torch.linspace(0.9677083, 0.5, n)[:-1]) for n in (9, 8))
    levels = torch.cat([-below, torch.zeros(1), above.flip(0)]) / above.max()
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = ((blocks / largest.clamp(min=1e-30))[..., None] - levels).abs().argmin(-1)
    return (levels[nearest] * largest).flatten()[: len(flat)].view_as(weight)


def logprobs(model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return response_logprobs(model, BATCH, 16)


def quantized(architecture: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    model = language_model(architecture)
    if dtype != torch.float32:
        cast_matrices(model.hf.requires_grad_(False), dtype)
    quantize(model.hf.requires_grad_(False), "adapter.quantize")
    return model.to("cpu")


@pytest.mark.parametrize("architecture", ["llama", "llama_tied", "gpt_neox", "qwen2"])
def test_it_computes_what_the_paper_says(architecture):
    wanted = language_model(architecture)
    with torch.no_grad():
        for _, module in layer_maps(wanted.hf):
            module.weight.copy_(nf4(module.weight))
    # the blocks' largest numbers are kept in 8 bits
    torch.testing.assert_close(logprobs(quantized(architecture)), logprobs(wanted), rtol=0, atol=2e-2)
    assert (logprobs(language_model(architecture)) - logprobs(wanted)).abs().max() > 2e-2


def test_head_embeddings_and_norms_stay_as_they_were():
    before, after = language_model("llama"), quantized("llama")
    maps = {f"{name}.weight" for name, _ in layer_maps(after.hf)}
    assert len(maps) == 14
    for name, weight in after.hf.named_parameters():
        if name in maps:
            assert weight.dtype == torch.uint8
        else:
            assert torch.equal(weight, before.hf.get_parameter(name))


def test_an_adapter_learns_and_the_base_off_is_as_before():
    model = quantized("llama")
    before = logprobs(model)
    base = model.share()
    base.add("policy", lora(4, 8.0, "all-linear"))
    policy = LanguageModel(base.hf, base, "policy")
    assert torch.equal(logprobs(policy), before)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (-response_logprobs(policy, BATCH, 16).mean()).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in policy.parameters())
    assert (logprobs(policy) > before).all() and torch.equal(logprobs(model), before)


def test_gradients_are_those_of_the_numbers_that_it_stands_for():
    from bitsandbytes.functional import dequantize_4bit

    packed, plain = quantized("llama"), language_model("llama")
    with torch.no_grad():
        for (_, of), (_, into) in zip(layer_maps(packed.hf), layer_maps(plain.hf), strict=True):
            into.weight.copy_(dequantize_4bit(of.weight.data, of.weight.quant_state))
    found = []
    for model in (packed, plain):
        base = model.share()
        base.add("policy", lora(4, 8.0, "all-linear"), seed=3)
        with torch.no_grad():
            for i, parameter in enumerate(base.parameters("policy").values()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
        response_logprobs(LanguageModel(base.hf, base, "policy"), BATCH, 16).sum().backward()
        found.append([p.grad for p in base.parameters("policy").values()])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_under_autocast_its_maps_answer_in_the_arithmetics_type():
    """Attention's kernels want half precision, and an adapter's output is added to what the map says."""
    model, seen = quantized("llama", torch.bfloat16), []
    for _, module in layer_maps(model.hf):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logprobs(model)
    assert seen == [torch.bfloat16] * 14


def test_the_bytes_that_it_holds_are_those_that_are_reckoned():
    model = language_model("llama")
    sizes = sizes_of(model.hf)
    model = quantized("llama")
    held = 0
    for _, module in layer_maps(model.hf):
        state = module.weight.quant_state
        held += module.weight.numel() + state.absmax.numel() + 4 * state.state2.absmax.numel()
    # of a tiny map's last block not all is used
    assert held == pytest.approx(BYTES * sizes.matrices, rel=0.05)
    how = Arithmetic(half=True, cpu=False)
    assert footprint.frozen(sizes, how) - footprint.frozen(sizes, how, quantized=True) == pytest.approx(
        (2 - BYTES) * sizes.matrices, abs=1
    )


def test_maps_that_are_no_linear_layers_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="^adapter.quantize: the maps of a GPT2LMHeadModel are no nn.Linear, which"):
        quantize(language_model("gpt2").hf, "adapter.quantize")
    with pytest.raises(ValueError, match="^adapter.quantize: model.layers.0.mlp.down_proj is 96 wide, and nf4 wants"):
        quantize(language_model("llama", intermediate_size=96).hf, "adapter.quantize")
