"""The fast gradient sign method: one step as far as the radius allows."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import geometry
from mnist_jax.attack.engine.chunks import in_chunks
from mnist_jax.attack.engine.problem import Loss, Problem, loss_function, problem, radii
from mnist_jax.attack.engine.result import AttackResult, finish
from mnist_jax.classifier import Classifier


def fgsm(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    loss: str | Loss = "cross_entropy",
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Goes one step of length `radius` where the linearized loss falls fastest:

        r = P(-radius d),   d = argmax <gradient, d>  such that  norm_p(d) = 1

    with P the projection into the box. For p = inf d is the sign of the gradient (Goodfellow, Shlens & Szegedy,
    "Explaining and harnessing adversarial examples", 2015), for p = 2 the gradient over its norm, for p = 1 one pixel.

    Args:
      classifier, images, labels, radius, targets: see `pgd`.
      norm: p, 1, 2 or inf.
      loss: see `pgd`.
      key: not used, since nothing is random; every attack takes one.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    del key
    norm = geometry.check_norm(norm, (1, 2, geometry.INF))
    given = problem(classifier, images, labels, targets)
    arrays = (given, radii(radius, given.images))
    return in_chunks(partial(_run, norm=norm, loss=loss_function(loss)), arrays, classifier)


@partial(jax.jit, static_argnames=("norm", "loss"))
def _run(classifier, given: Problem, radius, *, norm, loss) -> AttackResult:
    x = given.images
    gradient = given.gradient(classifier, x, loss)[2]
    step = given.per_image(radius) * geometry.dual_direction(gradient, norm)
    r = geometry.project_ball_in_box(-step, x, radius, norm)
    return finish(classifier, given, jnp.clip(x + r, 0, 1), norm, 1, 0)
