"""Attacks: plain functions from a classifier and images to an `AttackResult`.

Fixed-radius attacks take a `radius`, a number or one for each image; minimal-norm attacks look for the smallest one.
"""

from mnist_jax.attack.automatic import automatic
from mnist_jax.attack.carlini_wagner import carlini_wagner
from mnist_jax.attack.ddn import ddn
from mnist_jax.attack.deepfool import deepfool
from mnist_jax.attack.dichotomy import dichotomy
from mnist_jax.attack.ead import ead
from mnist_jax.attack.fixed_norm import fixed_norm
from mnist_jax.attack.fmn import fmn
from mnist_jax.attack.result import AttackResult
from mnist_jax.attack.sigma_zero import sigma_zero

__all__ = [
    "AttackResult",
    "automatic",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "dichotomy",
    "ead",
    "fixed_norm",
    "fmn",
    "sigma_zero",
]
