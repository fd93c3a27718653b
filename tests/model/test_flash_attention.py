"""What flash-attn is asked for, by a double in its place that takes its arguments and computes by torch's attention."""

import importlib.machinery
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from rto_fast.model import attention


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """The options of every call."""
    calls: list[dict] = []

    def flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal, **more):
        calls.append(more)
        assert causal and torch.equal(cu_q, cu_k) and max_q == max_k == int(cu_q.diff().max())
        bounds, parts = cu_q.tolist(), []
        for a, b in zip(bounds, bounds[1:], strict=False):
            one = (x[a:b].transpose(0, 1) for x in (q, k, v))  # (N, n, D)
            o = F.scaled_dot_product_attention(*one, is_causal=True, scale=softmax_scale, enable_gqa=True)
            parts.append(o.transpose(0, 1))
        return torch.cat(parts)

    double = ModuleType("flash_attn")
    double.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    double.flash_attn_varlen_func = flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", double)
    return calls


def test_its_backward_adds_in_one_order(asked):
    """A resumed run is the same run only where the same rows give the same gradient."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 9, 8, generator=generator)
    key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(2))
    cu_seqlens = torch.tensor([0, 3, 9], dtype=torch.int32)
    got = attention._varlen_cuda(query, key, value, cu_seqlens, 6, 0.3, None, None)
    wanted, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, 0.3, cu_seq_lens_q=cu_seqlens, max_length_q=6
    )
    torch.testing.assert_close(got[None], wanted)
    assert asked == [{"deterministic": True, "window_size": (-1, 0), "softcap": 0.0}]
    attention._varlen_cuda(query, key, value, cu_seqlens, 6, 0.3, 4, 30.0)
    # how many keys to the left beside the query's own
    assert asked[1] == {"deterministic": True, "window_size": (3, 0), "softcap": 30.0}
    assert attention.describe(torch.device("cuda"), torch.bfloat16) == "flash-attn varlen"
