"""Attacks: plain functions from a classifier and images to an `AttackResult`.

Fixed-radius attacks take a `radius`, a number or one for each image; minimal-norm attacks look for the smallest one.
"""

from mnist_jax.attack.alma import alma
from mnist_jax.attack.apgd import apgd
from mnist_jax.attack.apgd_targeted import apgd_targeted
from mnist_jax.attack.auto_attack import auto_attack
from mnist_jax.attack.automatic import automatic
from mnist_jax.attack.brendel_bethge import brendel_bethge
from mnist_jax.attack.carlini_wagner import carlini_wagner
from mnist_jax.attack.ddn import ddn
from mnist_jax.attack.deepfool import deepfool
from mnist_jax.attack.dichotomy import dichotomy
from mnist_jax.attack.ead import ead
from mnist_jax.attack.fab import fab
from mnist_jax.attack.fgsm import fgsm
from mnist_jax.attack.fixed_norm import fixed_norm
from mnist_jax.attack.fmn import fmn
from mnist_jax.attack.mi_fgsm import mi_fgsm
from mnist_jax.attack.nearest import nearest
from mnist_jax.attack.pdpgd import pdpgd
from mnist_jax.attack.pgd import pgd
from mnist_jax.attack.problem import ClassifierWarning
from mnist_jax.attack.result import AttackResult
from mnist_jax.attack.sigma_zero import sigma_zero
from mnist_jax.attack.square import square

__all__ = [
    "AttackResult",
    "ClassifierWarning",
    "alma",
    "apgd",
    "apgd_targeted",
    "auto_attack",
    "automatic",
    "brendel_bethge",
    "carlini_wagner",
    "ddn",
    "deepfool",
    "dichotomy",
    "ead",
    "fab",
    "fgsm",
    "fixed_norm",
    "fmn",
    "mi_fgsm",
    "nearest",
    "pdpgd",
    "pgd",
    "sigma_zero",
    "square",
]
