"""Group-relative advantages: no critic, the other answers to the same prompt are the baseline.

R response rows, S answers = P prompts x G answers each, in the order of the prompts.
"""

from torch import Tensor

from rto_fast.kernels.common.segments import sequence_sums

EPS = 1e-6
"""Added to the deviation: a group of equal answers has advantages of 0."""


def group_relative(rewards: Tensor, cu_seqlens: Tensor, group: int, per_token: bool) -> Tensor:
    """(R,) float32 advantages from rewards (R,) and cu_seqlens (S+1,).

    per_token False, the outcome rule: every row of answer k has

        A_t^k = (r^k - mean(r^1..r^G)) / (std(r^1..r^G) + eps),   r^k the sum of the answer's rewards

    per_token True, the process rule, for rewards that say something about every token: with the mean and the deviation
    of all token rewards of the group's answers,

        A_t = sum_{j >= t} (r_j - mean) / (std + eps)

    Shao et al. 2024, sections 4.1.2 and 4.1.3 (arXiv:2402.03300); std is the population's. Computed in float64.
    """
    lengths = cu_seqlens.diff().long()
    if not per_token:
        scores = sequence_sums(rewards.double(), cu_seqlens).view(-1, group)
        centred = scores - scores.mean(1, keepdim=True)
        relative = centred / (scores.std(1, correction=0, keepdim=True) + EPS)
        return relative.view(-1).repeat_interleave(lengths).float()
    x, rows = rewards.double(), cu_seqlens[::group]
    sizes = rows.diff().long()
    mean = sequence_sums(x, rows) / sizes.clamp_min(1)
    centred = x - mean.repeat_interleave(sizes)
    std = (sequence_sums(centred.square(), rows) / sizes.clamp_min(1)).sqrt()
    normalised = centred / (std.repeat_interleave(sizes) + EPS)
    # what follows and itself, within the answer: its sum less what came before
    before = normalised.cumsum(0) - normalised
    first = before[cu_seqlens[:-1].long().clamp_max(max(len(x) - 1, 0))] if len(x) else before
    total = sequence_sums(normalised, cu_seqlens)
    return ((total + first).repeat_interleave(lengths) - before).float()
