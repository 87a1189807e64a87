"""Method B of the original project: confidence first, then the norm, in one descent."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mnist_jax import geometry, losses
from mnist_jax.attack.engine.arguments import at_least
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.chunks import in_chunks
from mnist_jax.attack.engine.problem import CAREFUL, Problem, problem
from mnist_jax.attack.engine.result import AttackResult, finish
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.classifier import Classifier

DECAYS = (0.9, 0.99)  # of Adam's moments: the loss changes on the way, and long memories would be of another one


class History(NamedTuple):
    """The way of every image: `[B, steps]`."""

    confidence: jax.Array
    norm: jax.Array


def automatic(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 100,
    learning_rate: float = 0.01,
    thresholds: tuple[float, float] = (0.2, 0.1),
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Descends on a loss that depends on the confidence c that the classifier has in the label:

        c                  where c > thresholds[0]
        c + norm_p(r)      between the two
        norm_p(r)          where c <= thresholds[1] and the image is misclassified

    by Adam on the pixels of r, clipped to the box, and keeps the nearest misclassified image that it passes. Where the
    loss is c alone, its gradient is taken of the log-odds of c, scaled to length 1: the same direction, which does not
    vanish where c is 1 in float32.

    Args:
      classifier, images, labels, norm: see `fixed_norm`.
      steps: gradients for each image.
      learning_rate: of Adam, in units of pixels.
      thresholds: see above.
      targets: `[B]`, classes to reach; c is then 1 less the confidence in the target.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, else
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    return _descend(classifier, images, labels, norm, steps, learning_rate, thresholds, targets, key)[0]


def history(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike | None = None, **options: Any
) -> tuple[AttackResult, History]:
    """`automatic` with these options, and the confidence and the norm at every step of its way."""
    return _descend(classifier, images, labels, **((automatic.__kwdefaults__ or {}) | options))


def _descend(classifier, images, labels, norm, steps, learning_rate, thresholds, targets, key):
    norm = geometry.check_norm(norm)
    at_least(1, steps=steps)
    if not 1 >= thresholds[0] >= thresholds[1] >= 0:
        raise ValueError(f"thresholds must fall, from at most 1 to at least 0, not {thresholds}")
    given = problem(classifier, images, labels, targets)
    run = partial(_run, norm=norm, steps=steps, thresholds=tuple(thresholds))
    return in_chunks(
        lambda *arrays: run(classifier, jnp.asarray(learning_rate), *arrays), (given, small_start(given, key))
    )


@partial(jax.jit, static_argnames=("norm", "steps", "thresholds"))
def _run(classifier, learning_rate, given: Problem, start, *, norm, steps, thresholds) -> tuple[AttackResult, History]:
    x = given.images
    adam = optax.scale_by_adam(*DECAYS)
    slope = jax.grad(lambda r: geometry.norm(r, norm).sum())

    def advance(state, _):
        r, moments, best = state
        logits, odds, gradient = given.gradient(classifier, x + r, losses.log_odds)
        confidence = jax.nn.sigmoid(odds)
        size, shrinking = geometry.norm(r, norm), slope(r)
        solved = given.solved(logits, CAREFUL)
        best = best.keep(given, r, size, solved)
        length = jnp.maximum(geometry.norm(gradient, 2), jnp.finfo(r.dtype).tiny)
        alone, only_norm = confidence > thresholds[0], (confidence <= thresholds[1]) & solved
        # The derivative of the confidence by the log-odds is c (1 - c).
        weight = jnp.where(alone, 1 / length, jnp.where(only_norm, 0, confidence * (1 - confidence)))
        direction = given.per_image(weight) * gradient + given.where(alone, jnp.zeros_like(r), shrinking)
        update, moments = adam.update(direction, moments)
        moved = jnp.clip(x + r - learning_rate * update, 0, 1) - x
        return (moved, moments, best), History(confidence, size)

    (last, _, best), way = jax.lax.scan(advance, (start, adam.init(start), Best.none(x)), length=steps)
    found = x + given.where(best.found, best.r, last)
    return finish(classifier, given, found, norm, steps, 0), jax.tree.map(jnp.transpose, way)
