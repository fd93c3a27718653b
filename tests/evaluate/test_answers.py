"""How varied answers are, what decides a comparison, and answers.jsonl."""

import json
import os

import numpy as np
import pytest

from rto_fast.evaluate.answers import answer_text, write_answers
from rto_fast.evaluate.policies import Evaluation, distinct
from rto_fast.evaluate.saved import Saved
from rto_fast.rollout import Completion


def completion(response: list[int], finish: str = "eos", prompt: list[int] = (1, 7)) -> Completion:
    return Completion(list(prompt), response, [0.0] * len(response), finish)


class Letters:
    """Token 10 + i is the i-th letter; token 99 is half a surrogate pair."""

    bos_token_id = 1

    def decode(self, ids):
        return "".join({1: "<s>", 2: "</s>", 99: "\ud83d"}.get(i, chr(87 + i)) for i in ids)


def evaluation(answers, **fields) -> Evaluation:
    values = {name: np.arange(len(answers), dtype=float) for name in ("kl", "implicit")}
    return Evaluation(answers, **{**values, "oracle": None, **fields})


def test_distinct_by_hand():
    # 5 5 6 and 5 6: words {5, 6} of 5, pairs 55 56 56: two of three; the EOS of both is left out
    answers = [completion([5, 5, 6, 2]), completion([5, 6, 2])]
    assert distinct(answers, 1) == pytest.approx(2 / 5)
    assert distinct(answers, 2) == pytest.approx(2 / 3)
    assert distinct([completion([2])], 1) == 0
    # cut off: the last token is a word like any other, also where it would have been EOS
    assert distinct([completion([5, 6], "length")], 1) == 1
    assert distinct([completion([5], "length")], 2) == 0


def test_oracle_decides_before_the_reward_model_before_dpo():
    answers = [completion([5, 2]), completion([6, 6, 2])]
    only_dpo = evaluation(answers)
    scored = evaluation(answers, score=np.array([3.0, 5.0]))
    known = evaluation(answers, score=np.array([3.0, 5.0]), oracle=np.array([1.0, 0.0]))
    assert [e.judge for e in (only_dpo, scored, known)] == ["implicit_reward", "score", "oracle_return"]
    assert scored.judged.tolist() == [3, 5] and known.judged.tolist() == [1, 0]
    assert "score" not in only_dpo.summary()
    summary = known.summary()
    assert summary["score"]["mean"] == 4 and summary["oracle_return"]["mean"] == 0.5
    assert (summary["distinct_1"], summary["distinct_2"]) == (pytest.approx(2 / 3), 1)


def test_answers_are_written_by_prompt_and_policy(tmp_path):
    file = tmp_path / "answers.jsonl"
    first = evaluation([completion([10, 99, 11, 2], prompt=[1, 30]), completion([12], "length")])
    write_answers(file, Letters(), {"a": first, "b": evaluation([completion([13, 2])] * 2)}, 1)
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(x["index"], x["policy"]) for x in lines] == [(0, "a"), (0, "b")]
    assert lines[0] == {
        "index": 0,
        "prompt": "u",
        "policy": "a",
        "response": "a\ufffdb",
        "judged": 0.0,
        "kl": 0.0,
        "tokens": 4,
        "finish": "eos",
    }


def test_a_given_judgement_replaces_the_own_and_may_be_missing(tmp_path):
    file = tmp_path / "answers.jsonl"
    both = evaluation([completion([10, 2]), completion([11], "length")])
    write_answers(file, Letters(), {"a": both}, 9, {"a": np.array([0.5, np.nan])})
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [x["judged"] for x in lines] == [0.5, None]
    assert [x["finish"] for x in lines] == ["eos", "length"]


def test_an_emoji_survives_and_half_of_one_does_not():
    class Emoji(Letters):
        def decode(self, ids):
            return " \U0001f600\ud83d\n"

    assert answer_text(Emoji(), completion([5, 2])) == "\U0001f600\ufffd"


def test_saved_answers_that_are_a_pipe_or_endless_are_made_again(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    assert [Saved(tmp_path).load(key) for key in "ab"] == [None, None]
