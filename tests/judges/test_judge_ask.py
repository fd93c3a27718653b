"""Many questions at once: nothing lost, nothing asked twice, and an end when no question would succeed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rto_fast.judges.llm.ask import ask_all
from rto_fast.judges.llm.cache import Cache
from rto_fast.judges.llm.client import Failure
from rto_fast.judges.llm.compare import comparisons, judge

QUESTIONS = [f"question {i}" for i in range(40)]


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "judge.sqlite", "m", {"temperature": 0.0}) as cache:
        yield cache


class Asked:
    """A judge in this process: reply(question, how many were asked before) or raise; counts calls and overlap."""

    def __init__(self, reply):
        self.reply, self.questions, self.lock, self.now, self.most = reply, [], threading.Lock(), 0, 0

    def __call__(self, question: str) -> str:
        with self.lock:
            number = len(self.questions)
            self.questions.append(question)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.reply(question, number)
        finally:
            with self.lock:
                self.now -= 1


def ask(questions, asked, cache, concurrency=4):
    told = []
    replies = ask_all(questions, asked, cache, concurrency=concurrency, progress=told.append)
    assert sum(told) == len(set(questions))
    return replies


def test_every_question_is_asked_once_and_so_many_at_a_time(cache):
    asked = Asked(lambda question, number: time.sleep(0.01) or question.upper())
    replies = ask(QUESTIONS + QUESTIONS, asked, cache)
    assert replies.texts == {q: q.upper() for q in QUESTIONS} and not replies.failed
    assert sorted(asked.questions) == sorted(QUESTIONS)
    assert 2 <= asked.most <= 4
    again = ask(QUESTIONS, Asked(None), cache)
    assert again.texts == replies.texts and again.cached == 40


def test_another_model_or_setting_is_asked_anew(tmp_path):
    for model, settings in (("m", {}), ("n", {}), ("m", {"temperature": 0.0})):
        with Cache(tmp_path / "judge.sqlite", model, settings) as cache:
            asked = Asked(lambda question, number: "A")
            ask(QUESTIONS[:3], asked, cache)
            assert len(asked.questions) == 3


def test_a_question_that_cannot_be_answered_is_left_out_and_asked_again(cache):
    def reply(question, number):
        if question.endswith("7"):
            raise Failure("status 400, too long", "question")
        return "A"

    replies = ask(QUESTIONS, Asked(reply), cache)
    assert len(replies.texts) == 36 and set(replies.failed.values()) == {"status 400, too long"}
    asked = Asked(lambda question, number: "B")
    assert len(ask(QUESTIONS, asked, cache).texts) == 40
    assert sorted(asked.questions) == ["question 17", "question 27", "question 37", "question 7"]


@pytest.mark.parametrize(
    ("whose", "at_most"),
    [("settings", 10 + 2 * 4), ("server", 10 + 3 * 4), ("question", 10 + 20 + 4)],
)
def test_it_stops_when_no_question_would_succeed_and_goes_on_later(cache, whose, at_most):
    told = []

    def reply(question, number):
        if number < 10:
            return "A"
        while sum(told) < 10:  # the ten are kept before anything fails
            time.sleep(0.001)
        raise Failure("all is lost", whose)

    asked = Asked(reply)
    with pytest.raises(ConnectionError, match="judge: all is lost; 10 of 40 questions are answered and kept in"):
        ask_all(QUESTIONS, asked, cache, concurrency=4, progress=told.append)
    time.sleep(0.1)
    assert len(asked.questions) <= at_most
    asked = Asked(lambda question, number: "A")
    replies = ask(QUESTIONS, asked, cache)
    assert (replies.cached, len(asked.questions)) == (10, 30)


def test_a_server_that_answers_nothing_is_what_failed_however_few_the_questions(cache):
    def dead(question, number):
        raise Failure("no connection (refused)", "server")

    said = r"^judge: no connection \(refused\); 0 of 2 questions are answered and kept in .*, the same command asks the"
    with pytest.raises(ConnectionError, match=said):
        ask(QUESTIONS[:2], Asked(dead), cache)
    # beside answers it may be the question's doing
    ask(QUESTIONS[2:4], Asked(lambda question, number: "A"), cache)
    assert len(ask(QUESTIONS[:4], Asked(dead), cache).failed) == 2


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_question_that_crashes_the_server_stops_no_other(cache, concurrency):
    def reply(question, number):
        if question.endswith("3"):
            raise Failure("status 500", "server")
        return "A"

    replies = ask(QUESTIONS, Asked(reply), cache, concurrency=concurrency)
    assert (len(replies.texts), len(replies.failed)) == (36, 4)


def test_a_killed_run_keeps_what_was_answered(tmp_path):
    script = tmp_path / "ask.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rto_fast.judges.llm.ask import ask_all\n"
        "from rto_fast.judges.llm.cache import Cache\n"
        "def ask(q):\n"
        "    time.sleep(0.05)\n"
        "    return 'A'\n"
        "cache = Cache(Path(sys.argv[1]), 'm', {})\n"
        "ask_all([str(i) for i in range(500)], ask, cache, concurrency=2, progress=lambda n: print(n, flush=True))\n"
    )
    file = tmp_path / "judge.sqlite"
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, script, file], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    told = sum(int(process.stdout.readline()) for _ in range(12))
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Cache(file, "m", {}) as cache:
        kept = sum(cache.get(str(i)) is not None for i in range(500))
    assert told <= kept < 500


def test_what_is_no_cache_is_named_and_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes, longer than a header of a hundred bytes " * 10)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="llm.cache: .*notes.txt is no cache of judgements"):
        Cache(file, "m", {})
    assert file.read_bytes() == before


def test_a_cache_that_is_a_pipe_is_named(tmp_path):
    os.mkfifo(tmp_path / "judge.sqlite")
    with pytest.raises(ValueError, match="llm.cache: .*judge.sqlite is a pipe"):
        Cache(tmp_path / "judge.sqlite", "m", {})


def test_a_damaged_cache_is_named(tmp_path):
    file = tmp_path / "judge.sqlite"
    with Cache(file, "m", {}) as cache:
        for i in range(200):
            cache.put(str(i), "A" * 200)
    damaged = bytearray(file.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    file.write_bytes(damaged)
    with Cache(file, "m", {}) as cache, pytest.raises(ValueError, match="llm.cache: .* cannot be read .*delete it"):
        cache.get("7")


def test_the_order_is_a_coin_of_seed_pair_and_prompt():
    queries = [f"query {i}" for i in range(400)]
    answers = {name: [f"{name} {i}" for i in range(400)] for name in ("sft", "rto")}
    first = [c.policies[0] for c in comparisons("helpful", queries, answers, 0)]
    assert 0.42 < first.count("sft") / 400 < 0.58
    assert first == [c.policies[0] for c in comparisons("helpful", queries, dict(reversed(answers.items())), 0)]
    assert first != [c.policies[0] for c in comparisons("helpful", queries, answers, 1)]


class Prefers:
    """A judge that prefers the longer response, cannot decide where they are equally long."""

    def ask(self, question: str) -> str:
        a, b = (question.partition(f"Response {x}: ")[2].partition("\n")[0] for x in "AB")
        return "no idea" if len(a) == len(b) else f"Comparison: x\nMore helpful: {'A' if len(a) > len(b) else 'B'}"


def test_outcomes_follow_the_policies_and_not_the_places(cache):
    answers = {"short": ["a", "same", "a", "ab"], "long": ["abc", "same", "abc", "cd"]}
    got = judge(["q"] * 4, answers, Prefers(), cache, kind="helpful", seed=3, concurrency=2, progress=lambda n: None)
    np.testing.assert_equal(got.outcomes["short", "long"], [0, 0.5, 0, np.nan])
    counts = got.counts
    assert (counts["comparisons"], counts["identical"], counts["judged"], counts["unparseable"]) == (4, 1, 2, 1)
    assert counts["unparseable_example"] == "no idea" and counts["failed"] == 0
    assert [r["verdict"] for r in got.records] == ["long", "long", None]


def test_a_judge_that_never_names_a_winner_is_an_error_and_its_replies_are_kept(cache):
    class Poet:
        def ask(self, question):
            return "Once upon a time\x1b[2J"

    with pytest.raises(ValueError, match=r"none of 2 comparisons got a verdict: 2 replies name no winner .*\\x1b\[2J"):
        answers = {"a": ["x", "y"], "b": ["z", "w"]}
        judge(["q", "r"], answers, Poet(), cache, kind="tldr", seed=0, concurrency=2, progress=lambda n: None)
    assert cache.file.execute("SELECT count(*) FROM replies").fetchone() == (2,)


def test_where_replies_name_no_winner_and_questions_fail_both_are_shown(cache):
    class Tired:
        def ask(self, question):
            if "Response A: z" in question or "Response B: z" in question:
                return "Once upon a time"
            raise Failure("no whole reply within 1 s", "server")

    said = "1 replies name no winner and 1 questions failed, e.g. 'Once upon a time' and no whole reply within 1 s; try"
    with pytest.raises(ValueError, match=said):
        answers = {"a": ["x", "y"], "b": ["z", "w"]}
        judge(["q", "r"], answers, Tired(), cache, kind="helpful", seed=0, concurrency=2, progress=lambda n: None)
