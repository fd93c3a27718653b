"""Corrupted answers: right but for the swapped facts, grammatical, and decided by the seed."""

import pytest

from rto_fast.tasks.quickstart.corrupt import corrupted_answers
from rto_fast.tasks.quickstart.grammar import parse_prompt
from rto_fast.tasks.quickstart.knowledge import EOS, VALUES
from rto_fast.tasks.quickstart.oracle import best_return, oracle_return, token_scores
from rto_fast.tasks.quickstart.task import split_questions


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_wrong_but_the_swapped_words(seed):
    answers = corrupted_answers(1002, seed)
    held_out = {q.prompt for q in split_questions(seed)[1]}
    for answer in answers:
        right, corrupted = answer.right.split(), answer.corrupted.split()
        assert answer.prompt in held_out
        assert oracle_return(answer.prompt, [*right, EOS]) == best_return(answer.prompt)
        assert [i for i, (a, b) in enumerate(zip(right, corrupted, strict=True)) if a != b] == list(answer.swapped)
        scores = token_scores(answer.prompt, [*corrupted, EOS])
        assert [i for i, score in enumerate(scores) if score < 0] == list(answer.swapped)
        for i in answer.swapped:
            assert any({right[i], corrupted[i]} <= set(values) for values in VALUES.values())
    numbers = [(len(parse_prompt(a.prompt).asked), len(a.swapped)) for a in answers]
    assert set(numbers) == {(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)}


def test_the_seed_decides():
    assert corrupted_answers(200, 0) == corrupted_answers(200, 0) != corrupted_answers(200, 1)
    assert len({a.prompt for a in corrupted_answers(200, 0)}) == 200


@pytest.mark.parametrize("count", [0, -1, 1003])
def test_a_count_that_the_task_does_not_have(count):
    with pytest.raises(ValueError, match="count must be 1 to 1002"):
        corrupted_answers(count, 0)
