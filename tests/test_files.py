import os
import stat

import pytest

from mnist_jax.errors import InputError
from mnist_jax.storage import files


def test_write_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file"
    files.write(path, b"one")
    files.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_gives_the_permissions_of_any_new_file(tmp_path):
    files.write(tmp_path / "file", b"")
    (tmp_path / "other").touch()
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_write_that_fails_keeps_what_was_there(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(InputError, match=r"cannot write .*folder \(Is a directory\)$"):
        files.write(path, b"content")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(InputError, match="cannot write"):
        files.write(tmp_path / "missing" / "file", b"content")


def test_make_folder(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to the folder"):
        files.make_folder(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_make_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write to the folder"):
        files.make_folder(tmp_path)
