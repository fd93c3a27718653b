"""The list of mutations does not rot: each still applies, still is Python, and names tests that are there."""

import ast
from pathlib import Path

import pytest

from tests.mutate import ROOT, Mutation, Place, _verdict, load

MUTATIONS = load()


def named(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_mutation_applies_once_and_names_tests_that_are_there():
    wrong, tests = [], {}
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
        for test in m.tests:
            file, _, function = test.partition("[")[0].partition("::")
            if file not in tests:
                tests[file] = named(ROOT / file) if (ROOT / file).is_file() else set()
            if not function.startswith("test_") or function not in tests[file]:
                wrong.append(f"{m.name}: there is no {test}")
    assert not wrong, "\n".join(wrong)
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 150


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
