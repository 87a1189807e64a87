"""Write files whole or not at all, without losing earlier ones, and with a clear error where it can't be done."""

import errno
import glob
import itertools
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mnist_jax.errors import InputError, first_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of the system for a lack of space


class NotWritten(InputError):
    """A file or folder can't be written, where `full` for lack of space; a command adds which of its options helps."""

    def __init__(self, what: object, reason: Exception) -> None:
        full = [os.strerror(number) for number in FULL if os.strerror(number) in str(reason)]
        text = full[0] if full else getattr(reason, "strerror", None) or first_line(reason)
        super().__init__(f"cannot write {what} ({text})")
        self.full = bool(full)


def write(path: Path, content: bytes, aside: Path | None = None) -> None:
    """Writes `content` to `path` in one step: an earlier file is replaced only when the new one is whole on the disk.

    The earlier file is moved to `aside`, where that is given. A process that is killed leaves at most a hidden file in
    the folder, which `sweep` removes.

    Raises:
      NotWritten: the file can't be written, or the disk is full.
    """
    try:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).chmod(0o666 & ~_umask())  # temporary files are readable by their owner only
            if aside is not None:
                path.replace(aside)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise NotWritten(path, error) from error


def free_name(path: Path) -> Path:
    """`path` renamed to the first of NAME-1, NAME-2, ... that no file in its folder has with any suffix."""
    for number in itertools.count(1):
        name = f"{path.stem}-{number}"
        if not any(path.parent.glob(f"{glob.escape(name)}.*")):
            return path.with_name(name + path.suffix)
    raise AssertionError


def remove(folder: Path) -> None:
    """Removes a folder in one step, by renaming it first.

    A process that is killed leaves the whole folder, or a hidden one beside it, which `sweep` removes.

    Raises:
      NotWritten: the folder can't be removed.
    """
    try:
        gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        folder.replace(gone)
    except OSError as error:
        raise NotWritten(folder, error) from error
    shutil.rmtree(gone, ignore_errors=True)


def sweep(path: Path) -> None:
    """Removes the hidden files that killed processes left while they wrote or removed `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes the folder where it is missing, and checks that files can be written in it.

    Raises:
      NotWritten: the folder can't be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        raise NotWritten(f"to the folder {path}", error) from error


def strict(value: Any, key: str = "") -> Any:
    """The value for strict JSON, which has no infinity and no NaN: they become None, an infinite `norm` "inf"."""
    if isinstance(value, dict):
        return {k: strict(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if key == "norm" and value > 0 else None
    return value


def _umask() -> int:
    """The permissions that new files don't get; reading them means setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
