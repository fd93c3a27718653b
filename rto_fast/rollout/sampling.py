"""From next-token logits and one uniform number per row to a token and its log-prob.

B rows being decoded, V vocabulary, K candidates kept by top-k / top-p.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from rto_fast.config.checks import check

_BLOCK = 256
"""Tokens per block of the two-level search: V/256 block sums are cheap to accumulate, V single terms are not."""
_BELOW_ONE = 1 - 2**-52


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn: softmax(logits / temperature), cut to top_k tokens, then to the top_p nucleus."""

    temperature: float = 1.0
    """0 = greedy; reported log-probs are then those of temperature 1, since a point mass has nothing to report."""
    top_k: int | None = None
    """Keep the k most probable tokens (exactly k: ties at the border are cut); None = all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens with at least this mass (of what top_k left); 1 = all."""
    max_new_tokens: int = 128
    """Longest answer in tokens, EOS included."""

    def __post_init__(self) -> None:
        temperature, top_k, top_p, new = self.temperature, self.top_k, self.top_p, self.max_new_tokens
        check(0 <= temperature < inf, "Sampling.temperature", ">= 0 and finite (0 = greedy)", temperature)
        check(top_k is None or top_k >= 1, "Sampling.top_k", ">= 1, or None to keep all tokens", top_k)
        check(0 < top_p <= 1, "Sampling.top_p", "in (0, 1] (1 keeps all tokens)", top_p)
        check(new >= 1, "Sampling.max_new_tokens", ">= 1", new)


def uniform_streams(seed: int, num: int, length: int) -> Tensor:
    """(num, length) float64 in [0, 1): row i is a random stream of its own, made from `seed` and i alone.

    Neither `num` nor `length` changes a number that both calls draw, so neither more prompts nor longer answers
    change the answers that were drawn already.
    """
    seeds = torch.randint(2**62, (num,), generator=torch.Generator().manual_seed(seed)).tolist()
    out, generator = torch.empty(num, length, dtype=torch.float64), torch.Generator()
    for row, row_seed in zip(out, seeds, strict=True):
        torch.rand(length, dtype=torch.float64, generator=generator.manual_seed(row_seed), out=row)
    return out


def draw(logits: Tensor, uniforms: Tensor | None, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the row's uniform number.

    logits (B, V) of any float dtype, uniforms (B,) float64 in [0, 1) (not read when greedy) -> tokens (B,) int64,
    logprobs (B,) float32 under the distribution that was sampled from. A row whose logits are not finite gives
    token -1. Row b depends on row b of the inputs alone. Two or three passes over the logits; no device sync,
    except one per call when top_p < 1 without top_k (is the nucleus inside the candidates?).
    """
    z = logits.float()
    if sampling.temperature == 0:
        logprobs, tokens = z.log_softmax(-1).max(-1)
    else:
        assert uniforms is not None
        if sampling.temperature != 1:
            z = z / sampling.temperature
        if sampling.top_k is None and sampling.top_p == 1:
            tokens, logprobs = _draw_from_all(z, uniforms[:, None])
        else:
            tokens, logprobs = _draw_from_top(z, uniforms[:, None], sampling)
    return tokens.where(logprobs.isfinite(), -1), logprobs


def _draw_from_all(z: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Whole vocabulary: find the block of tokens first, then the token in it."""
    vocab = z.shape[1]
    probs = z.softmax(-1)
    whole = vocab - vocab % _BLOCK
    sums = probs[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1)
    if whole < vocab:
        sums = torch.cat((sums, probs[:, whole:].sum(-1, keepdim=True)), 1)
    sums = sums.double()
    cumulative = sums.cumsum(-1)
    target = u.clamp(max=_BELOW_ONE) * cumulative[:, -1:]
    # a target below the total can only meet a block of positive mass; the clamp is for rows of nan
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=sums.shape[1] - 1)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=z.device)
    inside = probs.gather(1, tokens.clamp(max=vocab - 1)).double()
    within = inside.masked_fill_(tokens >= vocab, 0).cumsum(-1)
    # a block's float32 sum and its float64 accumulation differ in the last bits: rescale one to the other
    mass = sums.gather(1, block)
    rest = (target - (cumulative.gather(1, block) - mass)) / mass
    offset = torch.searchsorted(within, rest.clamp(0, _BELOW_ONE) * within[:, -1:], right=True).clamp_(max=_BLOCK - 1)
    logprobs = inside.gather(1, offset).log() - cumulative[:, -1:].log()
    return tokens.gather(1, offset).squeeze(1), logprobs.squeeze(1).float()


def _draw_from_top(z: Tensor, u: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """top-k, then the nucleus of what is left; candidates are in order of falling probability."""
    vocab = z.shape[1]
    if sampling.top_k is not None:
        values, indices = z.topk(min(sampling.top_k, vocab))
        cumulative = (values - values[:, :1]).double().exp().cumsum(-1)
        total = cumulative[:, -1:]
    else:
        peak = z.amax(-1, keepdim=True)
        total = (z - peak).exp_().sum(-1, keepdim=True, dtype=torch.float64)
        num_candidates = min(_BLOCK, vocab)
        while True:
            # a nucleus is mostly a few hundred tokens: sorting the whole vocabulary would cost more than the model
            values, indices = z.topk(num_candidates)
            cumulative = (values - peak).double().exp().cumsum(-1)
            if num_candidates == vocab or not bool((cumulative[:, -1:] < sampling.top_p * total).any()):
                break
            num_candidates = min(8 * num_candidates, vocab)
    # the token that crosses top_p belongs to the nucleus
    last = torch.searchsorted(cumulative, sampling.top_p * total).clamp_(max=values.shape[1] - 1)
    total = cumulative.gather(1, last)
    target = u.clamp(max=_BELOW_ONE) * total
    choice = torch.searchsorted(cumulative, target, right=True).clamp_(max=values.shape[1] - 1)
    logprobs = (values.gather(1, choice) - values[:, :1]).double() - total.log()
    return indices.gather(1, choice).squeeze(1), logprobs.squeeze(1).float()
