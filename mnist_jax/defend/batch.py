"""Pieces that defences share inside the jitted training step: clean batch statistics, and adversarial images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.attack.engine.problem import Loss, Problem
from mnist_jax.attack.fixed_radius import pgd
from mnist_jax.classifier import Classifier
from mnist_jax.layers import MOMENTUM
from mnist_jax.networks import Network, Weights

SHARE = 0.01  # share of the pixels that a step of PGD moves for p = 1; the default of `attack.pgd`


class Clean(NamedTuple):
    """The result of a pass of clean (unperturbed) images through a network in training mode.

    Attributes:
      logits: `[B, C]`.
      weights: the network's weights with the batch statistics of these images in place of the running ones; gradients
        pass through them.
      statistics: the running statistics after this batch.
    """

    logits: jax.Array
    weights: Weights
    statistics: Weights


def clean(network: type[Network], weights: Weights, images: jax.Array, key: jax.Array) -> Clean:
    """A pass of a batch of clean images, whose batch statistics also serve for its perturbed images and its bounds.

    So perturbations do not change the statistics (Shi et al. 2021, section 3.3; De Palma et al. 2024).
    """
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
    """Images within the radius and in [0, 1] that minimize the attack's loss, by PGD from a random starting point.

    No gradient passes through them.

    Args:
      classifier: the classifier to attack.
      images, labels: `[B, *shape]` in [0, 1] and `[B]`.
      key: random key for the starting points.
      norm: p.
      radius: a number, the largest p-norm of the perturbations.
      steps: number of steps of PGD.
      reach: sum of the lengths of all steps, in radii.
      loss: the attack's loss, a function of logits and labels.
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
