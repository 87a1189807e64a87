"""Projected gradient descent (PGD) on the loss, in the intersection of a ball and the box."""

from typing import Any

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
from mnist_jax.attack.engine.starts import fixed, random_start, restarted
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "gradient steps of a fixed length, each projected onto ball and box",
    "Madry et al. 2018",
)


def pgd(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    steps: int = 40,
    step_size: ArrayLike | None = None,
    restarts: int = 1,
    loss: str | Loss = "cross_entropy",
    share: float = 0.01,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Projected gradient descent: steps of a fixed length, each followed by a projection P onto ball and box:

        minimize loss(classifier(x + r), label)  such that  norm_p(r) <= radius  and  x + r in [0, 1]
        r <- P(r - step_size d),   d = argmax <gradient, d>  such that  norm_p(d) = 1

    (Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018). For p = 1, where this d is a
    single pixel, d instead changes several pixels by the same amount: those of the largest gradients, leaving out
    pixels that the box stops (Tramèr & Boneh, "Adversarial training and robustness for multiple perturbations", 2019,
    section 2; see also Maini et al. 2020). P is the exact projection onto the intersection of ball and box, where
    public implementations project onto the ball and then clip.

    Args:
      classifier: see `Classifier`.
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`; None means the classifier's own predictions.
      radius: largest p-norm of the perturbations, a number or `[B]`.
      norm: p, 1, 2 or inf.
      steps: gradients for each image and run.
      step_size: p-norm of a step, a number or `[B]`; None means `2.5 * radius / steps`, the paper's choice for p = 2.
      restarts: the most runs for an image. Runs follow one another until one finds an adversarial image.
      loss: `"cross_entropy"` (minus the cross-entropy, computed so that its gradient does not vanish), `"margin"`,
        `"dlr"`, or a function of logits `[B, C]` and labels `[B]`, to be minimized.
      share: for p = 1, the share of all pixels that a step changes.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, every run starts at random in the ball. Without, the
        first run starts at the image, and the others use a fixed key.

    Returns:
      An `AttackResult`, with the adversarial image of the lowest loss in the first run that found one. An image that is
      misclassified before the attack is returned unchanged, at distance 0.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps, restarts=restarts)
    arguments.numbers(0, 1, above=True, share=share)
    asked = Asked(classifier, images, labels, targets, fixed(key))
    each, numbers = {"radius": radius, **driver.present(step_size=step_size)}, {"share": share}
    how: dict[str, Any] = {"steps": steps, "restarts": restarts, "at_image": key is None, "loss": loss_function(loss)}
    return driver.run(kernel, asked, norm=norm, each=each, numbers=numbers, **how)


def kernel(
    classifier, given: Problem, keys, *, norm, radius, steps, restarts, loss, share, at_image, step_size=None
) -> Found:
    x = given.images
    size = 2.5 * radius / steps if step_size is None else step_size

    def advance(_, state):
        r, best = state
        at = given.at(r)
        logits, objective, gradient = given.gradient(classifier, at, loss)
        best = best.keep(given, r, objective, given.adversarial(logits, CAREFUL))
        r = r - given.per_image(size) * _direction(gradient, at, norm, share)
        return geometry.project_ball_in_box(r, x, radius, norm), best

    def run(i, keys):
        r = random_start(given, keys, radius, norm)
        if at_image:
            r = jnp.where(i == 0, 0, r)
        r, best = jax.lax.fori_loop(0, steps, advance, (r, Best.none(x)))
        logits = classifier(given.at(r))
        best = best.keep(given, r, given.objective(logits, loss), given.adversarial(logits, CAREFUL))
        return given.where(best.found, best.r, r), best.found

    r, runs = restarted(given, keys, restarts, run)
    return Found(r, gradients=runs * steps, forwards=runs)


def _direction(gradient, images, norm, share):
    """The direction of p-norm 1 in which the loss grows fastest; a step goes the opposite way."""
    if norm != 1:
        return geometry.dual_direction(gradient, norm)
    stopped = ((images <= 0) & (gradient > 0)) | ((images >= 1) & (gradient < 0))
    return geometry.sparse_direction(jnp.where(stopped, 0, gradient), share * images[0].size)
