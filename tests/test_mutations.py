"""The list of mutations does not rot: each still applies, still is Python, and names tests that are there."""

import ast
import functools
import os
import subprocess
import sys

import pytest

from tests.mutate import ROOT, Mutation, Place, _verdict, load

MUTATIONS = load()


def test_every_mutation_applies_once():
    wrong = []
    for m in MUTATIONS:
        try:
            text = m.apply(ROOT)
        except (OSError, ValueError) as error:
            wrong.append(f"{m.name}: {error}")
            continue
        if m.file.endswith(".py"):
            ast.parse(text)
        if m.old == m.new or bool(m.tests) == bool(m.equivalent):
            wrong.append(f"{m.name}: wanted another text, and tests or a reason why there can be none")
    assert not wrong, "\n".join(wrong)
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 150


def test_the_functions_that_kill_them_are_there():
    """By name alone; that pytest finds each case is asked below, which takes it half a minute."""
    for test in {test for m in MUTATIONS for test in m.tests}:
        file, _, name = test.partition("::")
        names = {node.name for node in ast.walk(_tree(file)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name.partition("[")[0].partition("::")[0] in names, test


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def test_the_tests_that_kill_them_are_there():
    tests = sorted({test for m in MUTATIONS for test in m.tests})
    assert all("::" in test for test in tests)
    words = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    missing = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ERROR")]
    assert done.returncode == 0, "\n".join(missing) or done.stdout[-2000:]


def test_a_text_that_is_not_there_once_is_an_error(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(ValueError, match="area/name: its old text is 2 times in a.py, not once"):
        Mutation("area/name", "a.py", "x = 1", "x = 2", "").apply(tmp_path)
    assert Mutation("area/name", "a.py", "x = 1\nx", "x", "").apply(tmp_path) == "x = 1\n"


@pytest.mark.parametrize(
    "code, failed, verdict",
    [(0, [], "alive"), (1, ["a"], "killed"), (-1, [], "killed"), (-12, [], "killed"), (2, [], "broken")],
)
def test_verdicts(code, failed, verdict):
    place = Place.__new__(Place)
    place.mutation, place.outcomes = MUTATIONS[0], lambda: (set(), failed)
    assert _verdict(place, code)[0] == verdict
