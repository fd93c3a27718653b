"""Token ids made visible: what a person reads in a terminal when checking what trains and what does not."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

_DIM, _GREEN, _BOLD, _RED, _OFF = "\033[2m", "\033[32m", "\033[1m", "\033[31m", "\033[0m"

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
"""Character -> byte of byte-level vocabularies (GPT-2's)."""


@dataclass(frozen=True)
class TokenPrinter:
    """Writes token ids as lines "weight | token | token ...", in colour only where asked.

    A space is written as an underline sign, everything unprintable as an escape (data must not drive the terminal).
    """

    tokenizer: PreTrainedTokenizerBase
    eos_id: int
    colour: bool
    ids: bool
    whole: bool
    unicode: bool = True

    def lines(self, tokens: Sequence[int], weight: int, *, first: bool) -> list[str]:
        """`first`: whether these tokens open the sequence, so that a BOS is one (it may have the id of EOS)."""
        names = [self._name(t, first and i == 0, i == len(tokens) - 1 and weight > 0) for i, t in enumerate(tokens)]
        if self.whole or len(names) <= 200:
            lines = self._wrap(names)
        else:
            lines = [*self._wrap(names[:100]), f" ... {len(names) - 160} more ...", *self._wrap(names[-60:])]
        return [self._paint(f"    {weight} |{line}", weight) for line in lines]

    def _wrap(self, names: list[str]) -> list[str]:
        width = max(40, min(160, shutil.get_terminal_size((120, 20)).columns))
        lines, line = [], ""
        for name in names:
            if line and len(line) + len(name) + 9 > width:
                lines.append(line)
                line = ""
            line += name + "|"
        return [*lines, line]

    def _name(self, token: int, at_start: bool, at_end: bool) -> str:
        if at_start and token == self.tokenizer.bos_token_id:
            text = f"[BOS {self.tokenizer.bos_token}]"
        elif token == self.eos_id and at_end:
            text = f"[EOS {self.tokenizer.convert_ids_to_tokens(token)}]"
        elif token in self.tokenizer.all_special_ids:
            text = f"[{self.tokenizer.convert_ids_to_tokens(token)}]"
        else:
            text = self._escape(self._text(token))
        return f"{text} {token}" if self.ids else text

    def _text(self, token: int) -> str:
        name = str(self.tokenizer.convert_ids_to_tokens(token))
        if name.startswith("<0x") and name.endswith(">"):
            byte = int(name[3:-1], 16)
            return chr(byte) if byte < 128 else name
        if "▁" in name:
            return name.replace("▁", " ")
        text = str(self.tokenizer.decode([token]))
        if "\ufffd" in text and all(c in _BYTES for c in name):
            # part of a character, the rest of which is in the neighbouring tokens
            return "".join(f"\\x{_BYTES[c]:02x}" for c in name)
        return text

    def _escape(self, text: str) -> str:
        out = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.replace("|", "\\|"))
        return out.replace(" ", "▁" if self.unicode else "_") or "''"

    def _paint(self, line: str, weight: int) -> str:
        if not self.colour:
            return line
        line = line.replace("[BOS", f"{_BOLD}[BOS").replace("[EOS", f"{_BOLD}{_RED}[EOS")
        return f"{_GREEN if weight else _DIM}{line}{_OFF}"


def table(lengths: dict[str, dict[str, int]]) -> list[str]:
    """Length quantiles, one row per kind of token list."""
    heads = list(next(iter(lengths.values())))
    out = ["  " + f"{'tokens':<10}" + "".join(f"{h:>9}" for h in heads)]
    return out + [f"  {name:<10}" + "".join(f"{q[h]:>9}" for h in heads) for name, q in lengths.items()]
