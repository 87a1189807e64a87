"""Adversarial training by one step."""

from dataclasses import replace

from mnist_jax.defend import pgd
from mnist_jax.defend.defense import Defense
from mnist_jax.geometry import INF
from mnist_jax.networks import Network
from mnist_jax.recipe import Recipe

REACH = 1.25  # radii of the one step, from a random start


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of adversarial training by PGD, with one step in place of several."""
    return replace(pgd.recipe(network, norm, radius), objective=pgd.PGD(norm, radius, steps=1, reach=REACH))


DEFENSE = Defense(
    (INF,), "the loss of adversarial images, found by one step from a random start", "Wong et al. 2020", recipe
)
