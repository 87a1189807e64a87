"""Imports of optional packages, which only reading networks of other frameworks needs."""

import importlib
from types import ModuleType

from mnist_jax.errors import InputError


def needed(name: str, extra: str) -> ModuleType:
    """Imports a module. Raises `InputError` with the extra to install where it can't be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        how = f'pip install "mnist_jax[{extra}]"'
        raise InputError(f"{name} can't be imported ({error}); reading such networks needs {how}") from error
