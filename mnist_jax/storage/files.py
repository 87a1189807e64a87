"""Writing files: whole or not at all, and a clear word where it can't be done."""

import os
import tempfile
from pathlib import Path

from mnist_jax.errors import InputError


def write(path: Path, content: bytes) -> None:
    """Writes `content` to `path` in one step: what was there before stays until the new file is whole on the disk.

    Raises:
      InputError: the file can't be written, or the disk is full.
    """
    try:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
        try:
            with file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).chmod(0o666 & ~_umask())  # a temporary file is its owner's alone
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}); free some space or choose another --output"
        ) from error


def make_folder(path: Path) -> None:
    """Makes the folder where it is missing, and makes sure that files can be written there.

    Raises:
      InputError: the folder can't be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(f"cannot write to the folder {path} ({error.strerror}); choose another --output") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
