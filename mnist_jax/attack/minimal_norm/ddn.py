"""DDN: gradient steps for the direction of the perturbation, while success or failure adjusts its norm."""

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
    (2,),
    "gradient steps for the direction; the norm shrinks after a success and grows after a failure",
    "Rony et al. 2019",
)

FIRST, LAST = 1.0, 0.01  # α, the 2-norm of a gradient step, at the first and last step of the cosine; from the paper


def ddn(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 100,
    gamma: float = 0.05,
    initial: ArrayLike = 1.0,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """DDN: minimizes norm_2(r) such that x + r is misclassified, updating direction and norm separately:

        r <- r + α g / norm_2(g)                       g the gradient of the cross-entropy
        ε <- (1 - γ) ε  where x + r was misclassified, else  (1 + γ) ε
        r <- clip(x + ε r / norm_2(r)) - x

    α falls from 1 to 0.01 along a cosine. The nearest misclassified image of all steps is kept. g is computed from the
    log-odds of the label, whose gradient has the direction of the cross-entropy's, and is not zero in float32 where the
    network is confident. Images are not rounded to grey levels: the authors' implementation rounds them to 256 levels
    by default, which makes the distances it finds larger.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: 2, the only norm that the method is for.
      steps: gradients for each image.
      gamma: γ, in (0, 1).
      initial: the first ε, a number or `[B]`.
      targets: `[B]`, classes to reach; g is then minus the gradient of the target's cross-entropy.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.

    Rony, Hafemann, Oliveira, Ben Ayed, Sabourin & Granger, "Decoupling direction and norm for efficient gradient-based
    L2 adversarial attacks and defenses", 2019, algorithm 1.
    """
    METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.numbers(0, 1, above=True, below=True, gamma=gamma)
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=2, each={"initial": initial}, numbers={"gamma": gamma}, steps=steps)


def kernel(classifier, given: Problem, keys, *, norm, initial, gamma, steps) -> Found:
    del norm
    x, farthest, start = given.images, geometry.largest(given.images, 2), small_start(given, keys)

    rate = optax.cosine_decay_schedule(FIRST, steps, LAST / FIRST)

    def advance(step, state):
        r, ε, best = state
        logits, _, gradient = given.gradient(classifier, x + r, losses.log_odds)
        adversarial = given.adversarial(logits, CAREFUL)
        best = best.keep(given, r, geometry.norm(r, 2), adversarial)
        r = r - rate(step) * geometry.dual_direction(gradient, 2)
        ε = jnp.minimum(jnp.where(adversarial, 1 - gamma, 1 + gamma) * ε, farthest)
        length = geometry.norm(r, 2)
        r = r * given.per_image(ε / jnp.where(length > 0, length, 1))
        return given.inside(r), ε, best

    r, _, best = jax.lax.fori_loop(0, steps, advance, (start, initial, Best.none(x)))
    best = best.keep(given, r, geometry.norm(r, 2), given.adversarial(classifier(x + r), CAREFUL))
    return Found(given.where(best.found, best.r, r), gradients=steps, forwards=1)
