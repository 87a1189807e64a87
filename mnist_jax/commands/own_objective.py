"""Load a training objective from a Python file of the user's own, named as FILE.py:NAME."""

from typing import NamedTuple

from mnist_jax.commands import own_file
from mnist_jax.errors import InputError, first_line
from mnist_jax.objective import Objective

MODULE = "own_objective"  # the name under which the file is imported


class Own(NamedTuple):
    """An objective of the user's: its name, itself, and the SHA-256 of its file."""

    name: str
    objective: Objective
    file: str


def load(text: str, norm: float, radius: float) -> Own:
    """The objective that `NAME(norm=norm, radius=radius)` returns, NAME being a function or class of the file.

    A frozen dataclass with `__call__` is one; it must be hashable.

    Raises:
      InputError: the file can't be read or run, has no function or class NAME, or that does not give an objective.
    """
    factory, name, path, file = own_file.load(text, MODULE)
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
