"""Defences: training that makes a network robust. Each file has a defence's objective and the recipe that uses it."""

from dataclasses import replace

from mnist_jax.defend import (
    consistency,
    crown_ibp,
    fgsm,
    gaussian,
    ibp,
    minimal_norm,
    mtl_ibp,
    pgd,
    sabr,
    smooth_adv,
    trades,
)
from mnist_jax.defend.defense import Defense
from mnist_jax.errors import InputError, unknown
from mnist_jax.networks import Network
from mnist_jax.recipe import Recipe

DEFENSES: dict[str, Defense] = {
    module.__name__.rpartition(".")[2]: module.DEFENSE
    for module in (
        pgd,
        fgsm,
        trades,
        minimal_norm,
        ibp,
        crown_ibp,
        mtl_ibp,
        sabr,
        gaussian,
        consistency,
        smooth_adv,
    )
}


def recipe(defense: str, network: type[Network], norm: float, radius: float, name: str = "best") -> Recipe:
    """The recipe that trains a network to resist perturbations up to a radius in a p-norm.

    Args:
      defense: name of the defence, one of `DEFENSES`.
      network: the network to train.
      norm: p.
      radius: largest norm of the perturbations, for images in [0, 1].
      name: `"best"`, the defence's own recipe; `"gpu"`, the defence's recipe as in the literature, where it has one; or
        the name of one of the network's recipes, whose objective is then replaced by the defence's.

    Raises:
      InputError: the defence or the recipe does not exist, or the defence does not support the norm.
    """
    if defense not in DEFENSES:
        raise unknown("defence", defense, DEFENSES)
    described = DEFENSES[defense]
    try:
        norm = described.check_norm(norm)
    except ValueError as error:
        raise InputError(f"the defence {defense} is for other norms: {error}") from error
    own = described.recipe(network, norm, radius)
    if name == "best":
        return own
    if name == "gpu":
        if described.gpu is None:
            raise InputError(f"the defence {defense} has no recipe gpu; leave --recipe out for best")
        return described.gpu(own)
    return replace(network.recipe(name), objective=own.objective)
