"""Defences: how a network is trained to resist. One file each, an objective with the recipe that uses it."""

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
    """The recipe that trains a network to resist perturbations of a p-norm up to the radius.

    Args:
      defense: one of `DEFENSES`.
      name: `"best"`, the defence's own; `"gpu"`, where it has one, as the literature trains; any other of the network's
        recipes is that one with the defence's objective.

    Raises:
      InputError: there is no such defence or recipe, or the defence is for no such norm.
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
