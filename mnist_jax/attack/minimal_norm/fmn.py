"""FMN: projected gradient steps in a ball whose radius is adapted to the distance of the decision boundary."""

import jax
import jax.numpy as jnp
import optax
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
    (0, 1, 2, geometry.INF),
    "gradient steps in a ball whose radius follows the boundary",
    "Pintor et al. 2021",
)

LAST_GAMMA = 0.001  # γ at the last step; the paper's value


def fmn(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 100,
    learning_rate: float = 1.0,
    gamma: float = 0.05,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """FMN: minimizes norm_p(r) such that x + r is misclassified, in a ball whose radius ε follows the boundary:

        r <- the perturbation in the box with norm_p <= ε that is nearest to  r - α g / norm_2(g)
        ε <- min((1 - γ) ε, norm_p(best r))                     where x + r was misclassified
             norm_p(r) + |margin| / norm_q(g)                   where no x + r was so far, 1 / p + 1 / q = 1
             (1 + γ) ε                                          else

    with g the gradient of the margin. For p = 0, ε always grows by the factor 1 + γ where x + r is not misclassified,
    and changes by at least 1. α and γ fall along cosines, to 0.01 α and to 0.001. The nearest misclassified image of
    all steps is kept.

    The projection is onto the intersection of ball and box. The paper and adv-lib 0.2.8 project onto the ball and then
    clip to the box, which makes the norm of r less than ε: where many pixels are 0, r then stops before it reaches the
    boundary. In Foolbox 3.3.4 the projection for p = 2 has no effect, as it divides a norm by itself.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p: 0, 1, 2 or inf.
      steps: gradients for each image.
      learning_rate: the first α, the 2-norm of a step.
      gamma: the first γ, in (0, 1).
      targets: `[B]`, classes to reach; the margin is then the largest other logit minus the target's.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`; for p = 0 the distance is the number of changed entries.

    Raises:
      ValueError: an argument is out of its range.

    Pintor, Roli, Brendel & Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints", 2021,
    algorithm 1.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, learning_rate=learning_rate)
    arguments.numbers(0, 1, above=True, below=True, gamma=gamma)
    numbers = {"learning_rate": learning_rate, "gamma": gamma}
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=norm, numbers=numbers, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, gamma, steps) -> Found:
    x, farthest, start = given.images, geometry.largest(given.images, norm), small_start(given, keys)

    schedule = optax.cosine_decay_schedule(1.0, steps)

    def advance(step, state):
        r, ε, best = state
        logits, margin, gradient = given.gradient(classifier, x + r, losses.margin)
        adversarial, size = given.adversarial(logits, CAREFUL), geometry.norm(r, norm)
        best = best.keep(given, r, size, adversarial)
        cosine = schedule(step)
        α = learning_rate * (0.01 + 0.99 * cosine)
        γ = LAST_GAMMA + (gamma - LAST_GAMMA) * cosine
        if norm == 0:
            smaller = jnp.minimum(jnp.minimum(ε - 1, jnp.floor((1 - γ) * ε)), best.value)
            larger = jnp.maximum(ε + 1, jnp.floor((1 + γ) * ε))
        else:
            # The distance at which the image counts as adversarial, a little beyond the boundary: with the distance of
            # the boundary itself the radius would stay too small for ever.
            fall = jnp.maximum(margin + given.rounding(logits), 0)
            boundary = size + fall / jnp.maximum(geometry.norm(gradient, geometry.dual(norm)), jnp.finfo(x.dtype).tiny)
            smaller = jnp.minimum((1 - γ) * ε, best.value)
            larger = jnp.where(best.found, (1 + γ) * ε, boundary)
        ε = jnp.clip(jnp.where(adversarial, smaller, larger), 0, farthest)
        return geometry.project_ball_in_box(r - α * geometry.dual_direction(gradient, 2), x, ε, norm), ε, best

    ε = jnp.full(len(x), 1 if norm == 0 else jnp.inf, x.dtype)
    r, _, best = jax.lax.fori_loop(0, steps, advance, (start, ε, Best.none(x)))
    best = best.keep(given, r, geometry.norm(r, norm), given.adversarial(classifier(x + r), CAREFUL))
    return Found(given.where(best.found, best.r, r), gradients=steps, forwards=1)
