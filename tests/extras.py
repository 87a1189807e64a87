"""Packages that only some tests need: these are skipped without them, but not where CI has installed them."""

import importlib
import os
from types import ModuleType

import pytest

REQUIRED = "MNIST_JAX_EXTRAS"  # set in the environment: to lack a package is an error


def extra(name: str) -> ModuleType:
    """The module of that name; skips the tests of the file that asks for it where it is not installed."""
    return importlib.import_module(name) if REQUIRED in os.environ else pytest.importorskip(name)
