"""Carlini & Wagner's attack for the 2-norm: Adam on a weighted sum of distance and margin, in unbounded variables."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.attack.engine.tradeoff import Attempt, found_by, search_weight
from mnist_jax.classifier import Classifier

METHOD = Method(
    (2,),
    "descent on the sum of distance and margin, whose weight is searched for",
    "Carlini & Wagner 2017",
)

# Images, scaled to [-1, 1], are multiplied by this before arctanh, which is infinite at -1 and 1; the authors' value.
INSIDE = 1 - 1e-6


def carlini_wagner(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 10_000,
    searches: int = 9,
    learning_rate: float = 0.01,
    weight: float = 1e-3,
    confidence: float = 0.0,
    stop_early: bool = True,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Carlini & Wagner's attack: minimizes by Adam, over w, the sum of the squared distance and the weighted margin,

        norm_2(r)^2 + c max(margin(x + r) + κ, 0)        with  x + r = (tanh(w) + 1) / 2

    The weight c is searched for each image: multiplied by ten until there is a success, then bisected. The nearest
    misclassified image of all these descents is kept.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: 2, the only norm that the method is for.
      steps: the most gradients for each image in the descent at one value of c.
      searches: how many values of c are tried.
      learning_rate: of Adam, in units of w.
      weight: the first c.
      confidence: κ, how far below zero the margin has to be.
      stop_early: whether a descent ends once a tenth of its steps lowers the loss of the image by less than 0.01 %.
      targets: `[B]`, classes to reach; the margin is then the largest other logit minus the target's.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.

    Carlini & Wagner, "Towards evaluating the robustness of neural networks", 2017, section VI A, with f6 as the loss.
    """
    METHOD.check_norm(norm)
    arguments.counts(steps=steps, searches=searches)
    arguments.numbers(0, confidence=confidence)
    arguments.numbers(0, above=True, learning_rate=learning_rate, weight=weight)
    numbers = {"learning_rate": learning_rate, "confidence": confidence, "weight": weight}
    asked = Asked(classifier, images, labels, targets, key)
    how: dict[str, Any] = {"steps": steps, "rounds": searches, "stop_early": bool(stop_early)}
    return driver.run(kernel, asked, norm=2, numbers=numbers, **how)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, confidence, weight, **how) -> Found:
    del norm
    x, start = given.images, small_start(given, keys)
    adam = optax.scale_by_adam()

    def step(i, state, c):
        w, first, second = state
        moved = (jnp.tanh(w) + 1) / 2
        r = moved - x
        logits, margin, gradient = given.gradient(classifier, moved, losses.margin)
        lacking, size = margin + confidence, geometry.norm(r, 2)
        adversarial = given.adversarial(logits, CAREFUL) & (lacking <= 0)
        pull = given.per_image(jnp.where(lacking > 0, c, 0)) * gradient
        slope = (2 * r + pull) / (2 * jnp.cosh(w) ** 2)  # with the derivative of (tanh(w) + 1) / 2
        update, moments = adam.update(slope, optax.ScaleByAdamState(i, first, second))
        attempt = Attempt(r, size, adversarial, size**2 + c * jnp.maximum(lacking, 0))
        return (w - learning_rate * update, moments.mu, moments.nu), attempt

    w = jnp.arctanh(INSIDE * (2 * (x + start) - 1))
    zero = jnp.zeros_like(x)
    return found_by(given, search_weight(given, step, (w, zero, zero), weight=weight, **how), 0)
