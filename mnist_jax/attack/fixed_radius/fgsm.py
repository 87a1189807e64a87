"""The fast gradient sign method: one step as far as the radius allows."""

import jax
from jax.typing import ArrayLike

from mnist_jax import geometry
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, Loss, Problem, loss_function
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "one step as far as the radius allows",
    "Goodfellow et al. 2015",
)


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
    norm = METHOD.check_norm(norm)
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=norm, each={"radius": radius}, loss=loss_function(loss))


def kernel(classifier, given: Problem, keys, *, norm, radius, loss) -> Found:
    del keys
    x = given.images
    gradient = given.gradient(classifier, x, loss)[2]
    step = given.per_image(radius) * geometry.dual_direction(gradient, norm)
    r = geometry.project_ball_in_box(-step, x, radius, norm)
    return Found(r, gradients=1, forwards=0)
