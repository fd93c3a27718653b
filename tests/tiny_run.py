"""A run that takes seconds: a tiny model, two dozen pairs, and a recipe for them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.tiny import config

WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *"what is the colour of a cat dog cow grey brown white it so well .".split(),
]
SETTINGS = """
[data]
template = "none"
max_prompt = 10
max_length = 24
held_out = 4
[sft]
batch_size = 8
[dpo]
batch_size = 8
[rto]
iterations = 2
rollouts = 8
minibatch = 4
[rto.reward]
clip = 0.1
[eval]
prompts = 4
samples = 2
"""


def write_model(folder: Path, words: list[str] = WORDS) -> Path:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config("llama_tied", len(words))).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_pairs(file: Path, count: int = 24) -> Path:
    animals = ["cat", "dog", "cow"]
    rows = [
        {
            "prompt": f"what is the colour of {'the ' * (i // 3 % 4)}{animals[i % 3]}",
            "chosen": f"it is {'so ' * (i % 5)}grey .",
            "rejected": f"well {'well ' * (i % 4)}brown",
        }
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file
