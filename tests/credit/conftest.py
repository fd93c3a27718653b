import pytest

from tests.credit.runs import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("credit") / "run")
