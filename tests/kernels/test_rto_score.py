"""rto_score: parity of both backends with three whole softmaxes in float64, and its laws.

T packed rows, R response rows among them, H hidden, V vocabulary. Tiles are shrunk to 8 rows x 128 columns.
"""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rto_fast.kernels.common import chunked, workspace
from rto_fast.kernels.common.testing import assert_no_worse
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.rto_score import FactoredLogits, rto_score, rto_score_reference
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae
from tests.kernels.backends import NATIVE
from tests.kernels.rewards import rewarded

BACKENDS = ("reference", NATIVE, "triton")
LENGTHS = [3, 0, 1, 9, 2]
PROMPTS = [2, 1, 4, 3, 5]
REWARD = RewardSpec(beta_1=0.7, beta_2=0.3, clip=0.4, gamma=0.97, lam=0.9)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(workspace, "CPU_TILE_BYTES", 4 * 8 * 128)
    monkeypatch.setattr(workspace, "CPU_TILE_COLUMNS", 128)


def model(seed, num_rows, width=24, vocab=300, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, width, generator=g).to(dtype)
    weight = (2 * torch.randn(vocab, width, generator=g) * width**-0.5).to(dtype)
    return FactoredLogits(hidden, weight, **options)


def case(dtype=torch.float32, vocab=300, **options):
    """Three models, and the other arguments of rto_score, of packed prompts and answers."""
    g = torch.Generator().manual_seed(9)
    response = torch.cat([torch.arange(p + n) >= p for p, n in zip(PROMPTS, LENGTHS, strict=True)])
    num_rows = len(response)
    models = [model(seed, num_rows, 24 + 8 * seed, vocab, dtype, **options) for seed in range(3)]
    rest = dict(
        target=torch.randint(vocab, (num_rows,), generator=g),
        values=torch.randn(sum(LENGTHS), generator=g),
        cu_seqlens=torch.tensor([0, *LENGTHS]).cumsum(0).int(),
        rows=response.nonzero()[:, 0],
    )
    return models, rest


