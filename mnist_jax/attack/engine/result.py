"""What an attack gives back, recomputed from the images themselves."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import geometry
from mnist_jax.attack.engine.problem import Problem
from mnist_jax.classifier import Classifier


class AttackResult(NamedTuple):
    """What an attack found, a pytree with an entry for each image.

    Attributes:
      images: `[B, *shape]` between the classifier's bounds, adversarial where `success`; elsewhere the last attempt.
      distance: `[B]`, the p-norm of the images less the originals; inf where it failed.
      success: `[B]`, whether the classifier gives these images another class than the label (or the target, where one
        was given), by more than rounding can undo (see `Problem.solved`). Logits that say nothing are wrong.
      gradients: `[B]`, how many gradients of the classifier were used for each image.
      forwards: `[B]`, how many evaluations without a gradient.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array
    gradients: jax.Array
    forwards: jax.Array

    def only(self, allowed: jax.Array) -> "AttackResult":
        """Without the successes that are not allowed `[B]`; an image misclassified as it is always is."""
        success = self.success & (allowed | (self.distance == 0))
        return self._replace(success=success, distance=jnp.where(success, self.distance, jnp.inf))


def finish(
    classifier: Classifier, problem: Problem, found: jax.Array, norm: float, gradients: ArrayLike, forwards: ArrayLike
) -> AttackResult:
    """The result: images that were misclassified from the start as they were, and what is said of `found` recomputed.

    `gradients` and `forwards` are what the attack used, a number or `[B]`; the evaluations here are added.
    """
    found = jnp.where(jnp.isnan(found), problem.images, found)
    classifier = classifier.as_written()
    with jax.default_matmul_precision("highest"):
        before = problem.solved(classifier(problem.images))
        images = problem.where(before, problem.images, jnp.clip(found, *classifier.bounds))
        success = before | problem.solved(classifier(images))
    distance = jnp.where(success, geometry.norm(images - problem.images, norm), jnp.inf)
    used = [jnp.where(before, 0, jnp.asarray(n, jnp.int32)) for n in (gradients, forwards)]
    return AttackResult(images, distance, success, used[0], used[1] + jnp.where(before, 1, 2))
