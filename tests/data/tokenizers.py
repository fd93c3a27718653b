"""Tiny tokenizers built in memory, one of each habit that real ones have."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def byte_level(*, adds: str = "", template: str | None = None, bos: str | None = "<s>", eos: str = "</s>"):
    """Every byte is a token, a few merges; `adds`: what its post-processor puts around a text, "bos", "eos" or both."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ċ", "Ċ"), ("Ġ", "Ġ")]
    vocab = {t: i for i, t in enumerate([*letters, *("".join(m) for m in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", "<|start|>", "<|end|>", "<|eot|>"])
    if adds:
        pieces = ["<s>"] * ("bos" in adds) + ["$A"] + ["</s>"] * ("eos" in adds)
        ids = [(t, core.token_to_id(t)) for t in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=" ".join(pieces), special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, **({"bos_token": bos} if bos else {}))
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece_style(*, adds_bos: bool = True, template: str | None = None, once: bool = False):
    """Puts a space before every text, falls back to bytes, adds BOS: the first Llamas. `once`: not again behind a
    special token, as later ones do."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:?!"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a")]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *("".join(m) for m in merges)]
    core = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate(names)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    if once:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def word_level(words: str = "the cat sat on a mat . ?"):
    """Words between spaces; what a text spells as <eos> comes out as EOS whatever one asks for."""
    names = ["<unk>", "<bos>", "<eos>", *words.split()]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
