"""The definition of decode_attention in torch.

B rows, N heads, N_kv key/value heads of G = N / N_kv queries each, C positions, D head size.
"""

import torch
from torch import Tensor

from rto_fast.kernels.common.workspace import upcast


def decode_attention_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The arguments of decode_attention, unchecked; any float dtype on any device, without waiting for the device.

    Row by row, so that no library picks its product by the number of rows, and their neighbours change nothing.
    """
    out = query.new_empty(*query.shape[:2], values.shape[3])
    positions = torch.arange(keys.shape[2], device=query.device)
    for b, length in enumerate(lengths.long().unbind()):
        seen = positions < length
        if window is not None:
            seen &= positions >= length - window
        q, k, v = upcast(query[b]).unflatten(0, (keys.shape[1], -1)), upcast(keys[b]), upcast(values[b])
        scores = scale * q @ k.transpose(1, 2)  # (N_kv, G, C)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        # 0 * NaN is NaN: neither the weights of a row that holds nothing nor what lies beyond a row may enter
        weights = weights.masked_fill(length == 0, 0.0)
        out[b] = (weights @ v.masked_fill(~seen[:, None], 0.0)).flatten(0, 1)
    return out
