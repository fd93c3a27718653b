from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.model import attention
from rto_fast.model.exact import check_packing
from rto_fast.model.load import load_language_model
from rto_fast.model.logprobs import response_logprobs
from rto_fast.packing import PackedBatch, microbatches, pack, segment_gather, select
from tests.tiny import ARCHITECTURES, SHARED, language_model, sequences

TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=9)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6), st.sampled_from(["token", "sequence"]))
@settings(max_examples=200, deadline=None)
def test_rows_are_decisions(pairs, average):
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    batch = pack(prompts, responses, average)
    assert batch.num_rows == sum(len(p) + len(r) - 1 for p, r in pairs)
    assert batch.target_ids[batch.response_rows].tolist() == [t for r in responses for t in r]
    for s, (prompt, response) in enumerate(pairs):
        a, b = batch.cu_seqlens[s : s + 2].tolist()
        assert [*batch.input_ids[a:b].tolist(), batch.target_ids[b - 1].item()] == prompt + response
        assert batch.position_ids[a:b].tolist() == list(range(b - a))
        weights = batch.weights[a:b]
        assert weights[: len(prompt) - 1].sum() == 0
        expected = len(response) if average == "token" else 1.0
        assert weights[len(prompt) - 1 :].sum().item() == pytest.approx(expected, rel=1e-5)
    assert batch.max_seqlen == max(len(p) + len(r) - 1 for p, r in pairs)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
@settings(max_examples=300, deadline=None)
def test_microbatches_cover_every_item_once_within_the_budget(lengths, budget):
    groups = microbatches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in g) <= budget for g in groups)
    assert all([lengths[i] for i in g] == sorted((lengths[i] for i in g), reverse=True) for g in groups)


def test_a_sequence_longer_than_the_budget_is_named():
    with pytest.raises(ValueError, match="microbatch_rows must hold the longest sequence: 9 rows, got 8"):
        microbatches([3, 9], 8)


@pytest.mark.parametrize("empty, name", [(([], [1]), "prompt"), (([1], []), "response")])
def test_empty_parts_are_refused(empty, name):
    with pytest.raises(ValueError, match=f"empty {name}"):
        pack([empty[0]], [empty[1]])


def test_segment_gather_takes_whole_sequences_in_the_order_asked():
    offsets = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    assert segment_gather(offsets, [2, 0, 1]).tolist() == [2, 3, 4, 0, 1]


@given(
    st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6), st.sampled_from(["token", "sequence"]), st.randoms()
)
@settings(max_examples=200, deadline=None)
def test_selected_sequences_are_packed_as_if_alone(pairs, average, draw):
    """A rollout is packed once; every mini-batch of it is what packing its answers anew would give, to the bit."""
    chosen = draw.sample(range(len(pairs)), draw.randint(0, len(pairs)))
    whole = pack([p for p, _ in pairs], [r for _, r in pairs], average)
    got, places = select(whole, chosen)
    want = pack([pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen], average)
    assert got.max_seqlen == want.max_seqlen
    for field in fields(PackedBatch):
        if field.name != "max_seqlen":
            mine, theirs = getattr(got, field.name), getattr(want, field.name)
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), field.name
    assert whole.responses(whole.target_ids)[places].tolist() == [t for i in chosen for t in pairs[i][1]]


LENGTHS = [(3, 4), (1, 1), (5, 9), (2, 5), (3, 4), (1, 12)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_equals_alone(architecture):
    model = language_model(architecture)
    prompts, responses = sequences(LENGTHS)
    assert check_packing(model, list(zip(prompts, responses, strict=True)), torch.float32, 64) < 5e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_gradients_equal_the_sum_of_those_alone(architecture):
    model = language_model(architecture).double()
    prompts, responses = sequences(LENGTHS)

    def gradients(groups):
        model.zero_grad()
        for group in groups:
            batch = pack([prompts[i] for i in group], [responses[i] for i in group])
            response_logprobs(model, batch, 64).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for whole, alone in zip(gradients([range(6)]), gradients([[i] for i in range(6)]), strict=True):
        torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok105"])
def test_packed_equals_alone_on_real_models(name):
    path = SHARED / "models" / name
    if not path.is_dir():
        pytest.skip(f"no {path.name} beside the repository")
    model = load_language_model(str(path))
    prompts, responses = sequences([(5, 40), (1, 3), (60, 100), (8, 40)], vocab_size=100)
    assert check_packing(model, list(zip(prompts, responses, strict=True)), torch.float32, 64) < 1e-4


def test_the_self_test_notices_a_leak_between_sequences(monkeypatch):
    model = language_model("llama")
    prompts, responses = sequences(LENGTHS)

    def leaking(module, query, key, value, mask, scaling=None, **_):
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    attention.AttentionInterface.register(attention.NAME, leaking)
    try:
        with pytest.raises(ValueError, match="model.path: packed log-probs of LlamaForCausalLM differ"):
            check_packing(model, list(zip(prompts, responses, strict=True)), torch.float32, 64)
    finally:
        attention.register()
    assert check_packing(model, list(zip(prompts, responses, strict=True)), torch.float32, 64) < 5e-6


def test_attention_sinks_are_refused():
    q = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"attention sinks \(Linear\) are not supported"):
        attention.packed_attention(torch.nn.Linear(1, 1), q, q, q, None, s_aux=torch.zeros(2))


def test_copies_to_a_gpu_do_not_wait_and_come_from_pinned_memory(monkeypatch):
    batch, pinned, sent = pack([[1, 2]], [[3, 4]]), [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, device, non_blocking=False: sent.append(non_blocking) or x)
    batch.to("cuda:0")
    assert len(pinned) == len(sent) == 7 and all(sent)
    batch.to("cpu")
    assert len(pinned) == 7 and not any(sent[7:])