def wide(x):
    if isinstance(x, tuple):  # a FactoredLogits or a RewardSpec
        return type(x)(*map(wide, x))
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def check(models, rest, backend, **options):
    reward = REWARD._replace(**options)
    got = rto_score(*models, **rest, reward=reward, backend=backend)
    eager = rto_score_reference(*models, **rest, reward=reward)
    exact = rto_score_reference(*map(wide, models), **{k: wide(v) for k, v in rest.items()}, reward=wide(reward))
    for name, x, near, wanted in zip(got._fields, got, eager, exact, strict=True):
        assert x.dtype == torch.float32, name
        # eager in bfloat16 may be far off: the log-probs have an absolute bound of their own below
        assert_no_worse(x, near.double(), wanted, 2.0, 5e-6, name)
        if name.endswith("logprobs"):
            assert (x - wanted).abs().max() <= 1e-3
    return got


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(softcap=4.0, temperature=0.7)], ids=["plain", "capped"])
def test_matches_float64(backend, dtype, options):
    check(*case(dtype, **options), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_whole_reward(backend):
    models, rest = case()
    g = torch.Generator().manual_seed(4)
    sequences, rows = len(LENGTHS), sum(LENGTHS)
    tensors = dict(
        scores=3 * torch.randn(sequences, generator=g),
        terminal=torch.randn(sequences, generator=g),
        counted=torch.tensor([True, True, False, True, True]),
        sentence_ends=torch.rand(rows, generator=g) < 0.3,
    )
    for granularity in ("token", "sentence", "response"):
        for shaping_only in (False, True):
            options = dict(beta_3=1.3, score_clip=2.0, granularity=granularity, shaping_only=shaping_only)
            check(models, rest, backend, **tensors, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_linear_logprob_and_token_reward_gae_to_the_bit(backend):
    models, rest = case()
    rows = rest["rows"]
    got = rto_score(*models, **rest, reward=REWARD, backend=backend)
    logprobs = [linear_logprob(m.hidden[rows], m.weight, rest["target"][rows], backend=backend) for m in models]
    columns = (*logprobs, rest["values"])
    want = token_reward_gae(*columns, rest["cu_seqlens"], REWARD, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, (*columns, *want), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compact", [True, False])
def test_a_shared_head_is_one_stack(backend, compact, monkeypatch):
    models, rest = case()
    shared = models[0].weight
    models = [m._replace(hidden=model(i, len(m.hidden)).hidden, weight=shared) for i, m in enumerate(models)]
    if not compact:
        rows = rest.pop("rows")
        models = [m._replace(hidden=m.hidden[rows]) for m in models]
        rest["target"] = rest["target"][rows]
    shapes = []
    original = chunked.statistics

    def counted(hidden, *args):
        shapes.append(tuple(hidden.shape))
        return original(hidden, *args)

    monkeypatch.setattr("rto_fast.kernels.rto_score.statistics", counted)
    together = check(models, rest, backend)
    assert shapes == [(3 * sum(LENGTHS), 24)]
    # a view of the same numbers is the same head; a copy is another
    models[1] = models[1]._replace(weight=shared[:])
    rto_score(*models, **rest, reward=REWARD, backend=backend)
    assert len(shapes) == 2
    models[2] = models[2]._replace(weight=shared.clone())
    apart = rto_score(*models, **rest, reward=REWARD, backend=backend)
    assert shapes[2:] == [(sum(LENGTHS), 24)] * 3
    for x, y in zip(apart, together, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    # another softcap or temperature is another head, whatever the weight
    models[2] = models[2]._replace(weight=shared, temperature=0.5)
    check(models, rest, backend)
    assert len(shapes) == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompt_rows_are_never_read(backend):
    models, rest = case()
    want = rto_score(*models, **rest, reward=REWARD, backend=backend)
    prompt = torch.ones(len(rest["target"]), dtype=torch.bool).index_fill(0, rest["rows"], False)
    for m in models:
        m.hidden[prompt] = torch.nan
    rest["target"][prompt] = -100
    got = rto_score(*models, **rest, reward=REWARD, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_dense_reward_the_dpo_model_is_not_read(backend):
    models, rest = case()
    want = rto_score(*models[:2], None, **rest, reward=REWARD, backend=backend)
    models[2].hidden.fill_(torch.nan)
    got = rto_score(*models, **rest, reward=REWARD._replace(beta_1=0.0), backend=backend)
    assert want.dpo_logprobs is None and got.dpo_logprobs is None
    assert all(torch.equal(a, b) for a, b in zip(got[3:], want[3:], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_policies_earn_nothing(backend):
    models, rest = case()
    same = [models[0]._replace(hidden=models[0].hidden.clone(), weight=models[0].weight.clone()) for _ in range(3)]
    out = rto_score(*same, **rest, reward=REWARD, backend=backend)
    assert not out.rewards.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_score(backend, lengths):
    models, rest = case()
    rest |= dict(
        values=torch.zeros(0), rows=torch.zeros(0).long(), cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int()
    )
    for shared in (False, True):
        heads = [models[0]] * 3 if shared else models
        out = rto_score(*heads, **rest, reward=REWARD, backend=backend)
        assert all(len(x) == 0 for x in out[:-1]) and out.moments.shape == (len(lengths), 3) and not out.moments.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strangers_in_the_pack_change_nothing(backend):
    models, rest = case()
    want = rto_score(*models, **rest, reward=REWARD, backend=backend)
    a, b = rest["cu_seqlens"][3:5].tolist()
    others = torch.ones(len(rest["target"]), dtype=torch.bool).index_fill(0, rest["rows"][a:b], False)
    for i, m in enumerate(models):
        m.hidden[others] = model(i + 10, len(m.hidden), m.hidden.shape[1]).hidden[others]
    rest["values"] = torch.where(others[rest["rows"]], 7.0, rest["values"])
    got = rto_score(*models, **rest, reward=REWARD, backend=backend)
    for name, x, y in zip(got._fields, got, want, strict=True):
        part = slice(3, 4) if name == "moments" else slice(a, b)
        assert torch.equal(x[part], y[part]) and not torch.equal(x, y), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuted_sequences_give_permuted_results(backend):
    models, rest = case()
    want = rto_score(*models, **rest, reward=REWARD, backend=backend)
    order = [4, 2, 0, 3, 1]
    pieces = torch.arange(sum(LENGTHS)).split(LENGTHS)
    at = torch.cat([pieces[i] for i in order])
    rest |= dict(
        rows=rest["rows"][at],
        values=rest["values"][at],
        cu_seqlens=torch.tensor([0, *(LENGTHS[i] for i in order)]).cumsum(0).int(),
    )
    got = rto_score(*models, **rest, reward=REWARD, backend=backend)
    for name, x, y in zip(got._fields, got, want, strict=True):
        assert torch.equal(x, y[order] if name == "moments" else y[at]), name


def test_costs_three_gemms_of_the_response_rows():
    models, rest = case()
    with FlopCounterMode(display=False) as counter:
        rto_score(*models, **rest, reward=REWARD)
    widths = sum(m.hidden.shape[1] for m in models)
    assert counter.get_total_flops() == 2 * sum(LENGTHS) * 300 * widths


def test_one_launch_turns_log_probs_into_advantages(monkeypatch):
    from rto_fast.kernels.token_reward_gae import kernel

    launches = []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return original[grid]

    original = kernel._token_reward_gae
    monkeypatch.setattr(kernel, "_token_reward_gae", Counted())
    models, rest = case()
    rto_score(*models, **rest, reward=REWARD, backend="triton")
    assert launches == [(len(LENGTHS),)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_that_require_grad(backend):
    models, rest = case()
    want = rto_score(*models, **rest, reward=REWARD, backend=backend)

    def strided(x):
        x = x.repeat_interleave(2, 0)[::2] if isinstance(x, torch.Tensor) else x
        return x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    models = [FactoredLogits(*map(strided, m)) for m in models]
    got = rto_score(*models, **{k: strided(v) for k, v in rest.items()}, reward=REWARD, backend=backend)
    for name, x, y in zip(got._fields, got, want, strict=True):
        assert not x.requires_grad, name
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_never_waits_for_the_device():
    models, rest = case(torch.bfloat16)
    models = [FactoredLogits(m.hidden.cuda(), m.weight.cuda()) for m in models]
    rest = {k: v.cuda() for k, v in rest.items()}
    rto_score(*models, **rest, reward=REWARD)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rto_score(*models, **rest, reward=REWARD)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(values=torch.zeros(15, 1)), r"rto_score: values must be \(R,\), got \(15, 1\)"),
        (dict(values=torch.zeros(15).half()), "rto_score: values must be float32, got torch.float16"),
        (dict(rows=torch.arange(14)), r"rto_score: rows must have shape \(15,\), got \(14,\)"),
        (dict(rows=torch.arange(15).int()), "rto_score: rows must be torch.int64, got torch.int32"),
        (
            dict(rows=torch.arange(15) + 20),
            r"rto_score: rows must lie in \[0, T\) = \[0, 30\), got values from 20 to 34",
        ),
        (dict(rows=None), r"rto_score: without rows all T = 30 rows are scored, but values are \(15,\)"),
        (dict(target=torch.zeros(29).long()), r"rto_score: target must have shape \(30,\), got \(29,\)"),
        (dict(target=torch.full((30,), 300)), r"rto_score \(policy\): target must lie in \[0, V\) = \[0, 300\)"),
        (dict(cu_seqlens=torch.tensor([0, 14]).int()), "rto_score: cu_seqlens must start at 0 and end at R = 15"),
        (dict(beta_2=math.nan), "rto_score: beta_2 must be finite, got nan"),
        (dict(beta_3=1.0), r"rto_score: beta_3 = 1.0 needs scores \(S,\), got None"),
        (dict(granularity="word"), "rto_score: granularity must be one of token, sentence, response"),
        (dict(workspace_mb=0), r"rto_score \(policy\): workspace_mb must be at least 1"),
        (dict(backend="cuda"), "rto_score: backend must be one of triton, native, reference"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="contents are checked on the CPU")
def test_wrong_arguments_are_named(change, message):
    models, rest = case()
    with pytest.raises(ValueError, match=message):
        rewarded(rto_score, *models, **rest | REWARD._asdict() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(hidden=torch.zeros(2, 15, 24)), r"rto_score \(reference\): hidden must have the policy's 30 rows"),
        (
            dict(hidden=torch.zeros(30, 2, 24)),
            r"rto_score \(reference\): hidden must be \(rows, H\), got \(30, 2, 24\)",
        ),
        (dict(weight=torch.zeros(300, 24)), r"rto_score \(reference\): weight must be \(V, H\) with V > 0 and H = 32"),
        (dict(weight=torch.zeros(300, 32).bfloat16()), r"rto_score \(reference\): weight must be torch.float32"),
        (dict(weight=torch.zeros(5, 32)), r"rto_score \(reference\): target must lie in \[0, V\) = \[0, 5\)"),
        (dict(temperature=0.0), r"rto_score \(reference\): temperature must be > 0"),
        (dict(bias=torch.zeros(299)), r"rto_score \(reference\): bias must have shape \(300,\)"),
    ],
)
def test_a_wrong_model_is_named(change, message):
    models, rest = case()
    models[1] = models[1]._replace(**change)
    with pytest.raises(ValueError, match=message):
        rto_score(*models, **rest, reward=REWARD)
