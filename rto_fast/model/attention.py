"""Causal attention over packed rows, registered with transformers under the name "rto_packed".

A packed forward passes cu_seq_lens_q (S+1,) int32 and max_length_q to the model; every sequence attends to itself only:

    o_t = sum_{s <= t, same sequence} softmax(q_t . k_s * scale)_s v_s

CUDA, bf16 / fp16: flash-attn's varlen kernel where the package is installed, else torch's own varlen_attn. Elsewhere
(CPU, float32): one call of dense attention for each run of neighbouring sequences of equal length, which is exact and
costs sum(len^2), not (sum len)^2. A model's sliding windows (s > t - window) and soft-caps of the scores are kept.

Without cu_seq_lens_q it is plain causal attention, as prefill needs it, or attention by a mask, as decoding does on a
CPU. On CUDA a step of decoding passes a RaggedStep and no mask: one query of each row attends to as much of the cache
as its row has filled, by decode_attention.

N heads, T rows, D head size.
"""

import importlib.util
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from rto_fast.kernels.decode_attention import decode_attention
from rto_fast.model.dense_attention import causal, masked

NAME = "rto_packed"


@dataclass(slots=True)
class RaggedStep:
    """What the attention of one decoding step has to know of a cache whose rows have lengths of their own."""

    lengths: Tensor
    """(B,) positions that each row has filled, the newest included; on the device"""
    windows: tuple[int | None, ...]
    """The sliding window of each layer; None attends to the whole row"""
    served: int = 0
    """Layers that attended by it: whoever passed it sees whether the network handed it down"""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, N, T, D)
    key: Tensor,  # (1, N_kv, T, D)
    value: Tensor,  # (1, N_kv, T, D)
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    ragged_step: RaggedStep | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """The function transformers calls; returns ((1, T, N, D), None).

    Raises ValueError for what would change the result and is not computed here: attention sinks.
    """
    if s_aux is not None:
        raise ValueError(
            f"rto_packed attention: attention sinks ({type(module).__name__}) are not supported; choose another model"
        )
    if torch.is_autocast_enabled(query.device.type):
        # rotary embeddings leave queries and keys in float32, values are in the dtype of the arithmetic
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    if ragged_step is not None:
        assert query.shape[2] == 1, "a step has one query per row"
        ragged_step.served += 1
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        layer = module.layer_idx
        assert isinstance(layer, int)  # by which it wrote to the cache
        window = ragged_step.windows[layer]
        out = decode_attention(query[:, :, 0], key, value, ragged_step.lengths, scale, window=window, softcap=softcap)
        return out[:, None], None
    if cu_seq_lens_q is None:
        if attention_mask is None and 1 < query.shape[2] < key.shape[2]:
            raise ValueError("rto_packed attention: several queries on a longer cache need an attention mask")
        if attention_mask is None and query.shape[2] > 1:
            out = causal(query, key, value, scaling, sliding_window, softcap)
        else:  # the mask knows of windows
            out = masked(query, key, value, attention_mask, scaling, softcap)
        return out.transpose(1, 2), None
    if dropout:
        raise ValueError("rto_packed attention: dropout must be 0; log-probs of a policy must not be random")
    assert max_length_q is not None  # beside cu_seq_lens_q
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        out = _varlen_cuda(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window, softcap)
    else:
        out = _runs_of_equal_length(query, key, value, cu_seq_lens_q, scaling, sliding_window, softcap)
    return out[None], None


def _runs_of_equal_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    bounds = cu_seqlens.tolist()
    lengths = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    runs = [(length, len(list(same))) for length, same in groupby(lengths) if length]
    sizes = [length * count for length, count in runs]
    outputs = []
    # split, not slices: the backward of a split is one concatenation, that of K slices is K tensors of full size
    for (length, count), *qkv in zip(
        runs, query[0].split(sizes, 1), key[0].split(sizes, 1), value[0].split(sizes, 1), strict=True
    ):
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in qkv)  # (count, N, length, D)
        o = causal(q, k, v, scale, window, softcap)
        outputs.append(o.transpose(1, 2).reshape(count * length, o.shape[1], o.shape[3]))
    return torch.cat(outputs)


def _varlen_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    # how many keys to the left are seen, the query's own not counted
    left = -1 if window is None else window - 1
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (T, N, D)
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            q,
            k,
            v,
            cu_seqlens,
            cu_seqlens,
            max_seqlen,
            max_seqlen,
            softmax_scale=scale,
            causal=True,
            window_size=(left, 0),
            softcap=softcap or 0.0,
            # else its backward adds up dq in whatever order blocks end, and a resumed run would be another
            deterministic=True,
        )
    from torch.nn.attention.varlen import varlen_attn

    if softcap is not None:
        raise ValueError(
            "model.path: its attention is soft-capped, which on CUDA needs flash-attn; pip install flash-attn, or use "
            "--model.dtype float32"
        )
    # torch 2.11's varlen_attn has no grouped-query attention: repeat the key and value heads
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scale, window_size=(left, 0))
    assert isinstance(out, Tensor)  # nothing beside it was asked for
    return out


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """No mask for packed rows and unpadded batches; sdpa's mask for padded ones (decoding)."""
    if attention_mask is None:
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, attention_mask=attention_mask, **kwargs)


def register() -> str:
    """Make "rto_packed" known to transformers (safe to call again) and return that name."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """Which implementation serves, for the start-up line."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return "flash-attn varlen" if importlib.util.find_spec("flash_attn") else "torch varlen_attn"
    return "exact per-length sdpa"
