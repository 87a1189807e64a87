"""The margins to the other classes, each with its gradient."""

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.attack.problem import Problem
from mnist_jax.classifier import Classifier


def margins(classifier: Classifier, given: Problem, classes: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits `[B, C]`, margins `[K, B]` and their gradients `[K, B, *shape]`, at the images of the problem.

    The margins are those of the label to each of the `classes` likeliest other classes, the likeliest first; where
    there are targets, just that of the target. A margin below zero is a success. This takes K gradients.
    """

    def each_margin(images):
        logits = classifier(images)
        if given.targets is not None:
            return given.objective(logits)[:, None], logits
        own, others = losses.label_and_others(logits, given.labels)
        return own[:, None] - jax.lax.top_k(others, min(classes, logits.shape[1] - 1))[0], logits

    values, pull_back, logits = jax.vjp(each_margin, given.images, has_aux=True)
    each = jnp.eye(values.shape[1], dtype=values.dtype)[:, None].repeat(len(values), 1)
    return logits, values.T, jax.vmap(lambda one: pull_back(one)[0])(each)
