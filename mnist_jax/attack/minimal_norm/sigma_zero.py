"""Sigma-zero: descent on a smooth count of the changed pixels, with an adaptive threshold that sets small ones to 0."""

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
    (0,),
    "descent on a smooth count of changed pixels, with an adaptive threshold",
    "Cinà et al. 2025",
)


def sigma_zero(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 0,
    steps: int = 1000,
    learning_rate: float = 1.0,
    sigma: float = 1e-3,
    threshold: float = 0.3,
    threshold_rate: float = 0.01,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Sigma-zero: minimizes the sum of the margin and a smooth approximation of the share of changed pixels, of D,

        max(margin(x + r), 0) + (1 / D) Σ_j r_j^2 / (r_j^2 + σ)        such that  x + r  in [0, 1]

    by Adam, on gradients scaled to inf-norm 1, with a learning rate η that falls along a cosine to a tenth. After each
    step, pixels with |r_j| < τ are set to 0. τ rises by η times `threshold_rate` where x + r was misclassified, and
    falls by as much elsewhere. The misclassified image with the fewest changed pixels is kept.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: 0, the only norm that the method is for.
      steps: gradients for each image.
      learning_rate: the first η, in units of pixel values.
      sigma: σ, above 0; the smaller it is, the closer the smooth count is to the number of changed pixels.
      threshold: the first τ, in [0, 1].
      threshold_rate: the change of τ in a step, divided by η.
      targets: `[B]`, classes to reach; the margin is then the largest other logit minus the target's.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`, whose distances are the numbers of changed entries.

    Raises:
      ValueError: an argument is out of its range.

    Cinà, Villani, Pintor, Schönherr, Biggio & Pelillo, "σ-zero: gradient-based optimization of l0-norm adversarial
    examples", 2025, algorithm 1.
    """
    METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, learning_rate=learning_rate, sigma=sigma)
    arguments.numbers(0, 1, threshold=threshold)
    arguments.numbers(0, threshold_rate=threshold_rate)
    numbers = {"learning_rate": learning_rate, "sigma": sigma, "threshold": threshold, "threshold_rate": threshold_rate}
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=0, numbers=numbers, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, sigma, threshold, threshold_rate, steps) -> Found:
    del norm
    x, start = given.images, small_start(given, keys)
    adam, rate = optax.scale_by_adam(), optax.cosine_decay_schedule(learning_rate, steps, 0.1)

    def advance(step, state):
        r, moments, τ, best = state
        logits, _, gradient = given.gradient(classifier, x + r, losses.margin)
        adversarial = given.adversarial(logits, CAREFUL)
        best = best.keep(given, r, geometry.norm(r, 0), adversarial)
        count = 2 * sigma * r / (r**2 + sigma) ** 2 / x[0].size
        # The margin's gradient is dropped only once the image counts as adversarial, which is a little below margin 0.
        slope = given.where(adversarial, jnp.zeros_like(r), gradient) + count
        largest = jnp.maximum(geometry.norm(slope, geometry.INF), 1e-12)
        update, moments = adam.update(slope / given.per_image(largest), moments)
        r = given.inside(r - rate(step) * update)
        τ = jnp.clip(τ + threshold_rate * rate(step + 1) * jnp.where(adversarial, 1, -1), 0, 1)
        return jnp.where(jnp.abs(r) < given.per_image(τ), 0, r), moments, τ, best

    τ = jnp.full(len(x), threshold, x.dtype)
    r, _, _, best = jax.lax.fori_loop(0, steps, advance, (start, adam.init(start), τ, Best.none(x)))
    best = best.keep(given, r, geometry.norm(r, 0), given.adversarial(classifier(x + r), CAREFUL))
    return Found(given.where(best.found, best.r, r), gradients=steps, forwards=1)
