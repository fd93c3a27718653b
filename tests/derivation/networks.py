"""Log-probs, entropies, values and scores of answers: whole logits of right-padded texts, float64, no code of ours.

n tokens of an answer, H hidden.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Answer(Protocol):
    prompt: list[int]
    response: list[int]


class Said(NamedTuple):
    """Of one answer, (n,) each."""

    logprobs: Tensor
    entropy: Tensor


class Scalar(nn.Module):
    """A backbone and (w h + b - mean) / std of its hidden states: a critic, or a reward model."""

    def __init__(self, backbone: nn.Module, head: nn.Linear, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.backbone, self.head, self.mean, self.std = backbone, head, mean, std

    def values(self, answers: Sequence[Answer]) -> list[Tensor]:
        """(n,) of each answer: row t is the state in which its token t is chosen."""
        return [x[len(a.prompt) - 1 : -1] for x, a in zip(self._all(answers), answers, strict=True)]

    def scores(self, answers: Sequence[Answer]) -> Tensor:
        """(answers,): the number behind each answer's last token."""
        return torch.stack([x[-1] for x in self._all(answers)])

    def _all(self, answers: Sequence[Answer]) -> list[Tensor]:
        ids, attend, lengths = padded(answers)
        hidden = self.backbone(input_ids=ids, attention_mask=attend, use_cache=False).last_hidden_state
        x = (
            (hidden @ self.head.weight[0] if self.head.bias is None else self.head(hidden)[..., 0]) - self.mean
        ) / self.std
        return [row[:n] for row, n in zip(x, lengths, strict=True)]


def padded(answers: Sequence[Answer]) -> tuple[Tensor, Tensor, list[int]]:
    """Token ids and mask, both (answers, longest text), and the texts' lengths."""
    texts = [a.prompt + a.response for a in answers]
    lengths = [len(text) for text in texts]
    ids = torch.tensor([text + [0] * (max(lengths) - len(text)) for text in texts])
    attend = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    return ids, attend, lengths


def said(model: nn.Module, answers: Sequence[Answer]) -> list[Said]:
    """What a causal language model says of each answer's tokens."""
    ids, attend, _ = padded(answers)
    every = model(input_ids=ids, attention_mask=attend, use_cache=False).logits.log_softmax(-1)
    out = []
    for row, a in zip(every, answers, strict=True):
        rows = row[len(a.prompt) - 1 : len(a.prompt) + len(a.response) - 1]
        own = rows.gather(1, torch.tensor(a.response)[:, None])[:, 0]
        out.append(Said(own, -(rows.exp() * rows).sum(-1)))
    return out
