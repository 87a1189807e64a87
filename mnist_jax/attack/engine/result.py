"""The result of an attack, with success and distance recomputed from the images that it found."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import geometry
from mnist_jax.attack.engine.problem import Problem
from mnist_jax.classifier import Classifier


class AttackResult(NamedTuple):
    """The result of an attack: a pytree with an entry for each image.

    Attributes:
      images: `[B, *shape]` between the classifier's bounds: adversarial where `success`, elsewhere the last ones tried.
      distance: `[B]`, the p-norm of the difference from the original images; inf where the attack failed.
      success: `[B]`, whether the image is adversarial: the classifier gives it another class than the label (or the
        target class, where one was given), by more than rounding can undo (see `Problem.adversarial`). Logits with a
        NaN or an infinite maximum count as misclassified.
      gradients: `[B]`, how many gradients of the classifier were used for the image.
      forwards: `[B]`, how many evaluations of the classifier without a gradient were used for it.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array
    gradients: jax.Array
    forwards: jax.Array

    def only(self, allowed: jax.Array) -> "AttackResult":
        """The result in which a success counts only where `allowed [B]`, or where the original is misclassified."""
        success = self.success & (allowed | (self.distance == 0))
        return self._replace(success=success, distance=jnp.where(success, self.distance, jnp.inf))


def finish(
    classifier: Classifier, problem: Problem, found: jax.Array, norm: float, gradients: ArrayLike, forwards: ArrayLike
) -> AttackResult:
    """The `AttackResult` for the images `found [B, *shape]`, with success and distance recomputed from them.

    An original that is misclassified is returned unchanged, at distance 0. `gradients` and `forwards` are what the
    attack used, a number or `[B]`; the one or two evaluations made here are added.
    """
    found = jnp.where(jnp.isnan(found), problem.images, found)
    classifier = classifier.as_written()
    before = problem.adversarial(classifier(problem.images))
    images = problem.where(before, problem.images, jnp.clip(found, *classifier.bounds))
    success = before | problem.adversarial(classifier(images))
    distance = jnp.where(success, geometry.norm(images - problem.images, norm), jnp.inf)
    used = [jnp.where(before, 0, jnp.asarray(n, jnp.int32)) for n in (gradients, forwards)]
    return AttackResult(images, distance, success, used[0], used[1] + jnp.where(before, 1, 2))
