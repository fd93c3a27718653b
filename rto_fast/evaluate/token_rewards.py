"""The implicit reward of every token of an answer, and answers as heat maps."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from rto_fast.data.encode import EncodedDemonstration, EncodedPair
from rto_fast.evaluate.heatmap import Heatmap
from rto_fast.evaluate.policies import answer_logprobs
from rto_fast.model.language import LanguageModel
from rto_fast.rollout import Completion
from rto_fast.tasks import Oracle

_WINDOW = 8
"""Tokens before one that are decoded with it: spaces, and characters of several tokens, depend on the neighbours."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenRewards:
    """r_t = beta log pi_dpo(y_t|s_t) - beta log pi_ref(y_t|s_t), eq. 11 of Rafailov et al. 2024, arXiv:2404.12358."""

    dpo: LanguageModel
    reference: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    beta: float = 0.1
    microbatch_rows: int = 16384
    workspace_mb: int | None = None

    def rewards(self, answers: Sequence[Completion | EncodedDemonstration]) -> list[np.ndarray]:
        """Each answer's (tokens,) float64 rewards, its EOS included. Two forward passes, no gradients."""
        longest = max((len(a.prompt) + len(a.response) for a in answers), default=1)
        rows = max(self.microbatch_rows, longest)
        ours, theirs = (answer_logprobs(m, answers, rows, self.workspace_mb) for m in (self.dpo, self.reference))
        return [self.beta * (o - t) for o, t in zip(ours, theirs, strict=True)]

    def heatmap(
        self,
        title: str,
        answer: Completion | EncodedDemonstration,
        rewards: Sequence[float] | np.ndarray,
        signs: Sequence[int] | np.ndarray | None = None,
    ) -> Heatmap:
        """The answer as a map: tokens that make a character together are one, with the sum of their rewards."""
        prompt = _decoded(self.tokenizer, answer.prompt, skip_special_tokens=True)
        texts, ends = whole_characters(pieces(self.tokenizer, answer.response))
        spans = [slice(a, b) for a, b in pairwise([0, *ends])]
        sums = [math.fsum(rewards[span]) for span in spans]
        # one wrong part makes it wrong
        known = None if signs is None else [int(min(signs[span], key=lambda s: (s >= 0, -s))) for span in spans]
        return Heatmap(title, prompt, texts, sums, known)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that they read as the whole text when put together: ["the", " dog", "s"].

    A token that is only the beginning of a character is "\\ufffd", or its byte where its name says which.
    """
    out = []
    for i, token in enumerate(ids):
        window = ids[max(0, i - _WINDOW) : i]
        # what came before may end in the first bytes of a character that this token ends
        before, after = _decoded(tokenizer, window).rstrip("\ufffd"), _decoded(tokenizer, [*window, token])
        piece = after[len(before) :] if after.startswith(before) else _decoded(tokenizer, [token])
        name = str(tokenizer.convert_ids_to_tokens(token)) if piece.endswith("\ufffd") else ""
        out.append(name if _BYTE.fullmatch(name) else piece)
    return out


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    return str(text)


def whole_characters(parts: Sequence[str]) -> tuple[list[str], list[int]]:
    """What `pieces` gives, with the tokens of each character joined: texts, and the token behind each text's last one.

    Beginnings of characters that nothing completes stay as they are.
    """
    texts: list[str] = []
    ends: list[int] = []
    waiting: list[str] = []
    for i, part in enumerate(parts, 1):
        waiting.append(part)
        if i < len(parts) and _is_beginning(part):
            continue
        if _is_beginning(part) or part.startswith("\ufffd"):  # the characters before this one were never ended
            texts += waiting
            ends += range(i - len(waiting) + 1, i + 1)
        else:
            texts.append("".join(w.rstrip("\ufffd") for w in waiting[:-1] if not _BYTE.fullmatch(w)) + part)
            ends.append(i)
        waiting = []
    return texts, ends


def _is_beginning(part: str) -> bool:
    return part.endswith("\ufffd") or _BYTE.fullmatch(part) is not None


def pair_heatmaps(
    scorer: TokenRewards, pairs: Sequence[EncodedPair], *, names: Sequence[str], oracle: Oracle | None = None
) -> list[Heatmap]:
    """Two maps per pair, "<name>, chosen" and "<name>, rejected", with the oracle's signs where there is an oracle."""
    titles = [f"{name}, {kind}" for name in names for kind in ("chosen", "rejected")]
    answers = [EncodedDemonstration(p.prompt, response) for p in pairs for response in (p.chosen, p.rejected)]
    signs = [oracle.answer_signs(a.prompt, a.response) if oracle else None for a in answers]
    scored = scorer.rewards(answers)
    return [scorer.heatmap(*x) for x in zip(titles, answers, scored, signs, strict=True)]
