"""Small random models for tests."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3Config

from rto_fast.model import attention
from rto_fast.model.language import LanguageModel

SHARED = Path(__file__).parents[2] / "shared" / "data"
"""Real models and data, where a developer has them; never part of the project."""

SIZES = dict(
    hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128
)
IDS = dict(bos_token_id=1, eos_token_id=2)


def config(architecture: str, vocab_size: int = 61):
    sizes = dict(vocab_size=vocab_size, **SIZES, **IDS)
    return {
        "llama": lambda: LlamaConfig(**sizes, num_key_value_heads=2),
        "llama_tied": lambda: LlamaConfig(**sizes, num_key_value_heads=4, tie_word_embeddings=True),
        "gpt_neox": lambda: GPTNeoXConfig(**sizes),
        "qwen2": lambda: Qwen2Config(**sizes, num_key_value_heads=2),
        "qwen3": lambda: Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16),
        "gpt2": lambda: GPT2Config(vocab_size=vocab_size, n_embd=48, n_layer=2, n_head=4, n_positions=128, **IDS),
    }[architecture]()


ARCHITECTURES = ["llama", "llama_tied", "gpt_neox", "qwen2", "qwen3", "gpt2"]


def language_model(architecture: str = "llama", seed: int = 0, vocab_size: int = 61) -> LanguageModel:
    torch.manual_seed(seed)
    hf = AutoModelForCausalLM.from_config(config(architecture, vocab_size), attn_implementation=attention.register())
    # logits far from uniform, so that a leak between sequences shows
    torch.nn.init.normal_(hf.get_output_embeddings().weight, std=0.3)
    return LanguageModel(hf)


def sequences(
    lengths: list[tuple[int, int]], vocab_size: int = 61, seed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Random prompts and responses of the given (prompt, response) lengths."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, vocab_size, (n,), generator=generator).tolist()  # noqa: E731
    return [draw(p) for p, _ in lengths], [draw(r) for _, r in lengths]
