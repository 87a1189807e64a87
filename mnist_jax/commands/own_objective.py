"""An objective in a file of the user's own, named as FILE.py:NAME."""

from typing import NamedTuple

from mnist_jax.commands import own_file
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
