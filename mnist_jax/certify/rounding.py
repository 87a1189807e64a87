"""Bounds of rounding errors: how far a value that a device computes may be from the exact one.

A sum of n products, in any order, with or without fused multiplication, is off by at most `gamma(n)` times the sum of
the products' absolute values (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, sections 3.1 and 4.2).
Where a result underflows or is flushed to zero, its error is below `TINY` times `gamma(1)`.
"""

import math
from typing import Any

import jax.numpy as jnp

# Added to the magnitude of every value, so that the error charged for rounding it covers underflow, too: 2^-96 times
# 2^-24, the error of one rounding, is 64 times the least normal number of single precision, below which devices flush.
TINY = 2.0**-96
# Charged for coefficients that underflow in the backward pass, as a share of the sum of all magnitudes: 2^-126, the
# least normal number of single precision, times 2^21, that is a million roundings, doubled.
UNDERFLOWN = 2.0**-105


def unit(dtype: Any) -> float:
    """The largest relative error of one rounding: 2^-24 in single precision."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(roundings: int, dtype: Any) -> float:
    """The largest relative error after a number of roundings, n u / (1 - n u); inf where n u is 1/2 or more."""
    lost = roundings * unit(dtype)
    return lost / (1 - lost) * (1 + 1e-6) if lost < 0.5 else math.inf
