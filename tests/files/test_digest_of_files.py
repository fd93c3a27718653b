"""Files of others one by one: regular, bounded, inside their folder, and known again by their content."""

import os

import pytest

from rto_fast.files.digests import MANIFEST, is_whole, sha256, stated
from rto_fast.files.regular import open_regular, read_regular


def test_a_file_that_changed_has_another_digest(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = sha256(file)
    assert sha256(file) == first and is_whole(file, first)
    file.unlink()
    file.write_bytes(b"another")
    assert sha256(file) != first and not is_whole(file, first) and not is_whole(tmp_path / "nothing", first)


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "/etc/passwd"])
def test_a_manifest_names_no_file_outside_its_folder(name, tmp_path):
    (tmp_path / MANIFEST).write_text(f'{{"{name}": "0"}}')
    with pytest.raises(ValueError, match="names a file outside its folder"):
        stated(tmp_path)
    (tmp_path / MANIFEST).write_text('{"tb/events..1": "0"}')
    assert stated(tmp_path) == {"tb/events..1": "0"}


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device")):
        with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
            open_regular(path)


def test_no_more_than_the_bound_is_read(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(2049))
    assert len(read_regular(file, 2049)) == 2049
    with pytest.raises(OSError, match="it is larger than 2 KiB"):
        read_regular(file, 2048)
