"""`python -m rto_fast.theory`: three columns, a verdict, and an exit status that says whether all holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from rto_fast.theory import __main__ as command
from rto_fast.theory.check import Check

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rto_fast.theory", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_command_prints_claim_bound_measured():
    done = run("--only", "lemma-1", "prop-c.2", "--instances", "10")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert next(text for text in lines if "claim" in text).split() == ["claim", "bound", "measured", "verdict"]
    assert "[lemma-1]" in done.stdout and "[prop-c.2]" in done.stdout and "[thm-4.2]" not in done.stdout
    assert any("r -> Q* -> r" in text and "<= 1e-10" in text and text.endswith("holds") for text in lines)
    assert lines[-1].startswith("5 hold, 0 do not hold as printed, 0 fail; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--instances", "2"], "rto_fast: error: instances must be 10 or more, got 2"), (["--only", "thm-9"], "thm-9")],
)
def test_a_mistake_is_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.parametrize(("passed", "status"), [(True, 0), (False, 1)])
def test_one_failure_is_exit_code_1(monkeypatch, capsys, passed, status):
    checks = [Check("a", "b", "c", True), Check("d", "e", "f", True, printed=False), Check("g", "h", "i", passed)]
    monkeypatch.setattr(command, "SECTIONS", {"lemma-1": ("Lemma", lambda seed, instances: checks)})
    monkeypatch.setattr(sys, "argv", ["theory"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == status
    printed = capsys.readouterr().out
    assert "not as printed" in printed and ("FAILS" in printed) == (not passed)
    assert f"{2 if passed else 1} hold, 1 do not hold as printed, {0 if passed else 1} fail" in printed


def test_every_section_fits_its_columns():
    for name in ("soft-q", "lemma-1", "theorem-1", "eq-4.3", "eq-13", "eq-5.1", "prop-3.2", "prop-c.2"):
        for check in command.SECTIONS[name][1](0, 30):
            widths = (len(check.claim) <= 80, len(check.bound) <= 24, len(check.measured) <= 36)
            assert all(widths), check
