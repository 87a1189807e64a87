"""Method B of the original project: one descent, on the confidence while it is high, then on the norm."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses, unstable
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem, problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.device import precisely

METHOD = Method(
    None,
    "one descent on a loss that switches from confidence to norm at two thresholds",
)

# Adam's decay rates of the two moments. The second is below the usual 0.999, because the loss switches during the
# descent, and the moments would keep gradients of the old one for long.
DECAYS = (0.9, 0.99)


class History(NamedTuple):
    """The confidence and the norm of the perturbation of every image at every step, each `[B, steps]`."""

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
    """Descends by Adam on a loss that switches from the confidence in the label, c, to the norm of the perturbation:

        c                  where c > thresholds[0]
        c + norm_p(r)      in between
        norm_p(r)          where c <= thresholds[1] and the image is misclassified

    Adam runs on the pixels of r, which are clipped to the box; the nearest misclassified image of all steps is kept.
    Where the loss is c alone, the gradient of its log-odds, scaled to length 1, is used: it has the same direction, and
    does not vanish where c is 1 in float32.

    Args:
      classifier, images, labels, norm: see `fixed_norm`.
      steps: gradients for each image.
      learning_rate: of Adam, in units of pixel values.
      thresholds: two confidences in [0, 1], the larger one first; see above.
      targets: `[B]`, classes to reach; c is then 1 minus the confidence in the target.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, else
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm, numbers = _checked(norm, steps, learning_rate, thresholds)
    asked = Asked(classifier, images, labels, targets, key)
    return driver.run(kernel, asked, norm=norm, numbers=numbers, steps=steps)


def history(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike | None = None, **options: Any
) -> tuple[AttackResult, History]:
    """Runs `automatic` with these options, and returns also the confidence and the norm at every step.

    Raises:
      ValueError: as for `automatic`, or the classifier has bounds other than [0, 1].
    """
    if classifier.bounds != UNIT:
        raise ValueError("the history of an attack is of images in [0, 1]: give it classifier.in_unit_box")
    how = (automatic.__kwdefaults__ or {}) | options
    norm, numbers = _checked(how["norm"], how["steps"], how["learning_rate"], how["thresholds"])
    with precisely():
        given = problem(Asked(classifier, images, labels, how["targets"], how["key"]))
        keys = None if how["key"] is None else arguments.keys_of(how["key"], len(given.images))
        return in_chunks(partial(_with_history, norm, how["steps"]), (given, keys), classifier, numbers)


def _checked(norm, steps, learning_rate, thresholds) -> tuple[float, dict[str, float]]:
    """The norm, and the other settings as the kernel takes them. Raises `ValueError` where one is out of its range."""
    arguments.counts(steps=steps)
    arguments.numbers(0, above=True, learning_rate=learning_rate)
    if not (isinstance(thresholds, Sequence) and len(thresholds) == 2):
        raise ValueError(f"thresholds must be two numbers, not {thresholds!r}")
    upper, lower = thresholds
    arguments.numbers(0, 1, thresholds=upper)
    arguments.numbers(0, 1, thresholds=lower)
    if not unstable.traced(thresholds) and upper < lower:
        raise ValueError(f"thresholds must fall, not rise as {thresholds}")
    numbers = {"learning_rate": learning_rate, "upper": upper, "lower": lower}
    return METHOD.check_norm(norm), numbers


@partial(jax.jit, static_argnums=(0, 1))
def _with_history(norm, steps, classifier, numbers, given: Problem, keys) -> tuple[AttackResult, History]:
    found, way = descend(classifier, given, keys, norm=norm, steps=steps, **numbers)
    return driver.judge(classifier, given, found, norm), way


def kernel(classifier, given: Problem, keys, **settings) -> Found:
    return descend(classifier, given, keys, **settings)[0]


def descend(classifier, given: Problem, keys, *, norm, learning_rate, upper, lower, steps) -> tuple[Found, History]:
    x, start = given.images, small_start(given, keys)
    adam = optax.scale_by_adam(*DECAYS)
    slope = jax.grad(lambda r: geometry.norm(r, norm).sum())

    def advance(state, _):
        r, moments, best = state
        logits, odds, gradient = given.gradient(classifier, x + r, losses.log_odds)
        confidence = jax.nn.sigmoid(odds)
        size, shrinking = geometry.norm(r, norm), slope(r)
        adversarial = given.adversarial(logits, CAREFUL)
        best = best.keep(given, r, size, adversarial)
        length = jnp.maximum(geometry.norm(gradient, 2), jnp.finfo(r.dtype).tiny)
        alone, only_norm = confidence > upper, (confidence <= lower) & adversarial
        # The derivative of the confidence with respect to the log-odds is c (1 - c).
        weight = jnp.where(alone, 1 / length, jnp.where(only_norm, 0, confidence * (1 - confidence)))
        direction = given.per_image(weight) * gradient + given.where(alone, jnp.zeros_like(r), shrinking)
        update, moments = adam.update(direction, moments)
        moved = given.inside(r - learning_rate * update)
        return (moved, moments, best), History(confidence, size)

    (last, _, best), way = jax.lax.scan(advance, (start, adam.init(start), Best.none(x)), length=steps)
    found = Found(given.where(best.found, best.r, last), gradients=steps, forwards=0)
    return found, jax.tree.map(jnp.transpose, way)
