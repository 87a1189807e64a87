"""Attacks: plain functions from a classifier and images to an `AttackResult`.

Fixed-radius attacks take a `radius`, a number or one for each image; minimal-norm attacks look for the smallest one.
"""

from mnist_jax.attack.alma import alma
from mnist_jax.attack.automatic import automatic
from mnist_jax.attack.brendel_bethge import brendel_bethge
from mnist_jax.attack.dichotomy import dichotomy
from mnist_jax.attack.fab import fab
from mnist_jax.attack.fixed_norm import fixed_norm
from mnist_jax.attack.pdpgd import pdpgd
from mnist_jax.attack.result import AttackResult

__all__ = ["AttackResult", "alma", "automatic", "brendel_bethge", "dichotomy", "fab", "fixed_norm", "pdpgd"]
