"""The oracle's scores against hand counts, and its optimum against whatever else can be said."""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rto_fast.tasks.quickstart.grammar import MAX_ASKED, Question, all_questions, best_answer, sample_answer
from rto_fast.tasks.quickstart.knowledge import BOS, EOS, MYTHS, PAD, vocabulary
from rto_fast.tasks.quickstart.oracle import best_return, oracle_return, token_scores, token_signs

PROMPT = "what is the colour and sound of the dog ?"  # brown, woof
WORDS = vocabulary()
QUESTIONS = [question for num in range(1, MAX_ASKED + 1) for question in list(all_questions(num))[::37]]

BY_HAND = [
    ("sure , the dog is brown . it says woof . <eos>", [0.25, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0.5]),
    ("it says woof . it is brown . <eos>", [0, 0, 1, 0, 0, 0, 1, 0, 0.5]),
    ("the dog is pink . it says woof . <eos>", [0, 0, 0, -1, 0, 0, 0, 1, 0, 0.5]),
    ("the dog is brown . <eos>", [0, 0, 0, 1, 0, -1]),
    ("<eos>", [-2]),
    # a second try at the same fact earns nothing and costs the detour
    ("it is pink . it is brown . it says woof . <eos>", [0, 0, -1, 0, 0, -0.5, 0, 0, 0, 0, 1, 0, 0.5]),
    # told already, and all told: the word that goes on is to blame, not the sentence after it
    ("it is brown . it is brown . <eos>", [0, 0, 1, 0, 0, -0.5, 0, 0, -1]),
    ("it is brown . it says woof . it is brown . <eos>", [0, 0, 1, 0, 0, 0, 1, 0, -0.5, 0, 0, 0, 0.5]),
    # a fact that nobody asked for: right, then wrong
    ("it eats meat . <eos>", [0, -0.5, 0, 0, -2]),
    ("it eats grass . <eos>", [0, -0.5, -1, 0, -2]),
    # another animal: its facts earn nothing, and a lie about it is a lie
    ("the cat is grey . <eos>", [0, -0.5, 0, 0, 0, -2]),
    ("the cat is brown . <eos>", [0, -0.5, 0, -1, 0, -2]),
    ("well um it is brown . like it says woof . <eos>", [-0.25, -0.25, 0, 0, 1, 0, -0.25, 0, 0, 1, 0, 0.5]),
    ("figure it out yourself . <eos>", [-1, 0, 0, 0, 0, -2]),
    ("who cares . it is brown . <eos>", [-1, 0, 0, 0, 0, 1, 0, -2 + 1]),
    ("it is brown . it says woof . go away . <eos>", [0, 0, 1, 0, 0, 0, 1, 0, -1, 0, 0, 0.5]),
    # `sure` is polite as the first word only
    ("sure sure , it is brown . <eos>", [0.25, -0.25, -0.25, -0.25, -0.25, -0.25, 0, -2]),
    ("well sure . <eos>", [-0.25, -0.25, 0, -2]),
    # fragments up to the next full stop
    ("brown woof . <eos>", [-0.25, -0.25, 0, -2]),
    ("it is woof . it says woof . <eos>", [0, 0, -0.25, 0, 0, 0, 1, 0, -1]),
    (". . , <eos>", [-0.25, -0.25, -0.25, -2]),
    ("<pad> <bos> <unk> <eos>", [-0.25, -0.25, -0.25, -2]),
    # all told but the last sentence is not finished
    ("it is brown . it says woof <eos>", [0, 0, 1, 0, 0, 0, 1, -0.25]),
    # cut off: the last token pays for the missing end and for what was not told
    ("it is brown . it says woof .", [0, 0, 1, 0, 0, 0, 1, -1]),
    ("the dog is brown", [0, 0, 0, 1 - 1 - 1]),
    ("the", [0 - 1 - 2]),
]


@pytest.mark.parametrize(("answer", "scores"), BY_HAND, ids=[answer for answer, _ in BY_HAND])
def test_scores_by_hand(answer, scores):
    assert token_scores(PROMPT, answer.split()) == scores
    assert oracle_return(PROMPT, answer.split()) == sum(scores)
    assert token_signs(PROMPT, answer.split()) == [(s > 0) - (s < 0) for s in scores]


