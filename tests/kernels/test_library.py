"""Under torch.compile an operator is one node of the graph: nothing breaks, and numbers and gradients stay."""

import pytest
import torch

from rto_fast.kernels.decode_attention import decode_attention
from rto_fast.kernels.linear_logprob import linear_logprob
from rto_fast.kernels.ppo_head import ppo_head
from rto_fast.kernels.preference_head import preference_head
from rto_fast.kernels.rto_score import FactoredLogits, rto_score
from rto_fast.kernels.token_reward_gae import RewardSpec, token_reward_gae

R, H, V = 7, 16, 130
CU = torch.tensor([0, 3, 3, 6, 7], dtype=torch.int32)
BACKENDS = ("native", "reference")


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


def numbers(g, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=g)


def trained(g, bias: bool = True) -> list[torch.Tensor]:
    """hidden, weight and bias that want gradients."""
    found = [numbers(g, R, H), numbers(g, V, H), *([numbers(g, V)] if bias else [])]
    return [x.requires_grad_() for x in found]


def whole(function):
    """Compiled as one graph, or an error."""
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def agree(function, leaves: list[torch.Tensor]) -> None:
    """A loss and whatever else `function` gives, and the leaves' gradients, compiled as they are without."""
    seen = []
    for run in (function, whole(function)):
        for x in leaves:
            x.grad = None
        loss, *others = run(*leaves)
        (3.0 * loss).backward()
        seen.append([loss.detach(), *(x.detach() for x in others), *(x.grad for x in leaves)])
    plain, compiled = seen
    assert len(plain) > len(leaves) and all(x is not None for x in plain)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stats", [False, True])
def test_linear_logprob(g, backend, masked, stats):
    target = torch.randint(V, (R,), generator=g)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1], dtype=torch.bool) if masked else None
    slope = numbers(g, R)

    def loss(hidden, weight, bias):
        options = dict(bias=bias, mask=mask, temperature=0.7, softcap=30.0, return_stats=stats, backend=backend)
        out = linear_logprob(torch.tanh(hidden), weight, target, **options)
        if not stats:
            return (slope * out).sum(), out
        return (slope * out.logprobs + slope.flip(0) * out.entropy).sum(), *out

    agree(loss, trained(g))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("entropy", [False, True])
def test_ppo_head(g, backend, scale, entropy):
    target = torch.randint(V, (R,), generator=g)
    old, advantages, ref = (numbers(g, R) for _ in range(3))
    weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 2.0, 1.0])
    options = dict(kl_coef=0.1, ref_logprobs=ref - 5, loss_scale=scale, backend=backend)
    options |= dict(entropy_coef=0.01) if entropy else {}

    def loss(hidden, weight):
        out = ppo_head(torch.tanh(hidden), weight, target, old - 5, advantages, weights, **options)
        return out.loss, *(x for x in out[1:] if x is not None)

    agree(loss, trained(g, bias=False))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_preference_head(g, backend, kind):
    target = torch.randint(V, (R,), generator=g)
    ref = numbers(g, 4)

    def loss(hidden, weight, bias):
        return preference_head(torch.tanh(hidden), weight, target, CU, ref, bias=bias, loss=kind, backend=backend)

    agree(loss, trained(g))


SPECS = {
    "token": RewardSpec(0.1, 0.03),
    "sentence": RewardSpec(
        0.1,
        0.03,
        clip=0.05,
        granularity="sentence",
        sentence_ends=torch.tensor([0, 1, 0, 0, 0, 1, 0], dtype=torch.bool),
    ),
    "scored": RewardSpec(0.0, 0.03, scores=torch.tensor([1.0, -1.0, 0.5, 2.0]), beta_3=1.0, gamma=0.9, lam=0.5),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
def test_token_reward_gae(g, backend, name):
    columns = [numbers(g, R) for _ in range(4)]

    def run(*columns):
        return token_reward_gae(*columns, CU, SPECS[name], backend=backend)

    for a, b in zip(run(*columns), whole(run)(*columns), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shared", [False, True], ids=["three heads", "one head"])
def test_rto_score(g, backend, name, shared):
    hidden, weights = [numbers(g, 9, H) for _ in range(3)], [numbers(g, V, H) for _ in range(3)]
    target, rows = torch.randint(V, (9,), generator=g), torch.tensor([1, 2, 3, 4, 6, 7, 8])
    values = numbers(g, R)

    def run(*hidden):
        models = [FactoredLogits(h, weights[0 if shared else i], softcap=30.0) for i, h in enumerate(hidden)]
        return rto_score(*models, target, values, CU, SPECS[name], rows=rows, backend=backend)

    plain = run(*hidden)
    for field, a, b in zip(plain._fields, plain, whole(run)(*hidden), strict=True):
        assert (a is b is None) if a is None else torch.equal(a, b), field


def test_decode_attention(g):
    query, keys, values = numbers(g, 3, 4, 8), numbers(g, 3, 2, 5, 8), numbers(g, 3, 2, 5, 8)
    lengths = torch.tensor([1, 5, 3])

    def run(query):
        return decode_attention(query, keys, values, lengths, 0.3, window=4)

    assert torch.equal(run(query), whole(run)(query))


def test_a_buffer_that_is_written_to_breaks_the_graph_and_nothing_else(g):
    target = torch.randint(V, (R,), generator=g)
    hidden, weight = trained(g, bias=False)
    sums = [torch.zeros(V, H) for _ in range(2)]

    def loss(hidden, weight, buffer):
        return linear_logprob(torch.tanh(hidden), weight, target, weight_grad=buffer).sum()

    torch._dynamo.reset()
    loss(hidden, weight, sums[0]).backward()
    torch.compile(loss, backend="aot_eager")(hidden, weight, sums[1]).backward()
    torch.testing.assert_close(*sums)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        whole(loss)(hidden, weight, sums[0])


@pytest.mark.parametrize("name", ["linear_logprob", "ppo_head", "token_reward_gae", "rto_score", "decode_attention"])
def test_every_operator_is_one_of_torchs(name):
    assert hasattr(torch.ops.rto_fast, name)
