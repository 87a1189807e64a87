"""An objective in a file of the user's own, named as FILE.py:NAME."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from mnist_jax.errors import InputError, first_line
from mnist_jax.objective import Objective

MODULE = "own_objective"  # the name under which the file is imported


class Own(NamedTuple):
    """The objective, its name, and a fingerprint of the file that it is in."""

    name: str
    objective: Objective
    file: str


def load(text: str, norm: float, radius: float) -> Own:
    """What NAME in the file gives when it is called with `norm` and `radius`: a frozen dataclass, for instance.

    Raises:
      InputError: the file can't be read or run, has no such name, or does not give an objective.
    """
    path, _, name = text.rpartition(":")
    try:
        file = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"running {path} fails with {type(error).__name__}: {first_line(error)}") from error
    if not callable(factory := getattr(module, name, None)):
        raise InputError(f"{path} has no function or class {name or 'after the colon'}")
    try:
        objective = factory(norm=norm, radius=radius)
        hash(objective)
    except Exception as error:
        raise InputError(
            f"{name}(norm=..., radius=...) of {path} fails with {type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(objective):
        raise InputError(f"{name}(norm=..., radius=...) of {path} gives no function, but {objective!r}")
    return Own(name, objective, file)
