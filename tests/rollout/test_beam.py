"""Beam search against greedy decoding, enumeration and transformers' generate."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from rto_fast.rollout import Sampling, beam_search, realign, rollout
from rto_fast.rollout.beam import _Search, _Slot

SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def build(vocab=97, seed=0, spread=0.3, config=LlamaConfig, **options):
    torch.manual_seed(seed)
    config = config(**SMALL, vocab_size=vocab, max_position_embeddings=128, initializer_range=spread, **options)
    return AutoModelForCausalLM.from_config(config).eval()


def ragged(num=9, vocab=97, seed=1):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (num,), generator=generator).tolist()
    return [torch.randint(3, vocab, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def token_logprobs(model, prompt, responses):
    """(N, n) float32 log-probs of N answers of the same length."""
    ids = torch.tensor([prompt + list(r) for r in responses])
    logprobs = model(input_ids=ids[:, :-1], use_cache=False).logits[:, len(prompt) - 1 :].float().log_softmax(-1)
    return logprobs.gather(2, ids[:, len(prompt) :, None])[..., 0]


def every_answer(vocab, eos, length):
    """All answers: up to `length` tokens that end at their first EOS, or `length` tokens without one."""
    others = [t for t in range(vocab) if t not in eos]
    for n in range(1, length + 1):
        for start in itertools.product(others, repeat=n - 1):
            yield from (start + (e,) for e in eos)
            if n == length:
                yield from (start + (t,) for t in others)


def enumerated(model, prompt, vocab, eos, length, length_penalty=0.0, reference=None):
    """Every answer and its score, best first."""
    scored = []
    by_length = itertools.groupby(sorted(every_answer(vocab, eos, length), key=len), key=len)
    for n, answers in by_length:
        answers = list(answers)
        scores = token_logprobs(model, prompt, answers).double()
        if reference is not None:
            scores -= token_logprobs(reference, prompt, answers).double()
        scored += zip((scores.sum(1) / n**length_penalty).tolist(), map(list, answers), strict=True)
    return sorted(scored, key=lambda x: -x[0])


@pytest.mark.parametrize("eos", [(), (5,), tuple(range(3, 20))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.3, 0.05])
def test_one_beam_is_greedy_bit_for_bit(eos, dtype, spread):
    # in a flat model every EOS is nearly as likely as the best token, and ending at once would score best
    model, prompts = build(spread=spread).to(dtype), ragged(20)
    greedy = rollout(model, prompts, Sampling(temperature=0, max_new_tokens=16), eos, seed=0, max_batch=7)
    found = beam_search(model, prompts, eos, num_beams=1, max_new_tokens=16, max_batch=7)
    for answer, (best,) in zip(greedy, found, strict=True):
        assert (best.prompt, best.response, best.finish) == (answer.prompt, answer.response, answer.finish)
        assert best.token_scores == answer.logprobs
        assert best.score == pytest.approx(sum(answer.logprobs), abs=1e-12)


def test_ties_go_where_greedy_takes_them():
    model = build()
    model.lm_head.weight.data[1:] = model.lm_head.weight.data[:1]  # every step is a tie of all tokens
    prompts = ragged(20)
    greedy = rollout(model, prompts, Sampling(temperature=0, max_new_tokens=6), (), seed=0)
    found = beam_search(model, prompts, (), num_beams=1, max_new_tokens=6)
    assert [a.response for a in greedy] == [best.response for (best,) in found]
    assert all(a.response == [0] * 6 for a in greedy)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5, 2.0])
@pytest.mark.parametrize("eos", [(2,), (1, 4), ()])
def test_a_wide_beam_is_exhaustive(eos, length_penalty):
    vocab, length = 6, 4
    model, prompts = build(vocab, spread=0.8), [[3], [5, 0, 3], [4, 4]]
    options = dict(num_beams=vocab**length, num_return=25, max_new_tokens=length, length_penalty=length_penalty)
    for prompt, found in zip(prompts, beam_search(model, prompts, eos, **options), strict=True):
        best = enumerated(model, prompt, vocab, eos, length, length_penalty)[:25]
        assert [h.response for h in found] == [answer for _, answer in best]
        assert [h.score for h in found] == pytest.approx([score for score, _ in best], abs=1e-4)
        for h in found:
            assert h.score == pytest.approx(sum(h.token_scores) / len(h.response) ** length_penalty, abs=1e-9)
            assert h.finish == ("eos" if h.response[-1] in eos else "length")


def test_the_implicit_reward_is_searched_exhaustively():
    vocab, length, eos = 6, 4, (2,)
    model, reference = build(vocab, spread=0.8), build(vocab, seed=1, spread=0.6)
    prompts = [[3], [5, 0, 3], [4, 4]]
    options = dict(num_beams=vocab**length, num_return=9, max_new_tokens=length, reference=reference)
    for prompt, found in zip(prompts, beam_search(model, prompts, eos, **options), strict=True):
        best = enumerated(model, prompt, vocab, eos, length, reference=reference)[:9]
        assert [h.response for h in found] == [answer for _, answer in best]
        assert [h.score for h in found] == pytest.approx([score for score, _ in best], abs=1e-4)
    same = beam_search(model, prompts, eos, num_beams=3, max_new_tokens=4, reference=model)
    assert all(h.score == 0 for (h,) in same)


@pytest.mark.parametrize("num_beams", [2, 5, 20])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig])
def test_same_answers_as_generate(num_beams, length_penalty, config):
    # the canonical search, in generate's words: early_stopping="never"
    model, prompts = build(config=config, **({"sliding_window": 5} if config is MistralConfig else {})), ragged(12)
    eos = tuple(range(3, 9))
    found = beam_search(
        model,
        prompts,
        eos,
        num_beams=num_beams,
        max_new_tokens=14,
        length_penalty=length_penalty,
        max_batch=50,
        num_return=num_beams,
    )
    lengths = set()
    for prompt, hypotheses in zip(prompts, found, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=num_beams,
            do_sample=False,
            max_new_tokens=14,
            eos_token_id=list(eos),
            pad_token_id=1,
            length_penalty=length_penalty,
            early_stopping="never",
            num_return_sequences=num_beams,
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert len(hypotheses) == num_beams
        for best, row, score in zip(hypotheses, out.sequences.tolist(), out.sequences_scores.tolist(), strict=True):
            theirs = row[len(prompt) :]
            assert theirs[: len(best.response)] == best.response and set(theirs[len(best.response) :]) <= {1}
            assert best.score == pytest.approx(score, abs=1e-4)
        lengths.add(len(hypotheses[0].response))
    # the mean favours long answers: the wider the beam, the fewer end early
    assert len(lengths) > 1 or length_penalty == 1


def test_scores_are_those_of_a_plain_forward_and_rows_do_not_meet():
    model, prompts, eos = build(), ragged(15), tuple(range(3, 9))
    options = dict(num_beams=4, num_return=4, max_new_tokens=12)
    alone = [beam_search(model, [p], eos, **options)[0] for p in prompts]
    seen = []
    together = beam_search(model, prompts, eos, **options, max_batch=13, progress=seen.append)
    assert sum(seen) == 15
    for one, many in zip(alone, together, strict=True):
        assert [h.response for h in one] == [h.response for h in many]
        assert len({tuple(h.response) for h in many}) == 4
        assert [h.score for h in many] == sorted((h.score for h in many), reverse=True)
        for h in many:
            logprobs = token_logprobs(model, h.prompt, [h.response])[0]
            torch.testing.assert_close(torch.tensor(h.token_scores), logprobs, atol=1e-4, rtol=0)


def test_a_mixture_is_searched():
    base, proxy, reference = build(seed=0), build(seed=1), build(seed=2)
    prompts, mixed = ragged(6), realign(base, proxy, reference, 0.7)
    greedy = rollout(mixed, prompts, Sampling(temperature=0, max_new_tokens=8), (3, 4), seed=0)
    found = beam_search(mixed, prompts, (3, 4), num_beams=1, max_new_tokens=8)
    assert [a.response for a in greedy] == [best.response for (best,) in found]
    assert beam_search(mixed, [], (3,), num_beams=2) == []


def test_errors_name_the_field():
    model = build()
    for bad in (
        dict(num_beams=0),
        dict(num_beams=2, num_return=3),
        dict(num_beams=1, max_new_tokens=0),
        dict(num_beams=1, length_penalty=float("nan")),
        dict(num_beams=1, max_batch=0),
    ):
        with pytest.raises(ValueError, match=f"beam_search: {list(bad)[-1]}"):
            beam_search(model, [[3]], (), **bad)
    with pytest.raises(ValueError, match="one vocabulary, got 97 and 50 tokens"):
        beam_search(model, [[3]], (), num_beams=2, reference=build(50))
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        beam_search(model, [[3], []], (), num_beams=2, max_new_tokens=8)
    with pytest.raises(ValueError, match="max_position_embeddings=128"):
        beam_search(model, [[3]], (), num_beams=2, max_new_tokens=128)
    torch.nn.init.constant_(model.train().lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="prompt 0 after 0 new tokens are not finite"):
        beam_search(model, [[3]], (), num_beams=2, max_new_tokens=8)
    assert model.training


def test_a_beam_goes_on_while_a_longer_answer_could_win():
    search = _Search.__new__(_Search)
    search.bounded, search.num_return, search.length_penalty, search.max_new_tokens = True, 1, 1.0, 10
    slot = _Slot(0, 1, 3, 0)
    slot.length, slot.found = 2, [(-0.5, None, "eos")]
    # a live sum of -2 may end as a mean of -2 / 10, which beats -1 / 2; one of -6 may not
    assert not search._decided(slot, -2.0) and search._decided(slot, -6.0)
    search.length_penalty = 0.0
    assert search._decided(slot, -0.6) and not search._decided(slot, -0.4)
