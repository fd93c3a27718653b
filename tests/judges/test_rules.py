"""Scores by rule: what counts as right, what is refused, and that no answer can hold a run up."""

import dataclasses
import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rto_fast.judges import Answer, check_scores, rules
from rto_fast.judges.child import Child, TooLong
from rto_fast.judges.rules import rule_scorer
from rto_fast.train import main
from tests.tiny import SHARED

needs_math = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the math-verify library is not installed"
)
ROOT = Path(__file__).parents[2]
HERE = "tests.judges.functions"
TWO = [Answer("p", "four"), Answer("p", "sixsix")]

SOLUTIONS = [
    ("She has 3 + 4 = <<3+4=7>>7 left.\n#### 42", True, "42", 1.0),
    ("#### 41\nNo: #### 42", True, "42", 1.0),
    ("#### 42 is wrong, so\n#### 41", True, "42", 0.0),
    ("that makes 1,234 of them.", True, "1234", 1.0),
    ("A: 1234", True, "1,234", 1.0),
    (r"hence \boxed{42}, 7 more than 35", True, "42", 1.0),
    (r"thus $\boxed{\frac{1}{2}}$.", True, "0.5", 1.0),
    ("The answer is $1,080.00.", True, "... so 1080.\n#### 1,080", 1.0),
    ("she earns $18 a day, $25 with tips", True, "25", 1.0),
    ("it falls to -10", True, "-10", 1.0),
    ("the number is 41", True, "42", 0.0),
    ("no number at all", True, "42", 0.0),
    ("", True, "42", 0.0),
    ("#### ", True, "42", 0.0),
    # cut off at the length limit: only a marked number that is whole counts
    ("which leaves 42", False, "42", 0.0),
    ("#### 42", False, "42", 0.0),
    ("#### 42\nQuestion: what", False, "42", 1.0),
    (r"\boxed{42} which", False, "42", 1.0),
    (r"\boxed{42", False, "42", 0.0),
    # text that a policy may well write, and that no program should compute
    ("#### 9^9^9^9^9", True, "42", 0.0),
]


@needs_math
@pytest.mark.parametrize("response, finished, reference, score", SOLUTIONS)
def test_math_reads_the_final_number(response, finished, reference, score):
    assert rule_scorer("math")([Answer("q", response, finished, reference)]) == [score]


@needs_math
def test_math_outside_the_main_thread():
    scorer, seen = rule_scorer("math"), []
    answers = [Answer("q", f"#### {i}", True, "3") for i in range(5)]
    thread = threading.Thread(target=lambda: seen.append(scorer(answers)))
    thread.start()
    thread.join()
    assert seen == [[0.0, 0.0, 0.0, 1.0, 0.0]]


@needs_math
def test_math_needs_a_right_answer_with_a_number():
    scorer = rule_scorer("math")
    with pytest.raises(ValueError, match=r"rto.score.rule: .* answer 2 of 2 has none"):
        scorer([Answer("q", "1", True, "1"), Answer("q", "1")])
    with pytest.raises(ValueError, match="rto.score.rule: .* no number in the right answer 'many'"):
        scorer([Answer("q", "1", True, "many")])


@needs_math
def test_math_agrees_with_the_labels_of_real_solutions():
    file = SHARED / "gsm8k/model-solutions.jsonl.gz"
    if not file.exists():
        pytest.skip("GSM8K's model solutions (../shared/data) are not beside this checkout")
    with gzip.open(file, "rt") as lines:
        rows = [json.loads(line) for line in lines][::4]
    given = [(r["final"], s) for r in rows for s in r["solutions"].values()]
    scores = rule_scorer("math")([Answer("", s["text"], True, final) for final, s in given])
    right = sum(score == s["correct"] for score, (_, s) in zip(scores, given, strict=True))
    assert right >= 0.999 * len(given), f"{right} of {len(given)}"


def test_math_without_its_library_names_the_install(monkeypatch):
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"rto.score.rule: .* pip install 'rto_fast\[math\]'"):
        rule_scorer("math")


def test_regex_searches_the_response():
    scorer = rule_scorer(r"regex:^f.ur\b")
    assert scorer(TWO) == [1.0, 0.0]
    assert rule_scorer("regex:module:function|six")(TWO) == [0.0, 1.0]
    assert rule_scorer("regex:naïve")([Answer("", "a naïve \ud800 one")]) == [1.0]