def test_better_answers_score_more():
    ranking = [
        "sure , the dog is brown . it says woof . <eos>",
        "the dog is brown . it says woof . <eos>",
        "well the dog is brown . it says woof . <eos>",
        "the dog is brown . it says woof . it is brown . <eos>",
        "the dog is brown . it says woof . it is pink . <eos>",
        "the dog is brown . <eos>",
        "who cares . the dog is brown . <eos>",
        "the dog is pink . it says moo . <eos>",
        "<eos>",
        "well well <eos>",
        "figure it out yourself . <eos>",
        "well " * 28,
    ]
    returns = [oracle_return(PROMPT, answer.split()) for answer in ranking]
    assert returns == sorted(returns, reverse=True)
    assert len(set(returns)) == len(returns)


@pytest.mark.parametrize("num_asked", [1, 2, 3])
def test_silence_and_endless_talk_are_far_below_the_optimum(num_asked):
    question = next(all_questions(num_asked))
    best = [*best_answer(question), EOS]
    assert oracle_return(question.prompt, [EOS]) == best_return(question.prompt) - (2 * num_asked + 0.75)
    for limit in (len(best) - 1, 28):
        for filler in (PAD, "well", "."):
            endless = (best[:-1] + [filler] * 28)[:limit]
            assert oracle_return(question.prompt, endless) <= best_return(question.prompt) - 1.5
    myths = [MYTHS.get((question.animal, attribute)) for attribute in question.asked]
    assert any(myths) or num_asked == 1


@pytest.mark.parametrize("question", QUESTIONS[::7], ids=lambda q: q.prompt)
def test_the_best_answer_has_the_best_return(question):
    answer = [*best_answer(question), EOS]
    assert oracle_return(question.prompt, answer) == best_return(question.prompt) == len(question.asked) + 0.75
    assert min(token_scores(question.prompt, answer)) == 0


EDITS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.lists(st.sampled_from(WORDS[4:]), max_size=3)))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(QUESTIONS), EDITS)
def test_no_edit_beats_the_optimum(question, edits):
    words = best_answer(question)
    for at, removed, inserted in edits:
        words[at : at + removed] = inserted
    assert_not_better(question, words)


def test_thousands_of_random_mutations_do_not_beat_the_optimum():
    rng = Random(0)
    for _ in range(10_000):
        question = rng.choice(QUESTIONS)
        words = best_answer(question)
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(words))
            # words of the answer itself come back often: repeats and swaps are the likeliest loopholes
            words[at : at + rng.randint(0, 3)] = rng.choices(words + rng.choices(WORDS[4:], k=10), k=rng.randint(0, 5))
            words = words or ["it"]
        assert_not_better(question, words)


def assert_not_better(question, words):
    best = best_return(question.prompt)
    assert sum(token_scores(question.prompt, [*words, EOS])) <= best
    if words:
        assert sum(token_scores(question.prompt, words)) <= best - 1.5


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(QUESTIONS), st.lists(st.sampled_from([w for w in WORDS if w != EOS]), min_size=1, max_size=40))
def test_garbage_is_read_and_does_not_pay(question, words):
    scores = token_scores(question.prompt, [*words, EOS])
    assert len(scores) == len(words) + 1
    assert sum(s > 0 for s in scores) <= len(question.asked) + 2


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(QUESTIONS), st.integers(0, 10**6))
def test_a_score_depends_on_the_words_so_far_only(question, seed):
    answer = [*sample_answer(Random(seed), question), EOS]
    whole = token_scores(question.prompt, answer)
    for cut in range(1, len(answer)):
        assert token_scores(question.prompt, answer[:cut])[:-1] == whole[: cut - 1]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="response must hold at least one token"):
        token_scores(PROMPT, [])
    with pytest.raises(ValueError, match="2 tokens after it"):
        token_scores(PROMPT, ["it", EOS, "is", BOS])
    for prompt in ("hello", "what is the colour of the colour ?", PROMPT + " ", "colour of the dog"):
        with pytest.raises(ValueError, match="parse_prompt: prompt must be a question"):
            token_scores(prompt, [EOS])
    assert Question("dog", ("colour", "sound")).prompt == PROMPT


def test_grammar_and_oracle_need_no_torch():
    code = (
        "import sys, rto_fast.tasks.quickstart.oracle as _; sys.exit(bool({'torch', 'transformers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
