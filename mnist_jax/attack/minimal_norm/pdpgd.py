"""PDPGD: gradient steps on the loss, proximal steps on the norm, and a dual variable that weights the two."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.classifier import Classifier

METHOD = Method(
    None,
    "gradient steps on the loss, proximal steps on the norm, and a dual variable as their weight",
    "Matyasko & Chau 2021",
)

# Constants of the implementation in adv-lib:
β1, β2 = 0.9, 0.999  # decay rates of Adam's moments
DECREASE = 0.01  # factor by which the learning rate falls from the first to the last step
RATIO = 0.01  # weight of the norm over the weight of the loss, at the start
SMALLEST_RATIO = 1e-6  # least ratio of the one weight to the other
DUAL_RATE, DUAL_DECREASE = 0.1, 0.1  # step of λ at the start, and the factor by which it falls linearly to the end
DUAL_MEMORY = 0.9  # decay rate of the running mean of the weight
PROXIMAL_STEPS = 5  # proximal iterations in each step


class State(NamedTuple):
    """The state of the descent for every image; arrays are `[B]`, or `[B, *shape]` like the images."""

    r: jax.Array  # the perturbation
    mean: jax.Array  # Adam's running mean of the gradient
    square: jax.Array  # Adam's running mean of its square
    λ: jax.Array  # the dual variable: the logarithm of the loss's weight over the norm's
    weight: jax.Array  # running mean of the loss's weight; the norm's weight is 1 minus that
    best: Best  # the nearest adversarial perturbation


def pdpgd(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 500,
    learning_rate: float = 0.1,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """PDPGD: looks for a saddle point of the Lagrangian of the least norm at which the image is misclassified:

        min over r, max over λ  of  (1 - w) norm_p(r) + w softplus(m(x + r)),  w = sigmoid(λ),  x + r in [0, 1]

    where m is the margin. Each step is one of Adam on the loss, followed by a proximal step on the norm in the metric
    of Adam, computed by a few proximal iterations in the box. λ increases where the image is classified correctly and
    decreases where it is misclassified. The nearest misclassified image of all steps is kept (Matyasko & Chau, "PDPGD:
    Primal-dual proximal gradient descent adversarial attack", 2021; the proximal iterations are those of Yun, Lozano &
    Yang, "A general family of stochastic proximal gradient methods for deep learning", 2019).

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      steps: gradients for each image.
      learning_rate: of Adam, in units of pixel values; it falls exponentially to a hundredth of this.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, learning_rate=learning_rate)
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=norm, numbers={"learning_rate": learning_rate}, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, steps) -> Found:
    x, start = given.images, small_start(given, keys)

    def advance(i, s: State) -> State:
        logits, margin, gradient = given.gradient(classifier, x + s.r, losses.margin)
        best = s.best.keep(given, s.r, geometry.norm(s.r, norm), given.adversarial(logits, CAREFUL))
        margin = margin + given.rounding(logits)
        gradient = given.per_image(jax.nn.sigmoid(margin)) * gradient  # sigmoid is the derivative of softplus
        mean, square = β1 * s.mean + (1 - β1) * gradient, β2 * s.square + (1 - β2) * gradient**2
        metric = jnp.sqrt(square / (1 - β2 ** (i + 1.0))) + 1e-8
        rate = learning_rate * DECREASE ** (i / steps)
        moved = given.inside(s.r - rate * mean / (1 - β1 ** (i + 1.0)) / metric)
        r = proximal_step(moved, metric, rate * (1 - s.weight) / s.weight, x, norm)
        left = 1 - i / max(steps - 1, 1)
        λ = s.λ + DUAL_RATE * (DUAL_DECREASE + (1 - DUAL_DECREASE) * left) * jnp.sign(margin)
        λ = jnp.clip(λ, math.log(SMALLEST_RATIO), -math.log(SMALLEST_RATIO))
        weight = DUAL_MEMORY * s.weight + (1 - DUAL_MEMORY) * jax.nn.sigmoid(λ)
        return State(r, mean, square, λ, weight, best)

    nothing, λ = jnp.zeros_like(x), jnp.full(len(x), -math.log(RATIO), x.dtype)
    state = State(start, nothing, nothing, λ, jax.nn.sigmoid(λ), Best.none(x))
    state = jax.lax.fori_loop(0, steps, advance, state)
    return Found(given.where(state.best.found, state.best.r, state.r), gradients=steps, forwards=0)


def proximal_step(v, metric, weight, images, p):
    """Approximates the r in the box that minimizes `weight norm_p(r) + sum(metric (r - v)^2) / 2`, by PROXIMAL_STEPS
    proximal gradient steps from `v`. `v` and `metric` are `[B, *shape]`, `weight` is `[B]`."""
    largest = metric.reshape(len(v), -1).max(1)
    share = metric / largest.reshape(-1, *[1] * (v.ndim - 1))

    def step(_, r):
        return jnp.clip(images + geometry.proximal(r - share * (r - v), weight / largest, p), 0, 1) - images

    return jax.lax.fori_loop(0, PROXIMAL_STEPS, step, v)
