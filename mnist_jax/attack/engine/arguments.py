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
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (whole and least <= value <= MOST):
            raise ValueError(f"{name} must be a whole number from {least} to {MOST:,}, not {value!r}")


def numbers(low: float, high: float = math.inf, *, above: bool = False, below: bool = False, **arguments: Any) -> None:
    """Raises unless the arguments, those that are not None, are finite numbers from `low` to `high`.

    They have to be larger than `low` where `above`, and smaller than `high` where `below`.
    """
    for name, value in arguments.items():
        if value is None or traced(value):
            continue
        number = real(value)
        enough = number > low if above else number >= low
        if not (enough and (number < high if below else number <= high) and math.isfinite(number)):
            limits = f"{'above' if above else 'of at least'} {low:g}"
            if math.isfinite(high):
                limits += f" and {'below' if below else 'at most'} {high:g}"
            raise ValueError(f"{name} must be a number {limits}, not {value!r}")


def real(value: Any) -> float:
    """The value of a real number of any library; NaN where it is none."""
    array = np.asarray(value)
    is_number = (array.ndim == 0 and array.dtype.kind in "iuf") or str(array.dtype) in ("bfloat16", "float16")
    return float(array) if is_number and array.ndim == 0 else math.nan
