"""Imports point down only: one folder is one room, and rooms of a floor meet where an arrow is drawn."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # from the ground up
    {"kernels"},
    {"files", "config", "packing"},
    {"model", "data", "tasks"},
    {"training", "rollout", "runs"},
    {"rl", "judges"},
    {"stages"},
    {"evaluate", "credit", "decode", "report"},
    {"pipeline"},
    {"train", "plan", "cli"},
]
OPERATORS = {("rto_score", "token_reward_gae"), ("preference_head", "linear_logprob")}
"""Arrows between operators; what else they share is in kernels/common/."""
ARROWS = {  # within a floor
    ("config", "files"),
    ("credit", "evaluate"),
    ("decode", "evaluate"),
    ("report", "evaluate"),
    ("rl", "judges"),
    ("plan", "cli"),
    ("plan", "train"),
    ("train", "cli"),
}
DOORS = {"train.py", "cli.py", "plan.py", "__main__.py", "serve.py", "likelihood.py"}
"""Commands: what they parse their options with is above everything."""
FILES = sorted([*ROOT.glob("rto_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it but under `if __name__ == "__main__"`."""
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "__main__" in ast.dump(n.test))]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # stays within its own package
                assert node.level == 1, f"{path}: a relative import reaches above its package"
                continue
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "rto_fast" else {node.module}
            )
    return names


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "kernels" if relative.parts[0] == "kernels" else Path(relative.parts[1]).stem


HOUSE = [p for p in FILES if room_of(p) not in ("__init__", "theory")]


def test_every_file_is_in_a_room():
    assert {room_of(p) for p in HOUSE} == set(LEVEL)


@pytest.mark.parametrize("path", HOUSE, ids=str)
def test_imports_point_down(path: Path):
    room = room_of(path)
    for name in imported(path):
        if not name.startswith("rto_fast."):
            continue
        other = name.split(".")[1]
        if other == room or (room, other) in ARROWS or (other == "cli" and path.name in DOORS):
            continue
        assert LEVEL[other] < LEVEL[room], f"{path}: {name} is not below {room}"


def test_nothing_trains_with_a_viewer():
    for path in HOUSE:
        viewers = {"credit", "decode"} - {room_of(path)}
        assert not viewers & {name.split(".")[1] for name in imported(path) if name.startswith("rto_fast.")}, path


def test_no_circle_within_a_room():
    """Files of one room may lean on one another, in one direction."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in HOUSE if "rto_fast" in p.parts}
    graph: dict[str, set[str]] = defaultdict(set)
    for name, path in names.items():
        graph[name] |= {other for other in imported(path) if other in names and other != name}
    TopologicalSorter(graph).prepare()  # CycleError names the files


def test_kernels_know_tensors_only():
    allowed = {"torch", "triton", "ctypes", "rto_fast", "math", "os", "typing", "types", "importlib", "pathlib"}
    allowed |= {"collections", "dataclasses", "functools"}
    for path in FILES:
        if room_of(path) == "kernels":
            names = imported(path)
            assert {name.split(".")[0] for name in names} <= allowed, path
            assert all(n.startswith("rto_fast.kernels") for n in names if n.startswith("rto_fast")), path


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*/*.py")), ids=lambda path: "/".join(path.parts[-2:]))
def test_operators_stand_side_by_side(path: Path):
    """A definition may be composed of definitions."""
    own = path.parent.name
    for name in imported(path):
        if not name.startswith("rto_fast.kernels."):
            continue
        other = name.split(".")[2]
        composed = path.name == "reference.py" and other == "linear_logprob"
        assert other in (own, "common") or composed or (own, other) in OPERATORS, f"{path}: {name}"


@pytest.mark.parametrize("path", sorted(ROOT.glob("rto_fast/theory/*.py")), ids=lambda path: path.stem)
def test_exact_mathematics_needs_torch_alone(path: Path):
    """The command line needs tyro; experiment.py trains with the product's own stage."""
    if path.stem == "experiment":
        return
    names = imported(path)
    outside = {name for name in names if name.startswith("rto_fast") and not name.startswith("rto_fast.theory")}
    assert not outside
    allowed = {"math", "collections", "dataclasses", "functools", "itertools", "torch", "rto_fast"}
    if path.stem == "__main__":
        allowed |= {"tyro", "os", "sys", "time", "typing"}
    assert {name.split(".")[0] for name in names} <= allowed
