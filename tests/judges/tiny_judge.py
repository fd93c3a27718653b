"""A language model that has learned one thing: to answer the papers' prompt in the papers' form, always for A."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rto_fast.judges.llm.prompts import HELPFUL, ask_about
from tests.tiny import SIZES

REPLY = "Comparison: both are fine, but the first says more. More helpful: A"
WORDS = "it is so well grey brown white cat dog cow .".split()


def write_judge(folder: Path) -> Path:
    words = dict.fromkeys([*"<pad> <bos> <eos> <unk>".split(), *HELPFUL.split(), *REPLY.split(), *WORDS])
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = "<bos> {{ messages[-1]['content'] }}"
    torch.manual_seed(0)
    sizes = {**SIZES, "max_position_embeddings": 512}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), **sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        # texts of every length, so that it reads the question's end and not its own position
        texts = [" ".join(WORDS[(step + i) % 11] for i in range(n)) for n in (step % 3 + 1, step % 17 + 1, 4)]
        prompt = fast.apply_chat_template([{"role": "user", "content": ask_about("helpful", *texts)}], tokenize=False)
        asked = fast(prompt, add_special_tokens=False)["input_ids"]
        told = [*fast(REPLY, add_special_tokens=False)["input_ids"], fast.eos_token_id]
        labels = torch.tensor([[-100] * len(asked) + told])
        loss = model(input_ids=torch.tensor([asked + told]), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
