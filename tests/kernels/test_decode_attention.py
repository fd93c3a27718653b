"""decode_attention against its definition in float64 on every backend, and the laws that any right one obeys.

B rows, N heads, N_kv key/value heads, C capacity, D head size. Under the interpreter a split is 128 positions, so that
a few hundred cross every edge; one test has the real 512.
"""

import math
import os

import numpy as np
import pytest
import torch

from rto_fast.kernels.common.testing import assert_no_worse
from rto_fast.kernels.decode_attention import decode_attention, decode_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", "triton")
DTYPES = (torch.float32, torch.bfloat16)
SPLIT = 128
EDGES = [1, 31, 32, 33, 63, 64, 65, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, 2 * SPLIT + 65]


@pytest.fixture
def small_splits(monkeypatch):
    if os.environ.get("TRITON_INTERPRET") == "1":
        from rto_fast.kernels.decode_attention import kernel

        monkeypatch.setattr(kernel, "SPLIT", SPLIT)


def make(lengths, group=2, kv_heads=1, dim=16, value_dim=None, dtype=torch.float32, spare=3, seed=0, scale=2.0):
    """query, keys, values, lengths: the cache is a view of a larger one, with NaN wherever it is not filled."""
    g = torch.Generator().manual_seed(seed)
    rows, capacity = len(lengths), max([1, *lengths]) + spare
    held = torch.tensor(lengths, dtype=torch.int64)
    query = torch.randn(rows, kv_heads * group, dim, generator=g)
    stores = []
    for size in (dim, value_dim or dim):
        store = torch.full((rows + 2, kv_heads + 1, capacity + 5, size), math.nan)
        part = store[:rows, :kv_heads, :capacity]
        part[:] = torch.randn(part.shape, generator=g)
        part.masked_fill_((torch.arange(capacity) >= held[:, None])[:, None, :, None], math.nan)
        stores.append(store.to(dtype).to(DEVICE)[: rows + 1, :kv_heads, :capacity])
    return (scale * query).to(dtype).to(DEVICE), *stores, held.to(DEVICE)


