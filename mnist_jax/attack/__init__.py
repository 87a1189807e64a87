"""Attacks: plain functions from a classifier and images to an `AttackResult`.

Fixed-radius attacks take a `radius`, a number or one for each image; minimal-norm attacks look for the smallest one.
"""

from mnist_jax.attack.automatic import automatic
from mnist_jax.attack.dichotomy import dichotomy
from mnist_jax.attack.fixed_norm import fixed_norm
from mnist_jax.attack.problem import ClassifierWarning
from mnist_jax.attack.result import AttackResult

__all__ = ["AttackResult", "ClassifierWarning", "automatic", "dichotomy", "fixed_norm"]
