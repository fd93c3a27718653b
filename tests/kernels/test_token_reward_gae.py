"""token_reward_gae: parity of every backend with the float64 loop, and the laws that any right one obeys."""

import ast
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.kernels.token_reward_gae import RewardSpec, merge_moments, token_reward_gae, token_reward_gae_reference
from tests.kernels.backends import NATIVE
from tests.kernels.rewards import rewarded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ("reference", NATIVE, "triton") if DEVICE == "cpu" else ("reference", "triton")
LENGTHS = [3, 0, 1, 9, 2]
LOGPROBS = ("old_logprobs", "ref_logprobs", "dpo_logprobs")
FULL = dict(beta_1=0.7, beta_2=0.3, clip=0.4, beta_3=1.3, score_clip=2.0, gamma=0.97, lam=0.9)
BARE = dict(beta_1=0.7, beta_2=0.0, gamma=1.0, lam=1.0)


def tensors(lengths, seed=0):
    """Everything a call takes by position or by (S,) and (R,) tensors; scores often beyond score_clip = 2."""
    g = torch.Generator().manual_seed(seed)
    rows, sequences = sum(lengths), len(lengths)
    made = {name: -torch.rand(rows, generator=g) * 3 for name in LOGPROBS}
    made["values"] = torch.randn(rows, generator=g)
    made["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int()
    made["scores"] = 3 * torch.randn(sequences, generator=g)
    made["terminal"] = torch.randn(sequences, generator=g)
    made["counted"] = torch.rand(sequences, generator=g) < 0.6
    made["sentence_ends"] = torch.rand(rows, generator=g) < 0.3
    return {name: t.to(DEVICE) for name, t in made.items()}


def plain(data):
    """The same without the optional tensors."""
    return {k: v for k, v in data.items() if k in (*LOGPROBS, "values", "cu_seqlens")}


def double(data):
    return {k: v.double() if v.is_floating_point() else v for k, v in data.items()}


def by_sequence(rows, data):
    return [rows[a:b] for a, b in zip(data["cu_seqlens"][:-1].tolist(), data["cu_seqlens"][1:].tolist(), strict=True)]


def totals(rows, data):
    return torch.stack([part.double().sum() for part in by_sequence(rows, data)])


def assert_as_good_as_eager(data, options, backend):
    """No further from float64 than twice what the definition itself is in float32, and a floor of a few roundings."""
    got = rewarded(token_reward_gae, **data, **options, backend=backend)
    exact = rewarded(token_reward_gae_reference, **double(data), **options)
    eager = rewarded(token_reward_gae_reference, **data, **options)
    for name, x, want, loop in zip(got._fields, got, exact, eager, strict=True):
        assert x.dtype == torch.float32 and x.shape == want.shape, name
        bound = 2 * (loop - want).abs() + 2e-6 * max(1.0, want.abs().max().item() if want.numel() else 0.0)
        assert ((x - want).abs() <= bound).all(), (name, (x - want).abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shaping_only", [False, True])
@pytest.mark.parametrize("granularity", ["token", "sentence", "response"])
def test_parity_with_the_float64_loop(granularity, shaping_only, backend):
    options = FULL | dict(granularity=granularity, shaping_only=shaping_only)
    assert_as_good_as_eager(tensors(LENGTHS), options, backend)


@pytest.mark.parametrize(("granularity", "shaping_only"), [("token", True), ("sentence", False), ("sentence", True)])
def test_triton_across_the_edges_of_its_blocks(granularity, shaping_only):
    # a block is 512 rows: the third sequence is unpaid across an edge until its last row; in the fourth one sentence
    # crosses an edge and one ends on it
    data = tensors([511, 512, 513, 1026])
    fourth = 511 + 512 + 513
    data["sentence_ends"][:] = False
    data["sentence_ends"][[fourth + 300, fourth + 700, fourth + 1023]] = True
    assert_as_good_as_eager(data, FULL | dict(granularity=granularity, shaping_only=shaping_only), "triton")


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_a_sequence_of_5000_rows(backend):
    options = FULL | dict(gamma=1.0, lam=0.95, granularity="sentence")
    assert_as_good_as_eager(tensors([5000, 3]), options, backend)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=0, max_size=7),
    granularity=st.sampled_from(["token", "sentence", "response"]),
    shaping_only=st.booleans(),
    betas=st.tuples(*[st.sampled_from([0.0, -0.2, 0.05, 1.0])] * 3),
    clip=st.sampled_from([0.05, math.inf]),
    discounts=st.tuples(*[st.sampled_from([0.0, 0.5, 0.95, 1.0])] * 2),
)
def test_reference_equals_the_loop_in_float64(lengths, granularity, shaping_only, betas, clip, discounts):
    data = double(tensors(lengths))
    options = dict(beta_1=betas[0], beta_2=betas[1], beta_3=betas[2], clip=clip, gamma=discounts[0], lam=discounts[1])
    options |= dict(granularity=granularity, shaping_only=shaping_only)
    got = rewarded(token_reward_gae, **data, **options, backend="reference")
    for x, want in zip(got, rewarded(token_reward_gae_reference, **data, **options), strict=True):
        torch.testing.assert_close(x, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lambda_one_gives_reward_to_go_minus_value(backend):
    data = tensors(LENGTHS)
    got = rewarded(token_reward_gae, **data, **FULL | dict(gamma=1.0, lam=1.0), backend=backend)
    for reward, ret in zip(by_sequence(got.rewards, data), by_sequence(got.returns, data), strict=True):
        torch.testing.assert_close(ret, reward.flip(0).cumsum(0).flip(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.advantages, got.returns - data["values"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lambda_zero_gives_delta(backend):
    data = tensors(LENGTHS)
    got = rewarded(token_reward_gae, **data, **FULL | dict(lam=0.0), backend=backend)
    parts = zip(*(by_sequence(x, data) for x in (got.rewards, data["values"], got.advantages)), strict=True)
    for reward, value, advantage in parts:
        after = torch.cat([value[1:], value.new_zeros(min(1, len(value)))])
        torch.testing.assert_close(advantage, reward + FULL["gamma"] * after - value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gamma_discounts_a_lone_final_reward(backend):
    data = plain(tensors([4])) | dict(values=torch.zeros(4, device=DEVICE), dpo_logprobs=None)
    options = dict(beta_1=0.0, beta_2=0.0, gamma=0.5, lam=1.0, terminal=torch.ones(1, device=DEVICE))
    got = rewarded(token_reward_gae, **data, **options, backend=backend)
    assert got.returns.tolist() == [0.125, 0.25, 0.5, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_of_one_row(backend):
    data = plain(tensors([1]))
    got = rewarded(token_reward_gae, **data, beta_1=0.7, beta_2=0.3, backend=backend)
    kl = data["old_logprobs"] - data["ref_logprobs"]
    want = 0.7 * (data["dpo_logprobs"] - data["ref_logprobs"]) - 0.3 * kl
    torch.testing.assert_close(got.rewards, want)
    torch.testing.assert_close(got.advantages, want - data["values"])
    torch.testing.assert_close(got.moments, torch.tensor([[1.0, got.advantages.item(), 0.0]], device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["token", "sentence", "response"])
def test_strangers_in_the_pack_change_nothing(granularity, backend):
    lengths = [5, 0, 11, 1, 7] if backend == "triton" else [5, 0, 300, 1, 7, 64, 33]
    data, options = tensors(lengths), FULL | dict(granularity=granularity, shaping_only=True)
    packed = rewarded(token_reward_gae, **data, **options, backend=backend)
    for s in range(len(lengths)):
        rows = slice(data["cu_seqlens"][s], data["cu_seqlens"][s + 1])
        own = {k: v[rows] for k, v in data.items() if k in (*LOGPROBS, "values", "sentence_ends")}
        own |= {k: data[k][s : s + 1] for k in ("scores", "terminal", "counted")}
        own["cu_seqlens"] = torch.tensor([0, lengths[s]], dtype=torch.int32, device=DEVICE)
        alone = rewarded(token_reward_gae, **own, **options, backend=backend)
        assert all(torch.equal(x[rows], y) for x, y in zip(packed[:3], alone[:3], strict=True))
        assert torch.equal(packed.moments[s : s + 1], alone.moments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuted_sequences_give_permuted_results(backend):
    data, options = tensors(LENGTHS), FULL | dict(granularity="sentence")
    order = [3, 1, 4, 0, 2]
    rows = torch.cat([torch.arange(sum(LENGTHS), device=DEVICE).split(LENGTHS)[s] for s in order])
    moved = {k: v[rows] for k, v in data.items() if k in (*LOGPROBS, "values", "sentence_ends")}
    moved |= {k: data[k][order] for k in ("scores", "terminal", "counted")}
    moved["cu_seqlens"] = torch.tensor([0, *(LENGTHS[s] for s in order)], device=DEVICE).cumsum(0).int()
    straight = rewarded(token_reward_gae, **data, **options, backend=backend)
    permuted = rewarded(token_reward_gae, **moved, **options, backend=backend)
    assert all(torch.equal(x[rows], y) for x, y in zip(straight[:3], permuted[:3], strict=True))
    assert torch.equal(straight.moments[order], permuted.moments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rto_without_beta_1_is_ppo(backend):
    data = plain(tensors(LENGTHS))
    rto = rewarded(token_reward_gae, **data, beta_1=0.0, beta_2=0.3, clip=0.1, granularity="response", backend=backend)
    ppo = rewarded(token_reward_gae, **data | dict(dpo_logprobs=None), beta_1=0.7, beta_2=0.3, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(rto, ppo, strict=True))
    torch.testing.assert_close(ppo.rewards, -0.3 * (data["old_logprobs"] - data["ref_logprobs"]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_policies_earn_nothing(backend):
    data = plain(tensors(LENGTHS))
    data |= dict(old_logprobs=data["ref_logprobs"], dpo_logprobs=data["ref_logprobs"])
    assert not rewarded(token_reward_gae, **data, beta_1=0.7, beta_2=0.3, backend=backend).rewards.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_granularities_pay_the_same_total(backend):
    data = plain(tensors(LENGTHS)) | dict(sentence_ends=tensors(LENGTHS)["sentence_ends"])
    paid = {
        granularity: rewarded(
            token_reward_gae, **data, **BARE, clip=0.4, granularity=granularity, backend=backend
        ).rewards
        for granularity in ("token", "sentence", "response")
    }
    for rewards in paid.values():
        torch.testing.assert_close(totals(rewards, data), totals(paid["token"], data), rtol=1e-5, atol=1e-6)
    last = data["cu_seqlens"][1:].long() - 1
    paydays = data["sentence_ends"].clone()
    paydays[last] = True
    assert not paid["sentence"][~paydays].any()
    assert paid["response"].count_nonzero() == sum(length > 0 for length in LENGTHS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["token", "sentence", "response"])
def test_shaping_leaves_the_return_at_the_sentence_score(granularity, backend):
    data = tensors(LENGTHS)
    scores = torch.tensor([1.5, 7.0, -0.5, 0.25, 30.0], device=DEVICE)
    data = plain(data) | dict(sentence_ends=data["sentence_ends"], scores=scores)
    options = BARE | dict(beta_3=2.0, granularity=granularity, shaping_only=True)
    got = rewarded(token_reward_gae, **data, **options, backend=backend)
    want = torch.tensor([3.0, 0.0, -1.0, 0.5, 20.0], dtype=torch.float64, device=DEVICE)  # an empty one earns nothing
    torch.testing.assert_close(totals(got.rewards, data), want, rtol=1e-5, atol=1e-5)
    assert granularity == "response" or got.rewards.count_nonzero() > 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_clip_comes_after_the_scale(backend):
    data = plain(tensors([4])) | dict(ref_logprobs=torch.zeros(4, device=DEVICE))
    data["dpo_logprobs"] = torch.tensor([0.5, -0.9, 2.0, -3.0], device=DEVICE)
    got = rewarded(token_reward_gae, **data, beta_1=0.05, beta_2=0.0, clip=0.05, backend=backend)
    torch.testing.assert_close(got.rewards, torch.tensor([0.025, -0.045, 0.05, -0.05], device=DEVICE))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_clamped_before_beta_3_and_terminal_after_neither(backend):
    data = plain(tensors([2, 1, 1])) | dict(dpo_logprobs=None)
    data["scores"] = torch.tensor([25.0, -11.0, 4.0], device=DEVICE)
    data["terminal"] = torch.tensor([0.0, -50.0, 1.0], device=DEVICE)
    got = rewarded(token_reward_gae, **data, beta_1=0.0, beta_2=0.0, beta_3=0.5, backend=backend)
    assert got.rewards.tolist() == [0.0, 5.0, -55.0, 3.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_coefficients_read_nothing(backend):
    data, nan = tensors(LENGTHS), torch.full((sum(LENGTHS),), math.nan, device=DEVICE)
    nothing = dict(beta_2=0.0, beta_3=0.0, scores=nan[: len(LENGTHS)], backend=backend)
    no_dense = plain(data) | dict(old_logprobs=nan, ref_logprobs=nan, dpo_logprobs=nan)
    assert not rewarded(token_reward_gae, **no_dense, beta_1=0.0, **nothing).rewards.any()
    no_kl = plain(data) | dict(old_logprobs=-math.inf * torch.ones_like(nan))
    assert rewarded(token_reward_gae, **no_kl, beta_1=0.7, **nothing).advantages.isfinite().all()
    no_shaping = plain(data) | dict(dpo_logprobs=nan)
    got = rewarded(token_reward_gae, **no_shaping, beta_1=0.7, granularity="response", shaping_only=True, **nothing)
    assert got.advantages.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["token", "sentence", "response"])
def test_nan_is_neither_clipped_away_nor_passed_to_neighbours(granularity, backend):
    data = tensors([4, 6, 3])
    data["dpo_logprobs"][6] = math.nan
    options = FULL | dict(granularity=granularity)
    rewards, advantages, _, moments = rewarded(token_reward_gae, **data, **options, backend=backend)
    assert rewards[4:10].isnan().sum() == 1 and advantages[4].isnan()
    outside = torch.ones(13, dtype=torch.bool, device=DEVICE)
    outside[4:10] = False
    assert advantages[outside].isfinite().all() and moments[::2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_moments_merge_to_the_mean_and_variance_of_the_counted_rows(backend):
    data = tensors(LENGTHS)
    data["counted"] = torch.tensor([True, True, False, True, False], device=DEVICE)
    data["values"] += 1000.0  # a naive sum of squares would lose the variance
    got = rewarded(token_reward_gae, **data, **FULL, backend=backend)
    counted = torch.cat([p for p, c in zip(by_sequence(got.advantages, data), data["counted"], strict=True) if c])
    count, mean, variance = merge_moments(got.moments)
    assert count.item() == 12 and not got.moments[~data["counted"]].any()
    torch.testing.assert_close(mean, counted.double().mean().float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(variance, counted.double().var(correction=0).float(), rtol=1e-5, atol=0)


def test_merging_nothing_and_merging_in_parts():
    assert [x.item() for x in merge_moments(torch.zeros(0, 3))] == [0, 0, 0]
    assert [x.item() for x in merge_moments(torch.zeros(4, 3))] == [0, 0, 0]
    moments = rewarded(token_reward_gae, **tensors(LENGTHS), **FULL).moments
    parts = [torch.stack([n, m, v * n]) for n, m, v in map(merge_moments, moments.double().split(2))]
    for whole, joined in zip(merge_moments(moments.double()), merge_moments(torch.stack(parts)), strict=True):
        torch.testing.assert_close(whole, joined)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [0, 2, 0]])
def test_empty_batches_and_empty_sequences(lengths, backend):
    got = rewarded(token_reward_gae, **tensors(lengths), **FULL | dict(granularity="sentence"), backend=backend)
    assert [len(x) for x in got] == [sum(lengths)] * 3 + [len(lengths)]
    assert got.moments.isfinite().all() and not got.moments[torch.tensor(lengths, dtype=torch.long) == 0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_longest_sequences(backend):
    """131,072 rows (interpreted: 18 blocks and a row) between two short ones, against the closed form at lambda = 1."""
    longest = 18 * 512 + 1 if backend == "triton" else 131_072
    data = {k: v for k, v in tensors([2, longest, 1]).items() if k in (*LOGPROBS, "values", "cu_seqlens")}
    got = rewarded(token_reward_gae, **data, **BARE, backend=backend)
    rewards = BARE["beta_1"] * (data["dpo_logprobs"] - data["ref_logprobs"]).double()
    parts = zip(by_sequence(rewards, data), by_sequence(data["values"].double(), data), strict=True)
    wanted = torch.cat([r.flip(0).cumsum(0).flip(0) - v for r, v in parts])
    # sums of up to 131,072 float32 rewards of about 0.5
    torch.testing.assert_close(got.advantages.double(), wanted, rtol=1e-5, atol=0.02 if longest > 1e5 else 2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_and_inputs_that_require_grad(backend):
    data = tensors(LENGTHS)
    want = rewarded(token_reward_gae, **data, **FULL, backend=backend)
    strided = {k: v.repeat_interleave(2)[::2] for k, v in data.items()}
    strided |= {k: v.requires_grad_() for k, v in strided.items() if k in (*LOGPROBS, "values", "scores")}
    got = rewarded(token_reward_gae, **strided, **FULL, backend=backend)
    assert all(torch.equal(x, y) and not x.requires_grad for x, y in zip(got, want, strict=True))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_triton_never_waits_for_the_device():
    data = tensors(LENGTHS)
    rewarded(token_reward_gae, **data, **FULL)
    torch.cuda.set_sync_debug_mode("error")
    try:
        merge_moments(rewarded(token_reward_gae, **data, **FULL).moments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


GOOD = tensors(LENGTHS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(old_logprobs=torch.zeros(15, 1)), r"old_logprobs must be \(R,\) = \(15,\), got \(15, 1\)"),
        (dict(values=torch.zeros(15, 1)), r"values must be \(R,\), got \(15, 1\); take column 0"),
        (dict(values=torch.zeros(1).expand(2**31)), "at most 2147418112 rows fit int32 offsets, got 2147483648"),
        (dict(dpo_logprobs=torch.zeros(14)), r"dpo_logprobs must be \(R,\) = \(15,\), got \(14,\)"),
        (dict(ref_logprobs=torch.zeros(15).bfloat16()), "ref_logprobs must be float32, got torch.bfloat16"),
        (dict(ref_logprobs=torch.zeros(15).double()), "ref_logprobs must be torch.float32 as values is"),
        (dict(cu_seqlens=torch.tensor([0, 15])), r"cu_seqlens must be \(S\+1,\) int32, got \(2,\) torch.int64"),
        (dict(cu_seqlens=torch.tensor([1, 3, 4, 13, 15, 15]).int()), r"start at 0 and end at R = 15, got 1 \.\.\. 15"),
        (dict(cu_seqlens=torch.tensor([0, 3, 3, 4, 13, 14]).int()), "end at R = 15"),
        (dict(cu_seqlens=torch.tensor([0, 5, 3, 4, 13, 15]).int()), "never fall"),
        (dict(scores=torch.zeros(4)), r"scores must be \(S,\) = \(5,\), got \(4,\)"),
        (dict(terminal=torch.zeros(15)), r"terminal must be \(S,\) = \(5,\), got \(15,\)"),
        (dict(sentence_ends=torch.zeros(5).bool()), r"sentence_ends must be \(R,\) = \(15,\), got \(5,\)"),
        (dict(counted=torch.ones(5)), "counted must be bool, got torch.float32"),
        (dict(scores=None), r"beta_3 = 1.3 needs scores \(S,\), got None"),
        (dict(granularity="sentence", sentence_ends=None), "needs sentence_ends"),
        (dict(granularity="word"), "granularity must be one of token, sentence, response, got 'word'"),
        (dict(clip=0.0), "clip must be > 0, got 0.0; math.inf switches it off"),
        (dict(score_clip=math.nan), "score_clip must be > 0, got nan"),
        (dict(beta_2=math.inf), "beta_2 must be finite, got inf"),
        (dict(gamma=1.01), r"gamma must be in \[0, 1\], got 1.01"),
        (dict(lam=-0.1), r"lam must be in \[0, 1\], got -0.1"),
        (dict(backend="cuda"), "backend must be one of triton, native, reference, got 'cuda'"),
    ],
)
@pytest.mark.skipif(DEVICE != "cpu", reason="the contents of cu_seqlens are checked on the CPU")
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match="token_reward_gae: .*" + message):
        rewarded(token_reward_gae, **GOOD | FULL | change)


def test_the_triton_backend_takes_float32_alone():
    with pytest.raises(ValueError, match="backend 'triton' needs float32, got torch.float64"):
        rewarded(token_reward_gae, **double(GOOD), **FULL, backend="triton")


def test_merge_moments_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"merge_moments: moments must be \(S, 3\), got \(3,\)"):
        merge_moments(torch.zeros(3))


@pytest.mark.parametrize("folder", ["kernels", "rto_fast"])
def test_the_reward_is_spelled_out_in_its_spec_alone(folder):
    """Neither the parameters of a function nor a list of strings repeat more than half of its fields."""
    root = Path(__file__).parents[2]
    assert len(RewardSpec._fields) == 13
    for path in (root / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            elif isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
                parts = node.keys if isinstance(node, ast.Dict) else node.elts
                names = [part.value for part in parts if isinstance(part, ast.Constant)]
            assert len({*RewardSpec._fields} & {*names}) <= 6, f"{path}:{node.lineno}: {names}"
