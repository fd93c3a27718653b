"""Causal attention over sequences of one length, windows and soft-caps included.

B sequences, N heads (N_kv of keys and values), T rows, D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from rto_fast.kernels.common.workspace import upcast


def causal(
    query: Tensor,  # (B, N, T, D)
    key: Tensor,  # (B, N_kv, T, D)
    value: Tensor,  # (B, N_kv, T, D)
    scale: float | None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """(B, N, T, D) o_t = sum_s softmax(cap(q_t . k_s * scale))_s v_s over t - window < s <= t.

    cap(x) = softcap * tanh(x / softcap). A soft-cap costs the memory of all scores, which torch's attention spares.
    """
    length = query.shape[2]
    if window is not None and window >= length:
        window = None
    if window is None and softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=length > 1, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    places = torch.arange(length, device=query.device)
    distance = places[:, None] - places
    seen = (distance >= 0) & (distance < (window or length))
    return masked(query, key, value, seen, scale, softcap)


def masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None, softcap: float | None = None
) -> Tensor:
    """As `causal`, over what a mask says: of bool, True where a key is seen, else added to the scores; None: all."""
    if softcap is None:
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        q = upcast(query).unflatten(1, (key.shape[1], -1))  # (B, N_kv, G, T, D)
        k, v = (upcast(x)[:, :, None] for x in (key, value))
        scores = softcap * torch.tanh(scale * q @ k.transpose(-1, -2) / softcap)
        if mask is not None:
            mask = mask if mask.ndim < 4 else mask[:, :, None]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(-1) @ v).flatten(1, 2).to(query.dtype)
