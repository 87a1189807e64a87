"""What is installed only where networks of other frameworks are read."""

import importlib
from types import ModuleType

from mnist_jax.errors import InputError


def needed(name: str, extra: str) -> ModuleType:
    """The module of that name. Raises `InputError`, which says how to install it, where it can't be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        how = f'pip install "mnist_jax[{extra}]"'
        raise InputError(f"{name} can't be imported ({error}); what reads such networks comes with {how}") from error
