"""ALMA: descent on an augmented Lagrangian of distance and misclassification, which adapts its own multiplier."""

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
    (1, 2),
    "descent on an augmented Lagrangian of the distance, with an adaptive multiplier",
    "Rony et al. 2021",
)

# Constants of the authors' implementation, in adv-lib, but for FIRST_STEP; Greek letters and M are the paper's:
CHECK = 10  # M: steps between two checks of whether the constraint y has improved
IMPROVED = 0.95  # τ: y has improved if it is below this share of its value at the last check
GROWTH = 1.2  # γ: factor on the penalty parameter ρ where y has not improved
REDUCTION = 0.01  # factor by which the learning rate falls from the first success to the last step
MULTIPLIERS = (1e-6, 1e12)  # least and largest multiplier μ
FIRST_STEP: dict[float, float] = {1: 20.0}  # default of `first_step`, a p-norm, by p; p = 2 has none


class State(NamedTuple):
    """The state of the descent for every image; arrays are `[B]`, or `[B, *shape]` like the images."""

    r: jax.Array  # the perturbation
    squares: jax.Array  # RMSProp's running mean of the squared gradient
    momentum: jax.Array  # RMSProp's momentum
    rate: jax.Array  # the learning rate before its decay
    μ: jax.Array  # the multiplier
    ρ: jax.Array  # the penalty parameter
    earlier: jax.Array  # the constraint y at the last check
    first: jax.Array  # the number of the step of the first success; the number of all steps before there is one
    best: Best  # the nearest adversarial perturbation


def alma(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 1000,
    learning_rate: float = 0.1,
    first_step: float | None = None,
    memory: float | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """ALMA: minimizes an augmented Lagrangian of the distance and the constraint that the image is misclassified:

        norm_p(r) + P(y(x + r), ρ, μ)  such that  x + r in [0, 1]

    where y is the difference of logits ratio, negative where the image is misclassified, and P the penalty-Lagrangian

        P(y, ρ, μ) = μ y + μ ρ y^2 + ρ^2 y^3 / 6    for y >= 0
                     μ y / (1 - ρ y)                for y < 0

    In each step, the multiplier μ moves towards the derivative of P with respect to y, and r takes a step of RMSProp
    with momentum. The penalty parameter ρ grows as long as no adversarial image was found and y does not improve; the
    learning rate falls from the first success on. The nearest misclassified image of all steps is kept (Rony, Granger,
    Pedersoli & Ben Ayed, "Augmented Lagrangian adversarial attacks", 2021, algorithm 1; P is P2 of the authors'
    implementation).

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, 1 or 2.
      steps: gradients for each image.
      learning_rate: of RMSProp; not used with `first_step`.
      first_step: the p-norm that a first step along the plain gradient would have, from which the learning rate of each
        image is computed; at most half of what the box allows. None means 20 for p = 1, and `learning_rate` for p = 2.
      memory: α of the paper, the decay rate of all running means. None means `1 - 0.1 (1000 / steps)^0.7`: 0.9 for
        1,000 steps, 0.5 for 100.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, else
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, learning_rate=learning_rate, first_step=first_step)
    memory = max(1 - 0.1 * (1000 / steps) ** 0.7, 0.0) if memory is None else memory
    arguments.numbers(0, 1, below=True, memory=memory)
    first_step = FIRST_STEP.get(norm) if first_step is None else first_step
    numbers = {"learning_rate": learning_rate, "memory": memory, **driver.present(first_step=first_step)}
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=norm, numbers=numbers, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, memory, steps, first_step=None) -> Found:
    x, start = given.images, small_start(given, keys)
    slope = jax.grad(lambda r: geometry.norm(r, norm).sum())

    def advance(i, s: State) -> State:
        logits, y, gradient = given.gradient(classifier, x + s.r, losses.dlr)
        y = y + given.rounding(logits) / losses.spread(logits).astype(
            x.dtype
        )  # negative only where the image counts as a success, which is a little beyond the boundary
        best = s.best.keep(given, s.r, geometry.norm(s.r, norm), given.adversarial(logits, CAREFUL))
        check = ((i + 1) % CHECK == 0) & (i > 0)
        grows = check & ~s.best.found & ~(y < IMPROVED * s.earlier)
        ρ = jnp.where(grows, GROWTH * s.ρ, s.ρ)
        μ = jnp.where(i == 0, s.μ, jnp.clip(memory * s.μ + (1 - memory) * penalty_slope(y, ρ, s.μ), *MULTIPLIERS))
        pull = given.per_image(penalty_slope(y, ρ, μ)) * gradient
        direction = jnp.where(i == 0, pull, pull + slope(s.r))
        rate = s.rate
        if first_step is not None:
            rate = jnp.where(i == 0, rate_of(direction, x, first_step, norm), rate)
        first = jnp.where(best.found, jnp.minimum(s.first, i), steps)
        fallen = rate * REDUCTION ** (jnp.maximum(i - first, 0) / jnp.maximum(steps - first, 1))
        squares = memory * s.squares + (1 - memory) * direction**2
        momentum = memory * s.momentum + direction / (jnp.sqrt(squares) + 1e-8)
        r = given.inside(s.r - given.per_image(fallen) * momentum)
        earlier = jnp.where(check | (i == 0), y, s.earlier)
        return State(r, squares, momentum, rate, μ, ρ, earlier, first, best)

    one = jnp.ones(len(x), x.dtype)
    state = State(start, jnp.ones_like(x), 0 * x, learning_rate * one, one, one, one, steps + 0 * one, Best.none(x))
    state = jax.lax.fori_loop(0, steps, advance, state)
    return Found(given.where(state.best.found, state.best.r, state.r), gradients=steps, forwards=0)


def penalty_slope(y, ρ, μ):
    """The derivative of the penalty P with respect to y `[B]`: it is positive, and μ at y = 0."""
    above, below = jnp.maximum(y, 0), jnp.minimum(y, 0)
    return jnp.where(y >= 0, μ + 2 * μ * ρ * above + ρ**2 * above**2 / 2, μ / (1 - ρ * below) ** 2)


def rate_of(direction, images, length, norm):
    """The learning rate `[B]` at which a step against `direction`, clipped to the box, has the p-norm `length`, or half
    of the longest such step's."""
    whole = jnp.where(direction > 0, images, jnp.where(direction < 0, 1 - images, 0))
    length = jnp.minimum(length, geometry.norm(whole, norm) / 2)
    step = jnp.abs(geometry.scale_to_sphere_in_box(-direction, images, length, norm))
    size = jnp.abs(direction)
    rates = jnp.where(size > 0, step / jnp.where(size > 0, size, 1), 0)  # lower for pixels that the box clips
    return rates.reshape(len(images), -1).max(1)
