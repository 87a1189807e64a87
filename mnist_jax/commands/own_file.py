"""A function or class in a file of the user's own, named as FILE.py:NAME."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.errors import InputError, first_line


class Own(NamedTuple):
    """What the name means, the name, the file, and its fingerprint."""

    function: Callable[..., Any]
    name: str
    path: Path
    digest: str


def is_meant(text: str) -> bool:
    """Whether an option names something in a file."""
    return ".py:" in text


def load(text: str, module_name: str) -> Own:
    """What NAME is in the file, which is imported under the name of a module.

    Raises:
      InputError: the file can't be read or run, or has no such name.
    """
    path, _, name = text.rpartition(":")
    try:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"running {path} fails with {type(error).__name__}: {first_line(error)}") from error
    if not callable(function := getattr(module, name, None)):
        raise InputError(f"{path} has no function or class {name or 'after the colon'}")
    return Own(function, name, Path(path), digest)