def eager(query, keys, values, lengths, scale, window=None, softcap=None):
    """Plain torch in the dtype of the query, row by row."""
    out = []
    for q, k, v, length in zip(query, keys, values, lengths.tolist(), strict=False):
        first = 0 if window is None else max(0, length - window)
        k, v = (x[:, first:length].repeat_interleave(len(q) // len(k), 0) for x in (k, v))
        z = (k @ q[:, :, None])[:, :, 0] * scale
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        out.append((z.softmax(-1)[:, None] @ v)[:, 0])
    return torch.stack(out)


def check(backend, *given, floor=2e-6, **options):
    query, keys, values, lengths = given
    scale = query.shape[2] ** -0.5
    got = decode_attention(*given, scale, backend=backend, **options)
    assert got.dtype == query.dtype and got.shape == (*query.shape[:2], values.shape[3])
    exact = eager(query.double(), keys.double(), values.double(), lengths, scale, **options)
    assert_no_worse(got, eager(*given, scale, **options), exact, floor=floor)
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_parity_at_every_edge(group, dtype, backend, small_splits):
    check(backend, *make(EDGES, group, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("dim", [8, 64, 80, 128])
def test_head_sizes(dim, group, dtype, backend, small_splits):
    check(backend, *make([1, 33, SPLIT + 2], group, kv_heads=2, dim=dim, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("window", [1, 5, 64, SPLIT, SPLIT + 1, 10_000])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_windows_and_softcaps(softcap, window, group, dtype, backend, small_splits):
    check(backend, *make([1, 4, 5, 6, 70, 2 * SPLIT + 9], group, dtype=dtype), window=window, softcap=softcap)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [1, 4])
def test_values_of_another_size(group, backend, small_splits):
    for dtype in DTYPES:
        check(backend, *make([3, SPLIT + 1], group, dim=24, value_dim=16, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [17, 40])
def test_more_heads_in_a_group_than_a_program_takes(group, dtype, small_splits):
    check("triton", *make([5, SPLIT + 1], group, kv_heads=2, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
def test_the_real_splits(group, dtype):
    from rto_fast.kernels.decode_attention import kernel

    assert kernel.SPLIT == 512
    check("triton", *make([511, 512, 513, 1025], group, dim=64, dtype=dtype))


def test_more_splits_than_are_combined_at_once(monkeypatch):
    from rto_fast.kernels.decode_attention import kernel

    monkeypatch.setattr(kernel, "SPLIT", 32)
    for dtype in DTYPES:
        check("triton", *make([16 * 32, 17 * 32 + 1, 40], group=4, dtype=dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
def test_peaked_and_very_negative_scores(group, dtype, backend, small_splits):
    query, keys, values, lengths = make([7, 2 * SPLIT + 3], group, dtype=dtype)
    check(backend, 40 * query, keys, values, lengths)
    query, keys = query.abs() + 1, -keys.abs() * 30 - 30  # scores of -130 and less
    check(backend, query, keys, values, lengths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
def test_a_row_does_not_know_its_neighbours(group, dtype, backend, small_splits):
    query, keys, values, lengths = make([5, 64, 2 * SPLIT + 1, 33, SPLIT], group, kv_heads=2, dtype=dtype)
    scale = 0.3
    together = decode_attention(query, keys, values, lengths, scale, backend=backend)
    for b in range(len(lengths)):
        one = slice(b, b + 1)
        alone = decode_attention(query[one], keys[one], values[one], lengths[one], scale, backend=backend)
        assert torch.equal(alone[0], together[b]), b
    order = torch.tensor([3, 0, 4, 2, 1], device=DEVICE)
    moved = decode_attention(query[order], keys[order], values[order], lengths[order], scale, backend=backend)
    assert torch.equal(moved, together[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("window", [None, 40])
def test_the_capacity_changes_nothing_on_a_gpu(window, group, dtype, small_splits):
    """One launch or two, to the bit: a cache that grows does not move what it holds."""
    given = make([3, 50, SPLIT], group, dtype=dtype, spare=2 * SPLIT)
    short = given[0], given[1][:, :, :SPLIT], given[2][:, :, :SPLIT], given[3]
    run = lambda given: decode_attention(*given, 0.3, window=window, backend="triton")  # noqa: E731
    assert torch.equal(run(given), run(short))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches_and_rows_that_hold_nothing(backend, small_splits):
    for dtype in DTYPES:
        query, keys, values, lengths = make([2, 0, SPLIT + 1], dtype=dtype)
        for capacity in (SPLIT + 1, 2):
            lengths = lengths.clamp(max=capacity)
            given = (query, keys[:, :, :capacity], values[:, :, :capacity], lengths)
            out = decode_attention(*given, 0.3, backend=backend)
            assert out.isfinite().all() and not out[1].any() and out[0].any()
        out = decode_attention(query[:0], keys, values, lengths[:0], 0.3, backend=backend)
        assert out.shape == (0, 2, 16) and out.dtype == dtype
        nothing = decode_attention(query, keys[:, :, :0], values[:, :, :0], 0 * lengths, 0.3, backend=backend)
        assert nothing.shape == query.shape and not nothing.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [1, 4])
def test_the_newest_position_alone_and_the_mean_of_all(group, backend, small_splits):
    query, keys, values, lengths = make([4, 90, SPLIT + 40], group)
    newest = decode_attention(query, keys, values, lengths, 0.3, window=1, backend=backend)
    for b, length in enumerate(lengths.tolist()):
        assert torch.equal(newest[b], values[b, :, length - 1].expand(group, -1))
    flat = decode_attention(0 * query, keys, values, lengths, 0.3, backend=backend)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(flat[b], values[b, :, :length].mean(1).expand(group, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("group", [1, 4])
def test_nan_stays_in_its_row(group, backend, small_splits):
    for dtype in DTYPES:
        query, keys, values, lengths = make([40, SPLIT + 9, 8], group, dtype=dtype)
        keys[1, 0, SPLIT + 3] = math.nan
        out = decode_attention(query, keys, values, lengths, 0.3, backend=backend)
        assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_dtypes_of_lengths_and_inputs_that_require_grad(backend, small_splits):
    query, keys, values, lengths = make([40, SPLIT + 9, 8], 4, kv_heads=2)
    want = decode_attention(query, keys, values, lengths, 0.3, backend=backend)
    # positions outermost, as another cache might have them; a query with gaps; lengths with gaps
    turned = [x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3).requires_grad_() for x in (keys, values)]
    gaps = query.repeat_interleave(2, 1)[:, ::2].requires_grad_()
    got = decode_attention(gaps, *turned, lengths.int().repeat_interleave(2)[::2], 0.3, backend=backend)
    assert torch.equal(got, want) and not got.requires_grad
    got = decode_attention(query.repeat_interleave(2, 2)[..., ::2], keys, values, lengths, 0.3, backend=backend)
    assert torch.equal(got, want)


def test_the_reference_is_exact_in_float64():
    query, keys, values, lengths = (x.double() if x.is_floating_point() else x for x in make([1, 9, 200], 4))
    got = decode_attention_reference(query, keys, values, lengths, 0.3, 50, 2.0)
    torch.testing.assert_close(got, eager(query, keys, values, lengths, 0.3, 50, 2.0), rtol=1e-13, atol=1e-13)


def test_kernels_cut_lengths_to_what_there_is(small_splits):
    """What a GPU does, where looking at the lengths would wait for the device."""
    from rto_fast.kernels.decode_attention.kernel import decode_attention_triton as run

    query, keys, values, lengths = make([SPLIT + 9, 8], 4, spare=0)
    wild = torch.tensor([2**40, -3], device=DEVICE)
    got = run(query, keys, values, wild, 0.3, None, None)
    assert torch.equal(got[0], run(query, keys, values, lengths, 0.3, None, None)[0]) and not got[1].any()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="reads are counted under the interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 40])
def test_every_key_and_value_in_sight_is_read_once_and_no_other(window, group, dtype, small_splits, monkeypatch):
    """The bytes of a step are those of its filled positions, however long the other rows are."""
    from triton.runtime.interpreter import InterpreterBuilder

    query, keys, values, lengths = make([1, 33, 2 * SPLIT + 7, SPLIT], group, kv_heads=2, dim=80, dtype=dtype)
    reads: list[np.ndarray] = []
    load = InterpreterBuilder.create_masked_load

    def counting(self, ptrs, mask, *rest):
        reads.append(ptrs.data[mask.data].ravel())
        return load(self, ptrs, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counting)
    decode_attention(query, keys, values, lengths, 0.3, window=window, backend="triton")
    addresses, counts = np.unique(np.concatenate(reads), return_counts=True)
    for x in (keys, values):
        wanted = []
        for b, length in enumerate(lengths.tolist()):
            first = 0 if window is None else max(0, length - window)
            steps = torch.arange(first, length)[:, None] * x.stride(2) + torch.arange(x.shape[3])
            wanted += [b * x.stride(0) + h * x.stride(1) + steps for h in range(x.shape[1])]
        wanted = torch.cat([w.ravel() for w in wanted]).numpy() * x.element_size() + x.data_ptr()
        start = x.untyped_storage().data_ptr()
        here = (addresses >= start) & (addresses < start + x.untyped_storage().nbytes())
        assert np.array_equal(addresses[here], np.sort(wanted).astype(np.uint64))
        assert (counts[here] == 1).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_triton_never_waits_for_the_device():
    given = make([3, 700], 4, dim=64, dtype=torch.bfloat16)
    decode_attention(*given, 0.3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode_attention(*given, 0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


GOOD = dict(zip(("query", "keys", "values", "lengths"), make([2, 5, 3], 2, kv_heads=2), strict=True)) | dict(scale=0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=torch.zeros(3, 4, 1, 16)), r"query must be \(B, N, D\), got \(3, 4, 1, 16\); a step has one query"),
        (dict(query=torch.zeros(3, 4, 16).int()), "query must be float32, bfloat16 or float16, got torch.int32"),
        (dict(query=torch.zeros(3, 4, 16).double()), "keys must be torch.float64 as query is, got torch.float32"),
        (dict(query=torch.zeros(3, 3, 16)), "query must have a multiple of the N_kv = 2 heads of keys, got N = 3"),
        (dict(query=torch.zeros(3, 0, 16)), "query must have a multiple of the N_kv = 2 heads of keys, got N = 0"),
        (dict(query=torch.zeros(3, 4, 8)), r"keys must be \(B_max, N_kv, C, D\) with D = 8 as query has, got"),
        (dict(query=torch.zeros(5, 4, 16)), "keys must have a row for each of the B = 5 queries, got 4"),
        (dict(keys=torch.zeros(3, 2, 16)), r"keys must be \(B_max, N_kv, C, D\), got \(3, 2, 16\)"),
        (dict(keys=torch.zeros(4, 2, 16, 8).transpose(2, 3)), "keys must have a contiguous last dimension"),
        (dict(values=torch.zeros(4, 2, 7, 16)), r"values must be \(B_max, N_kv, C, D_v\) = \(4, 2, 8, 'D_v'\) as keys"),
        (dict(values=torch.zeros(4, 2, 8, 16).half()), "values must be torch.float32 as query is, got torch.float16"),
        (dict(values=torch.zeros(4, 2, 8, 513)), "D and D_v must be between 1 and 512, got D = 16, D_v = 513"),
        (dict(lengths=torch.zeros(2).long()), r"lengths must be \(B,\) = \(3,\), got \(2,\)"),
        (dict(lengths=torch.zeros(3)), "lengths must be int64 or int32, got torch.float32"),
        (dict(lengths=torch.tensor([2, 9, 3])), r"lengths must lie in \[0, C\] = \[0, 8\], got values from 2 to 9"),
        (dict(lengths=torch.tensor([2, -1, 3])), r"lengths must lie in \[0, C\] = \[0, 8\], got values from -1 to 3"),
        (dict(scale=math.nan), "scale must be finite, got nan"),
        (dict(window=0), "window must be at least 1, got 0; None attends to the whole row"),
        (dict(softcap=0.0), "softcap must be > 0 and finite, got 0.0; None leaves scores as they are"),
        (dict(softcap=math.inf), "softcap must be > 0 and finite, got inf"),
        (dict(backend="native"), "backend must be one of triton, reference, got 'native'"),
    ],
)
@pytest.mark.skipif(DEVICE != "cpu", reason="the contents of lengths are checked on the CPU")
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match="decode_attention: .*" + message):
        decode_attention(**GOOD | change)


def test_the_triton_backend_takes_no_float64():
    wide = {k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in GOOD.items()}
    with pytest.raises(ValueError, match="must be float32 or half precision on backend 'triton', got torch.float64"):
        decode_attention(**wide, backend="triton")
