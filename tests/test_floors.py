"""Imports point down only. Floors 2 and 3 are ordered: a module may import those named before it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    1: ["kernels", "testing"],
    2: [
        "types",
        "text",
        "unread",
        "regular",
        "seeds",
        "stats",
        "config",
        "trust",
        "cli",
        "recipe",
        "depends",
        "neutral",
        "packing",
    ],
    3: [
        "disk",
        "foreign",
        "digests",
        "families",
        "attention",
        "model",
        "data",
        "rollout",
        "experience",
        "groups",
        "quickstart",
        "losses",
        "scoring",
        "rewards",
        "corpus",
        "scorers",
        "metrics",
        "guards",
        "stall",
        "export",
        "folder",
        "memory",
        "inputs",
        "facts",
        "threads",
        "best",
        "checkpoint",
        "interrupt",
        "preflight",
        "heatmap",
    ],
    4: ["loop"],
    5: ["stages", "evaluate", "report"],
    6: [
        "prepare",
        "judges",
        "start",
        "build",
        "measure",
        "takeover",
        "pipeline",
        "compare",
        "train",
        "credit",
        "decode",
    ],
}
ORDER = [name for floor in (2, 3) for name in FLOORS[floor]]
FILES = sorted([*ROOT.glob("rto_fast/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def floor_of(part: str) -> int:
    return next(floor for floor, names in FLOORS.items() if part in names)


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


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return "kernels" if relative.parts[0] == "kernels" else Path(relative.parts[1]).stem


def test_every_module_has_a_floor():
    known = {name for names in FLOORS.values() for name in names} | {"__init__", "theory"}
    assert {part_of(p) for p in FILES} == known


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) not in ("__init__", "theory")], ids=str)
def test_imports_point_down(path: Path):
    part = part_of(path)
    own = floor_of(part)
    for name in imported(path):
        if not name.startswith("rto_fast."):
            continue
        other = name.split(".")[1]
        if other == part and own != 5:
            continue
        if own == 5:
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            same_package = part == other and part in ("evaluate", "report")
            assert name == module or same_package or floor_of(other) < 5, f"{path}: {name} is on the same floor"
        elif own in (2, 3) and floor_of(other) in (2, 3):
            assert ORDER.index(other) < ORDER.index(part), f"{path}: {other} is not below {part}"
        else:
            assert floor_of(other) < own or own == 6, f"{path}: {name} is not below floor {own}"


def test_kernels_know_tensors_only():
    for path in FILES:
        if part_of(path) == "kernels":
            tops = {name.split(".")[0] for name in imported(path)}
            assert tops <= {
                "torch",
                "triton",
                "ctypes",
                "rto_fast",
                "math",
                "os",
                "typing",
                "types",
                "importlib",
                "pathlib",
                "collections",
                "dataclasses",
                "functools",
            }, path
            assert all(n.startswith("rto_fast.kernels") for n in imported(path) if n.startswith("rto_fast")), path


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
