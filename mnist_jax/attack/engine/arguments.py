"""What the arguments of attacks have in common: numbers are checked here, in one way, before any work.

A number that a transformation of the caller's traces has no value yet, and is taken as it is. Everything raises
`ValueError`.
"""

import math
from typing import Any

import numpy as np

from mnist_jax.unstable import traced

MOST = 10**9  # of what is counted: more gradients than that take years, and counters are int32


def counts(*, least: int = 1, **arguments: Any) -> None:
    """Raises unless the arguments, those that are not None, are whole numbers from `least` to a billion."""
    for name, value in arguments.items():
        if value is None:
            continue
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
        if value > MOST:
            raise ValueError(f"{name} must be at most {MOST:,}, not {value:,}")


def numbers(low: float, high: float = math.inf, *, above: bool = False, below: bool = False, **arguments: Any) -> None:
    """Raises unless the arguments, those that are not None, are finite numbers from `low` to `high`.

    They have to be larger than `low` where `above`, and smaller than `high` where `below`.
    """
    for name, value in arguments.items():
        if value is None or traced(value):
            continue
        number = real(value)
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, not {value!r}")
        if number < low or (above and number == low):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} {low:g}, not {number:g}")
        if number > high or (below and number == high):
            raise ValueError(f"{name} must be {'below' if below else 'at most'} {high:g}, not {number:g}")


def real(value: Any) -> float:
    """The value of a real number of any library; NaN where it is none."""
    array = np.asarray(value)
    is_number = array.dtype.kind in "iuf" or str(array.dtype) == "bfloat16"
    return float(array) if is_number and array.ndim == 0 else math.nan
