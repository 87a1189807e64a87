"""Attacks: plain functions from a classifier and images to an `AttackResult`.

Fixed-radius attacks take a `radius`, one number or one for each image, and look for any adversarial image within it;
minimal-norm attacks look for the adversarial image of least distance.
"""

from mnist_jax.attack.engine.problem import ClassifierWarning
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.fixed_radius.apgd import apgd
from mnist_jax.attack.fixed_radius.apgd_targeted import apgd_targeted
from mnist_jax.attack.fixed_radius.auto_attack import auto_attack
from mnist_jax.attack.fixed_radius.fgsm import fgsm
from mnist_jax.attack.fixed_radius.fixed_norm import fixed_norm
from mnist_jax.attack.fixed_radius.mi_fgsm import mi_fgsm
from mnist_jax.attack.fixed_radius.pgd import pgd
from mnist_jax.attack.fixed_radius.square import square
from mnist_jax.attack.minimal_norm.alma import alma
from mnist_jax.attack.minimal_norm.automatic import automatic
from mnist_jax.attack.minimal_norm.brendel_bethge import brendel_bethge
from mnist_jax.attack.minimal_norm.carlini_wagner import carlini_wagner
from mnist_jax.attack.minimal_norm.ddn import ddn
from mnist_jax.attack.minimal_norm.deepfool import deepfool
from mnist_jax.attack.minimal_norm.dichotomy import dichotomy
from mnist_jax.attack.minimal_norm.ead import ead
from mnist_jax.attack.minimal_norm.fab import fab
from mnist_jax.attack.minimal_norm.fmn import fmn
from mnist_jax.attack.minimal_norm.nearest import nearest
from mnist_jax.attack.minimal_norm.pdpgd import pdpgd
from mnist_jax.attack.minimal_norm.sigma_zero import sigma_zero
from mnist_jax.attack.robust_accuracy import robust_accuracy
from mnist_jax.chunks import at_once
from mnist_jax.progress import progress

__all__ = [
    "AttackResult",
    "ClassifierWarning",
    "alma",
    "apgd",
    "apgd_targeted",
    "at_once",
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
    "progress",
    "robust_accuracy",
    "sigma_zero",
    "square",
]
