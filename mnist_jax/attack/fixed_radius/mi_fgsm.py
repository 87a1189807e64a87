"""The momentum iterative fast gradient sign method (MI-FGSM): descent along an accumulated gradient."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Loss, Problem, loss_function
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import random_start
from mnist_jax.classifier import Classifier

METHOD = Method(
    (2, geometry.INF),
    "steps of a fixed length along a running sum of gradients",
    "Dong et al. 2018",
)


def mi_fgsm(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    steps: int = 10,
    step_size: ArrayLike | None = None,
    momentum: float = 1.0,
    loss: str | Loss = "cross_entropy",
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """The momentum iterative FGSM: descends along a sum g of the gradients so far, each scaled to 1-norm 1:

        g <- mu g + gradient / norm_1(gradient)
        r <- P(r - step_size d),   d = argmax <g, d>  such that  norm_p(d) = 1

    with mu = `momentum`, and P the projection onto the intersection of ball and box (Dong et al., "Boosting adversarial
    attacks with momentum", 2018, algorithm 1; its equation 9 for p = 2).

    Args:
      classifier, images, labels, radius, loss, targets: see `pgd`.
      norm: p, 2 or inf.
      steps: gradients for each image.
      step_size: p-norm of a step, a number or `[B]`; None means `radius / steps`.
      momentum: mu, the factor on the sum of the earlier gradients.
      key: a `jax.random` key, or one for each image; with one, the start is random in the ball, without one it is the
        image.

    Returns:
      An `AttackResult`, with the adversarial image of the lowest loss.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, momentum=momentum)
    asked = Asked(classifier, images, labels, targets, key)
    each, numbers = {"radius": radius, **driver.present(step_size=step_size)}, {"momentum": momentum}
    return driver.run(kernel, asked, norm=norm, each=each, numbers=numbers, steps=steps, loss=loss_function(loss))


def kernel(classifier, given: Problem, keys, *, norm, radius, momentum, steps, loss, step_size=None) -> Found:
    x = given.images
    size = radius / steps if step_size is None else step_size

    def advance(_, state):
        r, total, best = state
        logits, objective, gradient = given.gradient(classifier, given.at(r), loss)
        best = best.keep(given, r, objective, given.adversarial(logits, CAREFUL))
        length = geometry.norm(gradient, 1)
        total = momentum * total + gradient / given.per_image(jnp.where(length > 0, length, 1))
        r = geometry.project_ball_in_box(
            r - given.per_image(size) * geometry.dual_direction(total, norm), x, radius, norm
        )
        return r, total, best

    nothing = jnp.zeros_like(x)
    start = nothing if keys is None else random_start(given, keys, radius, norm)
    r, _, best = jax.lax.fori_loop(0, steps, advance, (start, nothing, Best.none(x)))
    logits = classifier(given.at(r))
    best = best.keep(given, r, given.objective(logits, loss), given.adversarial(logits, CAREFUL))
    return Found(given.where(best.found, best.r, r), gradients=steps, forwards=1)
