"""A tokenizer from a model folder, from a folder that holds nothing but tokenizer files, or from the hub."""

from pathlib import Path

from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rto_fast.data.trial import check_ids, try_tokenizer
from rto_fast.files.foreign import check_config, check_files, opening, read_object

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_JSON_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "tokenizer.json",  # after what is only looked at
)
_USUAL_EOS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")


def load_tokenizer(
    path: str | Path, field: str = "model.path", trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of `path`: a folder, or a hub id.

    A folder with tokenizer.json alone, or with GPT-2's vocab.json and merges.txt alone, names no special tokens: there
    the usual end of text that its vocabulary marks as special is EOS, and BOS too where it is "<|endoftext|>".
    Raises ValueError, one line that begins with `field`, when there is no tokenizer or a broken one.
    """
    folder = Path(path).expanduser()
    text = str(path)
    if "\0" in text:
        raise ValueError(f"{field}: {text!r} holds a NUL, which no path does")
    if not folder.is_dir() and (folder.exists() or text.startswith(("/", "./", "../", "~")) or text.count("/") > 1):
        raise ValueError(f"{field}: there is no folder {text!r}")
    if folder.is_dir() and not any((folder / name).exists() for name in _FILES):
        raise ValueError(f"{field}: {text!r} holds no tokenizer; wanted one of {', '.join(_FILES)} in it")
    if folder.is_dir():
        check_files(folder, field)
    if (folder / "config.json").exists():  # which transformers reads to find the tokenizer's class
        check_config(folder, field, trust_remote_code)
    broken = f"{field}: no tokenizer can be loaded"
    for name in _JSON_FILES:
        if (folder / name).exists():
            content = read_object(folder / name, broken)
            where = f"{broken}: {str(folder / name)!r}"
            check_ids(folder / name, content, where)
            if name == "tokenizer.json":
                try_tokenizer(folder / name, content, where)
    with opening(field, text, "tokenizer"):
        tokenizer = _load(folder, text, trust_remote_code)
        # what a library does lazily would fail later, and without the file's name
        tokenizer(["a b", ""], add_special_tokens=False)
        tokenizer.decode([0])
    return tokenizer


def _load(folder: Path, text: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        if (folder / "tokenizer.json").exists():
            return _with_usual_specials(folder / "tokenizer.json")
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return GPT2Tokenizer.from_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder if folder.is_dir() else text, trust_remote_code=trust_remote_code)


def _with_usual_specials(file: Path) -> PreTrainedTokenizerBase:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    marked = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    if eos := next((t for t in _USUAL_EOS if t in marked), None):
        tokenizer.eos_token = eos
        tokenizer.bos_token = eos if eos == "<|endoftext|>" else "<s>" if "<s>" in marked else None
    if "<unk>" in marked:
        tokenizer.unk_token = "<unk>"
    return tokenizer
