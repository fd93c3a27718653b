"""A tokenizer from a model folder, from a folder that holds nothing but tokenizer files, or from the hub."""

import json
from pathlib import Path

from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_USUAL_EOS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")


def load_tokenizer(path: str | Path):
    """The tokenizer of `path`: a folder, or a hub id.

    A folder with tokenizer.json alone, or with GPT-2's vocab.json and merges.txt alone, names no special tokens: there
    the usual end of text that its vocabulary marks as special is EOS, and BOS too where it is "<|endoftext|>".
    Raises ValueError, one line, when there is no tokenizer.
    """
    folder = Path(path).expanduser()
    text = str(path)
    if not folder.is_dir() and (folder.exists() or text.startswith(("/", "./", "../", "~")) or text.count("/") > 1):
        raise ValueError(f"model.path: there is no folder {text!r}")
    if folder.is_dir() and not any((folder / name).exists() for name in _FILES):
        raise ValueError(f"model.path: {text!r} holds no tokenizer; wanted one of {', '.join(_FILES)} in it")
    try:
        if (folder / "tokenizer.json").exists():
            _check_file(folder / "tokenizer.json")
        if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
            if (folder / "tokenizer.json").exists():
                return _with_usual_specials(folder / "tokenizer.json")
            if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
                return GPT2TokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder if folder.is_dir() else text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model.path: no tokenizer can be loaded from {text!r} ({first[:300]})") from None


def _check_file(file: Path) -> None:
    # the tokenizers library raises a bare Exception for these
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{file.name} describes no model")


def _with_usual_specials(file: Path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    marked = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    if eos := next((t for t in _USUAL_EOS if t in marked), None):
        tokenizer.eos_token = eos
        tokenizer.bos_token = eos if eos == "<|endoftext|>" else "<s>" if "<s>" in marked else None
    if "<unk>" in marked:
        tokenizer.unk_token = "<unk>"
    return tokenizer
