"""What happens to a chunk of logits between ppo_head's GEMMs, in torch: the reference backend's twin of kernel.py."""

import torch
from torch import Tensor

from rto_fast.kernels.common.contract import Transform
from rto_fast.kernels.common.rows import d_logits_, finish, fold, new_state, row_scale
from rto_fast.kernels.common.workspace import CPU_TILE_BYTES

from .silent import chunk_gradients_, gradients
from .surrogate import ChunkRows, Decisions, Surrogate, surrogate

__all__ = ["chunk_gradients_", "gradients", "ppo_rows_"]


def ppo_rows_(
    z: Tensor,  # [c, V] raw logits; holds d loss / d raw logits, up to the row scale, afterwards
    bias: Tensor | None,
    transform: Transform,
    rows: Decisions,
    s: Surrogate,
    entropy: bool,
    gradient: bool,
    dtype: torch.dtype,
) -> ChunkRows:
    """d logits lie over z's own storage."""
    c, vocab = z.shape
    # without an entropy or a slope the statistics leave exp(z - m) behind, which is the gradient but for a row factor
    plain = not entropy and transform[1] is None
    state = new_state(c, entropy, z.device, z.dtype)
    # whole rows that stay in the cache through every pass
    block = max(1, CPU_TILE_BYTES // z.element_size() // vocab)
    for t in range(0, c, block):
        zb = z[t : t + block]
        part = tuple(x[t : t + block] for x in state)
        fold(zb if plain or not gradient else zb.clone(), bias, transform, rows.target[t : t + block], 0, part)
    stats = finish(state)
    logprobs, _, log_s, entropies = stats
    loss, d_logprob, d_entropy = surrogate(logprobs, entropies, rows, s)
    if not gradient:
        return ChunkRows(loss, logprobs, entropies, z)
    silent = d_logprob == 0.0 if d_entropy is None else None
    if plain:
        z.scatter_(1, rows.target[:, None], (log_s.exp() * torch.expm1(logprobs))[:, None])
        return ChunkRows(loss, logprobs, None, z, row_scale(log_s, d_logprob, None, transform), silent)
    for t in range(0, c, block):
        chunk = slice(t, t + block)
        slopes = (d_logprob[chunk], None if d_entropy is None else d_entropy[chunk])
        d_logits_(z[chunk], bias, transform, rows.target[chunk], 0, dtype, stats.rows(t, t + block), *slopes)
    return ChunkRows(loss, logprobs, entropies, z, row_scale(log_s, d_logprob, d_entropy, transform), silent)
