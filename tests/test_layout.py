"""The folder kernels/ must not be taken for Hugging Face's package of that name."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import rest

ROOT = Path(__file__).parents[1]
OPS = sorted(p.name for p in (ROOT / "kernels").iterdir() if (p / "__init__.py").is_file() and p.name != "common")


def test_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow Hugging Face's kernels package"


@pytest.mark.parametrize("folder", ["repository", "elsewhere"])
def test_models_and_operators_import_side_by_side(folder: str, tmp_path: Path):
    imports = "\n".join(f"import rto_fast.kernels.{op}" for op in OPS)
    code = (
        "from transformers import LlamaForCausalLM, GPTNeoXForCausalLM\n"
        f"{imports}\n"
        "import sys\n"
        f"loaded = [m for m in sys.modules if m.split('.')[0] == 'kernels' and m.split('.')[-1] in {OPS}]\n"
        "assert not loaded, loaded\n"
    )
    cwd = ROOT if folder == "repository" else tmp_path
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"}


@pytest.mark.parametrize("op", OPS)
def test_an_operator_has_one_name_everywhere(op: str):
    assert (ROOT / "kernels" / op / "reference.py").is_file()
    assert (ROOT / "tests" / "kernels" / f"test_{op}.py").is_file()


def test_pytest_says_something_before_it_imports_the_tests():
    """Collecting takes a minute on a busy machine, and the first file's compiler another."""
    ours, theirs = os.openpty()
    # without options, as the README has it
    child = subprocess.Popen([sys.executable, "-m", "pytest"], cwd=ROOT, env=_environment(), stdout=theirs)
    os.close(theirs)
    try:
        said = os.read(ours, 4096).decode()
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert "test session starts" in said


def test_what_the_quick_part_leaves_out_is_there():
    for name in rest.KEPT:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize("kept, left", [(0, [0, 1, 2, 3, 4]), (1, [1, 2, 3, 4]), (3, [1, 3]), (9, [])])
def test_so_many_cases_of_a_test_are_kept_evenly_spaced(monkeypatch, kept, left):
    class Item(SimpleNamespace):
        def add_marker(self, marker):
            self.marks.append(marker.name)

    monkeypatch.setattr(rest, "KEPT", {"tests/test_a.py::test_b": kept})
    mine, other = (
        [Item(nodeid=f"tests/test_a.py::{name}[{i}]", marks=[]) for i in range(5)] for name in ("test_b", "c")
    )
    rest.mark([*mine, *other])
    assert [i for i, item in enumerate(mine) if item.marks == ["rest"]] == left
    assert not any(item.marks for item in other)


def test_pytest_alone_leaves_the_rest_out():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0"],
        cwd=ROOT,
        env={k: v for k, v in _environment().items() if not k.startswith("PYTEST")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " deselected)" in done.stdout, done.stdout[-2000:]
    assert "test_refusals_all_along_a_run" not in done.stdout and "::test_pack" in done.stdout
