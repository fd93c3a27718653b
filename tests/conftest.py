"""`pytest` alone runs the quick part on all cores; whatever is asked for by name or mark runs as it is asked for.

Without a GPU the Triton kernels run under the interpreter, which has to be chosen before triton is imported.
"""

import os
import sys

import pytest

WORKER = "PYTEST_XDIST_WORKER"
if WORKER in os.environ:  # before torch looks: as many threads as cores in every worker slow them all
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

from tests import rest  # noqa: E402

if not torch.cuda.is_available():
    asked = os.environ.get("TRITON_INTERPRET") == "1"
    assert asked or "triton" not in sys.modules, "triton was imported before TRITON_INTERPRET could be set"
    os.environ["TRITON_INTERPRET"] = "1"
    from tests import interpreter  # noqa: F401


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Bare `pytest` names no path, mark or keyword."""
    option, source = config.option, config.args_source
    if source is pytest.Config.ArgsSource.TESTPATHS and not (option.markexpr or option.keyword or WORKER in os.environ):
        rest.begin()
        if option.numprocesses is None and not option.usepdb:
            option.numprocesses, option.dist, option.loadscopereorder = "auto", "loadfile", False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    rest.mark(items)
    rest.long_first(items)
    if rest.is_quick():
        left = [item for item in items if item.get_closest_marker("rest") or item.get_closest_marker("alone")]
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_report_header() -> str | None:
    if rest.is_quick():
        return "the quick part, on all cores; `pytest -m rest -n auto` is the rest, `pytest -m alone` compares times"
    return None
