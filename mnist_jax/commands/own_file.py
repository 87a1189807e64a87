"""Import a function or class from a Python file of the user's own, named as FILE.py:NAME."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.errors import InputError, first_line


class Own(NamedTuple):
    """A function or class of the user's: itself, its name, the path of its file, and the file's SHA-256."""

    function: Callable[..., Any]
    name: str
    path: Path
    digest: str


def is_meant(text: str) -> bool:
    """Whether an option's text has the form FILE.py:NAME."""
    return ".py:" in text


def load(text: str, module_name: str) -> Own:
    """Imports the file of FILE.py:NAME as the module `module_name`, and gives its function or class NAME.

    Raises:
      InputError: the file can't be read or run, or has no function or class NAME.
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
