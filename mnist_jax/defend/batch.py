"""What every defence does with a batch: its statistics, and adversarial images of it, inside the jitted step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.attack.engine.problem import Loss, Problem
from mnist_jax.attack.fixed_radius import pgd
from mnist_jax.classifier import Classifier
from mnist_jax.layers import MOMENTUM
from mnist_jax.networks import Network, Weights

SHARE = 0.01  # of the pixels that a step of PGD moves for p = 1, as in `attack.pgd`


class Clean(NamedTuple):
    """What the images as they are give.

    Attributes:
      logits: `[B, C]`, in training mode.
      weights: with the statistics of these images in place of the running ones; gradients pass through them.
      statistics: the running ones, moved on.
    """

    logits: jax.Array
    weights: Weights
    statistics: Weights


def clean(network: type[Network], weights: Weights, images: jax.Array, key: jax.Array) -> Clean:
    """A pass of the clean batch: by its statistics whatever is made of it is normalized, so that perturbations do not
    move them (Shi et al. 2021, section 3.3; De Palma et al. 2024)."""
    logits, own = network.apply_training(weights, images, key, moved=False)
    moved = {name: MOMENTUM * weights[name] + (1 - MOMENTUM) * array for name, array in own.items()}
    return Clean(logits, weights | own, jax.lax.stop_gradient(moved))


def adversarial(
    classifier: Classifier,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    norm: float,
    radius: jax.Array,
    steps: int,
    reach: float,
    loss: Loss = losses.log_odds,
) -> jax.Array:
    """Images within the radius and in [0, 1] that minimize the attack's loss, by PGD from a random start.

    They are constants to the gradient of a step. `radius` is a number, a p-norm, and `reach` the sum of the lengths of
    the attack's steps, in radii.
    """
    classifier, images = jax.lax.stop_gradient((classifier, images))
    given = Problem(images, labels, None)
    found = pgd.kernel(
        classifier,
        given,
        jax.random.split(key, len(images)),
        norm=norm,
        radius=jnp.broadcast_to(radius, images.shape[:1]).astype(images.dtype),
        step_size=jnp.broadcast_to(reach * radius / steps, images.shape[:1]).astype(images.dtype),
        steps=steps,
        restarts=1,
        loss=loss,
        share=SHARE,
        at_image=False,
    )
    return jax.lax.stop_gradient(given.at(found.r))
