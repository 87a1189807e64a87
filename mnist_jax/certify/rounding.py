"""How far rounding can take what a device computes from what is true of the function.

A sum of n products, in any order, with or without fused multiplication, is off by at most `gamma(n)` times the sum of
the products' absolute values (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, sections 3.1 and 4.2).
What underflows, or is flushed to zero, adds less than `TINY` times `gamma(1)` at each step.
"""

import math
from typing import Any

import jax.numpy as jnp

# Added to the magnitude of every value. Half a unit in the last place of it is a hundred times the least normal number
# of single precision, 2^-126, to which flushing rounds in steps of.
TINY = 2.0**-96
# The share of all magnitudes together that stands for coefficients which underflow on the way back: the least normal
# number times a million roundings, twice.
UNDERFLOWN = 2.0**-105


def unit(dtype: Any) -> float:
    """The largest relative error of one rounding: 2^-24 in single precision."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(roundings: int, dtype: Any) -> float:
    """The largest relative error after so many roundings; inf where they may have lost every digit."""
    lost = roundings * unit(dtype)
    return lost / (1 - lost) * (1 + 1e-6) if lost < 0.5 else math.inf