def test_regex_that_backtracks_for_ever_is_bounded(monkeypatch):
    monkeypatch.setattr(rules, "REGEX_LIMIT_S", 0.2)
    scorer = rule_scorer("regex:(a+)+$")
    bad = Answer("", "a" * 60 + "b")
    with pytest.warns(UserWarning, match="1 of 3 answers took more than 0.2 s"):
        assert scorer([Answer("", "aa"), bad, Answer("", "ba")]) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="rto.score.rule: the pattern takes more than 0.2 s on 16 answers"):
        scorer([bad] * 20)


def test_the_judging_process_may_die_between_two_answers():
    child = Child("regex", "x", limit_s=5.0)
    assert child.ask({"response": "x"}) is True
    os.kill(child._process.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert child.ask({"response": "y"}) is False
    child.close()
    child.close()


def test_the_judging_process_may_die_over_an_answer():
    child = Child("regex", "(a+)+$", limit_s=60.0)
    child.ask({"response": ""})
    killer = threading.Timer(0.3, os.kill, (child._process.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(TooLong):
        child.ask({"response": "a" * 60 + "b"})
    assert child.ask({"response": "a"}) is True
    child.close()


def test_a_rule_that_lives_to_the_interpreters_end_says_nothing_there():
    program = (
        "import __main__, threading, time\n"
        "from rto_fast.judges import Answer; from rto_fast.judges.rules import rule_scorer\n"
        "rule = rule_scorer('regex:x'); print(rule([Answer('', 'x')]))\n"
        "threading.Thread(target=lambda: time.sleep(99), daemon=True).start()"  # then modules go before what they hold
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[1.0]\n" and done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the bound on processor time is Linux's")
def test_the_judging_process_outlives_no_killed_trainer():
    """Also when it is in the middle of an answer that takes for ever."""
    program = (
        "import os, threading; from rto_fast.judges.child import Child\n"
        "child = Child('regex', '(a+)+$', limit_s=1.0); child.ask({'response': ''})\n"
        "print(child._process.pid, flush=True); threading.Timer(0.2, os.kill, (os.getpid(), 9)).start()\n"
        "child.ask({'response': 'a' * 60 + 'b'})"
    )
    trainer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)
    assert trainer.returncode == -signal.SIGKILL, trainer.stderr
    proc = Path("/proc") / trainer.stdout.decode().strip() / "cmdline"
    for _ in range(300):
        if not proc.exists() or not proc.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail("the judging process still runs")


@pytest.mark.parametrize(
    "name, scores",
    [
        ("lengths", [4.0, 6.0]),
        ("as_tensor", [4.0, 6.0]),
        ("numpy_scalars", [4.0, 6.0]),
        ("Graded.all_one", [1.0, 1.0]),
    ],
)
def test_a_function_of_ones_own(name, scores):
    found = rule_scorer(f"{HERE}:{name}")(TWO)
    assert found == scores and all(type(s) is float for s in found)


def readme_example() -> str:
    return (ROOT / "README.md").read_text().partition("`rewards.py`")[2]


def help_text(capsys) -> str:
    """--help without its boxes and line breaks."""
    with pytest.raises(SystemExit):
        main(["--help"])
    return " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())


def test_the_examples_of_a_rule_of_ones_own_are_rules(capsys, tmp_path, monkeypatch):
    indented = re.search(r"\n\n((?:    .*\n)+)", readme_example())[1]
    one_line = re.search(r"e\.g\. (def score\(answers\): .*? for a in answers\])", help_text(capsys))[1]
    documented = re.search(r"\n\n((?:        .*\n)+)", Answer.__doc__)[1]
    two = [Answer("p", "four", finished=False), Answer("p", "six words of an answer here")]
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, scores in [
        ("readme_rewards", indented, [-0.01, 0.94]),
        ("answer_rewards", documented, [-0.01, 0.94]),
        ("help_rewards", one_line, [0.0, 1.0]),
    ]:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        assert rule_scorer(f"{name}:score")(two) == pytest.approx(scores)


def test_every_field_of_an_answer_is_documented(capsys):
    said, page = help_text(capsys), readme_example().partition("\n\n")[0]
    for field in dataclasses.fields(Answer):
        assert f".{field.name} " in said and f"`{field.name}`" in page


@pytest.mark.parametrize(
    "name, message",
    [
        ("one_short", "wanted 2 scores, one per answer, got 1"),
        ("second_is_nan", "every score must be a finite number, got nan for answer 2 of 2"),
        ("strings", "every score must be a finite number, got 'good' for answer 1 of 2"),
        ("nothing", "wanted a list of 2 scores, one per answer, got None"),
        ("unspeakable", "every score must be a finite number, got something of type Unspeakable for answer 1 of 2"),
        ("a_matrix", r"every score must be a finite number, got \[0.0\] for answer 1 of 2"),
    ],
)
def test_a_wrong_function_is_one_sentence(name, message):
    with pytest.raises(ValueError, match=f"^rto.score.rule {HERE}:{name}: {message}$"):
        rule_scorer(f"{HERE}:{name}")(TWO)


@pytest.mark.parametrize(
    "name, message",
    [
        ("key_error_at_six", "raised KeyError: 'sixsix' for answer 2 of 2"),
        ("exits_at_six", "raised SystemExit: no more for answer 2 of 2"),
        ("asserts", "raised AssertionError: one at a time for a list of 2 answers"),
        ("recurses", "raised RecursionError: maximum recursion depth exceeded for answer 1 of 2"),
        ("own_exception", "raised Own for answer 1 of 2"),
        ("no_array", "raised OSError: it is gone for answer 1 of 2"),
    ],
)
def test_what_a_function_raises_is_one_sentence_that_names_the_answer(name, message):
    with pytest.raises(ValueError) as caught:
        rule_scorer(f"{HERE}:{name}")(TWO)
    assert str(caught.value) == f"rto.score.rule {HERE}:{name}: {message}; correct it, the same command then goes on"
    assert caught.value.__cause__ is not None  # what --traceback shows


def test_an_interrupt_within_a_function_is_an_interrupt():
    with pytest.raises(KeyboardInterrupt):
        rule_scorer(f"{HERE}:interrupted")(TWO)


def test_a_slow_function_is_not_asked_again_for_long(monkeypatch):
    monkeypatch.setattr(rules, "SEARCH_LIMIT_S", 0.0)
    three = [Answer("p", "four"), Answer("p", "four"), Answer("p", "sixsix")]
    with pytest.raises(ValueError, match="raised KeyError: 'sixsix' for a list of 3 answers"):
        rule_scorer(f"{HERE}:key_error_at_six")(three)


@pytest.mark.parametrize(
    "source, message",
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(5)", "raised SystemExit: 5"),
        ("def score(answers)", "raised SyntaxError: expected ':' (broken_rule.py, line 1)"),
        ("class Own(BaseException): pass\nraise Own('mine')", "raised Own: mine"),
        ("from math import no_such", "cannot import 'broken_rule' (cannot import name 'no_such'"),
    ],
)
def test_a_module_that_fails_on_import_is_one_sentence(source, message, tmp_path, monkeypatch):
    (tmp_path / "broken_rule.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError) as caught:
        rule_scorer("broken_rule:score")
    assert str(caught.value).startswith("rto.score.rule") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rule, message",
    [
        ("", "wanted math, regex:PATTERN or module:function, got ''"),
        ("maths", r"got .maths., did you mean .math.\?"),
        ("regex:", "is followed by a pattern"),
        ("regex:(", r"'\(' is not a regular expression: missing \), unterminated subpattern"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        (":f", "wanted math"),
        ("..x:f", "cannot import '..x'"),
        (f"{HERE}:lenghts", "has no 'lenghts', did you mean 'lengths'?"),
        (f"{HERE}:not_a_function", "must be a function, got int"),
    ],
)
def test_a_rule_that_cannot_be_is_one_sentence(rule, message):
    with pytest.raises(ValueError, match="rto.score.rule: .*" + message) as caught:
        rule_scorer(rule)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "scores, message",
    [
        ([1.0], "wanted 2 scores, one per answer, got 1"),
        ([1.0, float("inf")], "got inf for answer 2 of 2"),
        ([10**400, 1], "for answer 1 of 2"),
        ([1.0, None], "got None for answer 2 of 2"),
        ("ab", "wanted a list of 2 scores, one per answer, got 'ab'"),
        (iter([1, 2]), "wanted a list of 2 scores"),
    ],
)
def test_check_scores(scores, message):
    with pytest.raises(ValueError, match="^the.field: .*" + message):
        check_scores(scores, 2, "the.field")
    check_scores([1, 0.5], 2, "the.field")
    check_scores([], 0, "the.field")
