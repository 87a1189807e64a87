"""The fast gradient sign method (FGSM): one step of the radius's length along the gradient."""

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
    "one gradient step of the radius's length",
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
    """The fast gradient sign method: one step of p-norm `radius` along which the linearized loss falls fastest:

        r = P(-radius d),   d = argmax <gradient, d>  such that  norm_p(d) = 1

    with P the projection into the box. d is the sign of the gradient for p = inf (Goodfellow, Shlens & Szegedy,
    "Explaining and harnessing adversarial examples", 2015), the gradient divided by its norm for p = 2, and a single
    pixel for p = 1.

    Args:
      classifier, images, labels, radius, targets: see `pgd`.
      norm: p, 1, 2 or inf.
      loss: see `pgd`.
      key: accepted as by every attack, but not used: nothing is random.

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
