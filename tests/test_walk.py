"""Following a datum through the house."""

import pytest

from tests.walk import walk


@pytest.mark.parametrize(
    "what, ends, files",
    [
        ("pair", ("data/read.py:", "kernels/preference_head/__init__.py:preference_head"), 32),
        ("answer", ("rl/collect.py:", "kernels/ppo_head/__init__.py:ppo_head"), 21),
    ],
)
def test_a_datum_is_followed_to_its_loss_and_touches_no_more_files_than_it_did(what, ends, files, tmp_path):
    found = walk(what, tmp_path)
    names = [name for hop in found.hops for name in hop]
    assert ends[0] in names[0] and ends[1] in names
    assert len(found.files) <= files, sorted(found.files)
    assert found.returns[1] <= 8
