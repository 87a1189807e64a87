import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys

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


def test_write_sets_aside_what_was_there(tmp_path):
    path = tmp_path / "a-radius0.2.npz"
    for number in range(3):
        aside = files.free_name(path) if number else None
        files.write(path, str(number).encode(), aside)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a-radius0.2.npz": "2",
        "a-radius0.2-1.npz": "0",
        "a-radius0.2-2.npz": "1",
    }
    (tmp_path / "b-1.png").touch()  # a name is taken whatever the suffix
    assert files.free_name(tmp_path / "b.npz").name == "b-2.npz"
    with pytest.raises(InputError):
        files.write(tmp_path / "missing" / "file", b"", tmp_path / "missing" / "aside")


def test_a_kill_leaves_what_was_there_and_what_it_leaves_beside_is_swept(tmp_path):
    program = """
import sys, time, os, shutil
from pathlib import Path
from mnist_jax.storage import files
def stop(*_, **__):
    print("now", flush=True)
    time.sleep(60)
os.fsync = shutil.rmtree = stop
files.write(Path("file.npz"), b"new") if sys.argv[1] == "write" else files.remove(Path("folder.state"))
"""
    (tmp_path / "file.npz").write_bytes(b"old")
    (tmp_path / "folder.state").mkdir()
    (tmp_path / "folder.state" / "part").touch()
    (tmp_path / ".file.npz2.other").touch()  # of another file
    for what, left in (("write", "file.npz"), ("remove", "folder.state")):
        process = subprocess.Popen([sys.executable, "-c", program, what], cwd=tmp_path, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(list(tmp_path.glob(f".{left}.*"))) == 1
        assert (tmp_path / left).exists() == (what == "write")
        files.sweep(tmp_path / left)
    assert (tmp_path / "file.npz").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".file.npz2.other", "file.npz"]


def test_what_cannot_be_written_says_why():
    full = files.NotWritten("file", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert (str(full), full.full) == ("cannot write file (Disk quota exceeded)", True)
    other = files.NotWritten("state", ValueError("Error opening: No such file\nin a library"))
    assert (str(other), other.full) == ("cannot write state (Error opening: No such file)", False)
    full = files.NotWritten("state", ValueError("in x: No space left on device [x]"))
    assert (str(full), full.full) == ("cannot write state (No space left on device)", True)


def test_strict_values_are_json():
    value = {"norm": math.inf, "options": {"radius": math.inf, "a": (1, math.nan, True)}, "loss": -math.inf, "n": "x"}
    strict = {"norm": "inf", "options": {"radius": None, "a": [1, None, True]}, "loss": None, "n": "x"}
    assert files.strict(value) == strict
    assert json.loads(json.dumps(files.strict(value), allow_nan=False)) == strict
