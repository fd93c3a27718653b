"""Every tensor argument of every operator, wrong in every way: a sentence or the right answer, never garbage."""

import pytest
import torch

from rto_fast.kernels.common.autograd import LinearLogprob
from rto_fast.kernels.common.chunked import HeadPlan
from rto_fast.kernels.common.dispatch import row_functions
from rto_fast.kernels.decode_attention import decode_attention
from rto_fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import token_reward_gae
from tests.kernels.backends import NATIVE
from tests.kernels.rewards import rewarded

BACKENDS = ("reference", NATIVE, "triton")
ONLY_TWO = {"decode_attention"}
"""What has no native backend."""
ROWS, WIDTH, VOCAB, SEQUENCES = 12, 6, 40, 4


def rand(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


HEAD = dict(hidden=rand(ROWS, WIDTH), weight=rand(VOCAB, WIDTH), bias=rand(VOCAB), target=torch.arange(ROWS) * 3)
OFFSETS = torch.tensor([0, 3, 3, 8, ROWS]).int()
REWARD = dict(
    values=rand(ROWS),
    cu_seqlens=OFFSETS,
    scores=rand(SEQUENCES),
    terminal=rand(SEQUENCES),
    sentence_ends=torch.arange(ROWS) % 3 == 0,
    counted=torch.arange(SEQUENCES) > 0,
)
KNOBS = dict(beta_1=0.5, beta_2=0.1, beta_3=1.0, granularity="sentence")


def score(target, rows, backend, **reward):
    models = [FactoredLogits(rand(ROWS + 2, WIDTH + i), rand(VOCAB, WIDTH + i)) for i in range(3)]
    return rewarded(rto_score, *models, target, rows=rows, backend=backend, **reward, **KNOBS)


CASES = {
    "linear_logprob": (linear_logprob, HEAD | dict(mask=torch.arange(ROWS) % 4 > 0)),
    "rto_score": (score, REWARD | dict(target=torch.arange(ROWS + 2) * 2, rows=torch.arange(ROWS) + 1)),
    "ppo_head": (
        lambda **given: ppo_head(**given, kl_coef=0.1, entropy_coef=0.1),
        HEAD
        | dict(
            old_logprobs=-rand(ROWS).abs(),
            advantages=rand(ROWS),
            weights=torch.arange(ROWS).float(),
            ref_logprobs=-rand(ROWS).abs(),
            loss_scale=torch.tensor(0.5),
        ),
    ),
    "preference_head": (
        preference_head,
        HEAD | dict(cu_seqlens=OFFSETS, ref_logprobs=rand(SEQUENCES), pair_weights=rand(SEQUENCES // 2).abs()),
    ),
    "token_reward_gae": (
        lambda **given: rewarded(token_reward_gae, **given, **KNOBS),
        REWARD | {name: -rand(ROWS).abs() for name in ("old_logprobs", "ref_logprobs", "dpo_logprobs")},
    ),
    "decode_attention": (
        lambda **given: decode_attention(**given, scale=0.5, window=4, softcap=3.0),
        dict(
            query=rand(SEQUENCES, 6, 8),
            keys=rand(SEQUENCES, 2, 7, 8),
            values=rand(SEQUENCES, 2, 7, 8),
            lengths=torch.tensor([7, 1, 3, 6]),
        ),
    ),
}
ARGUMENTS = [(op, name) for op, (_, given) in CASES.items() for name in given]


def call(op, backend="reference", **change):
    run, given = CASES[op]
    if backend == "native" and op in ONLY_TWO:
        pytest.skip("has no native backend")
    return run(**given | change, backend=backend)


def outputs(out):
    return [out] if isinstance(out, torch.Tensor) else [x for x in out if x is not None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", CASES)
def test_the_good_arguments_are_good(op, backend):
    assert all(x.isfinite().all() for x in outputs(call(op, backend)))


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_wrong_dtype(op, name):
    if name in ("scores", "terminal"):
        # converted: whole numbers are scores, too
        whole = CASES[op][1][name].round()
        pairs = zip(call(op, **{name: whole.int()}), call(op, **{name: whole}), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
        return
    x = CASES[op][1][name]
    wrong = x.int() if x.dtype != torch.int32 else x.long()
    if name == "lengths":
        assert torch.equal(call(op, lengths=wrong), call(op))
        wrong = x.float()
    with pytest.raises(ValueError, match=rf"^{op}.*: \w+ must be .*, got"):
        call(op, **{name: wrong})


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_half_precision_of_one_argument_alone(op, name):
    x = CASES[op][1][name]
    if not x.is_floating_point() or name in ("scores", "terminal"):
        pytest.skip("converted, or has no precision")
    with pytest.raises(ValueError, match=rf"^{op}.*: \w+ must be .*, got torch\.\w+"):
        call(op, **{name: x.bfloat16()})


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_another_device(op, name):
    with pytest.raises(ValueError, match=rf"^{op}.*: \w+ must be on (meta|cpu).*, got (cpu|meta)"):
        call(op, **{name: CASES[op][1][name].to("meta")})


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
@pytest.mark.parametrize("change", [lambda x: x[..., None], lambda x: x[:-1]], ids=["one dimension more", "one less"])
def test_a_wrong_shape(op, name, change):
    x = CASES[op][1][name]
    x = change(x) if x.dim() else x[None]
    with pytest.raises(ValueError, match=rf"^{op}.*: \w+ .*(must|but)"):
        call(op, **{name: x})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_strides_do_not_matter(op, name, backend):
    x = CASES[op][1][name]
    if x.dim() == 0:
        pytest.skip("a number has no stride")
    gaps = x.repeat_interleave(2, -1)[..., ::2]
    assert not gaps.is_contiguous() and torch.equal(gaps, x)
    if op == "decode_attention" and name in ("keys", "values"):
        # a copy of the whole cache at every step would be a trap
        with pytest.raises(ValueError, match=f"^{op}: {name} must have a contiguous last dimension, got strides"):
            call(op, backend, **{name: gaps})
        gaps = x.transpose(0, 2).contiguous().transpose(0, 2)
    layouts = (gaps, x.T.contiguous().T) if x.dim() == 2 else (gaps,)
    wanted = outputs(call(op, backend))
    for strided in layouts:
        for a, b in zip(outputs(call(op, backend, **{name: strided})), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["linear_logprob", "rto_score", "ppo_head", "preference_head"])
@pytest.mark.parametrize("wrong", [-1, -100, VOCAB, 2**40])
def test_a_target_outside_the_vocabulary(op, wrong):
    target = CASES[op][1]["target"].clone()
    target[5] = wrong
    with pytest.raises(ValueError, match=rf"^{op}.*: target must lie in \[0, V\) = \[0, {VOCAB}\), got values from"):
        call(op, target=target)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["linear_logprob", "ppo_head"])
def test_a_target_outside_the_vocabulary_on_a_row_that_does_not_count(op, backend):
    target = CASES[op][1]["target"].clone()
    target[0] = -100
    got, wanted = outputs(call(op, backend, target=target)), outputs(call(op, backend))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("wrong", [-1, VOCAB, 2**40])
def test_kernels_poison_a_row_whose_target_they_cannot_find(wrong):
    """What a GPU does, where looking at the targets would wait for the device: NaN out, NaN back, in that row alone."""
    hidden, weight = HEAD["hidden"].clone().requires_grad_(), HEAD["weight"]
    target = HEAD["target"].clone()
    target[5] = wrong
    plan = HeadPlan(1.0, None, None, row_functions("triton"))
    logprobs, _, _ = LinearLogprob.apply(hidden, weight, None, target, plan, False, None)
    assert logprobs.isnan().nonzero()[:, 0].tolist() == [5]
    logprobs[torch.arange(ROWS) != 5].sum().backward()
    assert not hidden.grad[torch.arange(ROWS) != 5].isnan().any()
    hidden.grad = None
    logprobs, _, _ = LinearLogprob.apply(hidden, weight, None, target, plan, False, None)
    logprobs.sum().backward()
    assert hidden.grad.isnan().any(1).nonzero()[:, 0].tolist() == [5]


@pytest.mark.parametrize("op", ["rto_score", "preference_head", "token_reward_gae"])
@pytest.mark.parametrize(
    "offsets", [[1, 3, 3, 8, 12], [0, 3, 3, 8, 11], [0, 3, 3, 8, 13], [0, 8, 3, 3, 12], [-1, 3, 3, 8, 12]]
)
def test_offsets_that_do_not_cut_the_rows_into_sequences(op, offsets):
    with pytest.raises(ValueError, match=rf"^{op}: cu_seqlens must"):
        call(op, cu_seqlens=torch.tensor(offsets).int())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", CASES)
def test_an_empty_batch(op, backend):
    lengths = {ROWS: 0, ROWS + 2: 0, SEQUENCES: 0, SEQUENCES // 2: 0}
    given = {
        name: x if name in ("weight", "bias", "loss_scale", "cu_seqlens") else x[: lengths[x.shape[0]]]
        for name, x in CASES[op][1].items()
    }
    if "cu_seqlens" in given:
        given["cu_seqlens"] = torch.zeros(1).int()
    if op == "rto_score":
        # a pack without an answer
        given["target"] = CASES[op][1]["target"]
    out = outputs(call(op, backend, **given))
    assert all(x.numel() == 0 or x == 0 for x in out)


def test_more_logits_than_int32_counts():
    """45,000 x 50,304 = 2.26e9 logits, one row in 9,000 looked at."""
    rows, vocab = 45_000, 50_304
    hidden, weight = rand(rows, 1), rand(vocab, 1)
    target = torch.arange(rows) * 7 % vocab
    got = linear_logprob(hidden, weight, target)
    at = torch.tensor([0, 8_999, 17_999, 26_999, 35_999, 42_690, 42_691, rows - 1])
    wanted, _, _ = linear_logprob_reference(hidden[at].double(), weight.double(), target[at])
    torch.testing.assert_close(got[at].double(), wanted, rtol=0, atol=2e-5)
