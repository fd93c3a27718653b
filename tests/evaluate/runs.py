"""A run's folder without the training: untrained policies, held-out prompts, a reward model of another language."""

import json
from pathlib import Path

import tomli_w
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tests.tiny import IDS, SIZES
from tests.tiny_run import write_model

ANIMALS = "cat dog cow".split()


def write_run(folder: Path, stages: tuple[str, ...] = ("sft", "dpo", "rto")) -> Path:
    """config.toml, 24 held-out prompts, and stages whose weights are noise around the same start."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [{"prompt": f"what is the colour of {'the ' * (i // 3)}{ANIMALS[i % 3]}"} for i in range(24)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    data = {"path": str(folder / "pairs.jsonl"), "evaluation": str(folder / "eval.jsonl"), "template": "none"}
    data |= {"max_prompt": 16, "max_length": 24, "held_out": 0}
    config = {"recipe": "tiny", "stages": list(stages), "dpo": {"beta": 0.2}, "data": data}
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    for seed, stage in enumerate(stages):
        write_stage(folder / stage, seed)
    return folder


def write_stage(folder: Path, seed: int) -> Path:
    write_model(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "stage.json").write_text("{}")
    return folder


def write_reward_model(folder: Path, tokenizer=None) -> Path:
    """A Llama with a scalar head and, unless one is given, byte-level BPE as its tokenizer."""
    if tokenizer is None:
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
        trainer = BpeTrainer(
            vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
        )
        bpe.train_from_iterator(["what is the colour of the cat it is grey so well"], trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(7)
    config = LlamaConfig(vocab_size=len(tokenizer), **SIZES, **IDS, pad_token_id=0, num_labels=1)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
