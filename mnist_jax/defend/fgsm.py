"""The defence `fgsm`: adversarial training with one-step adversarial images from a random starting point."""

from dataclasses import replace

from mnist_jax.defend import pgd
from mnist_jax.defend.defense import Defense
from mnist_jax.geometry import INF
from mnist_jax.networks import Network
from mnist_jax.recipe import Recipe

REACH = 1.25  # length of the step in radii (Wong et al. 2020)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `pgd`, with one step of the attack in place of several."""
    return replace(pgd.recipe(network, norm, radius), objective=pgd.PGD(norm, radius, steps=1, reach=REACH))


DEFENSE = Defense(
    (INF,), "the loss of adversarial images, found by one step from a random start", "Wong et al. 2020", recipe
)
