"""DeepFool: repeated steps to the nearest class boundary of the linearized classifier."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.boundary import margins
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.classifier import Classifier

METHOD = Method(
    None,
    "repeated steps to the nearest linearized class boundary",
    "Moosavi-Dezfooli et al. 2016",
)


def deepfool(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    steps: int = 50,
    overshoot: float = 0.02,
    classes: int = 10,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """DeepFool: steps to the nearest boundary of the linearized margins m_k = z_label - z_k, until the class changes:

        k = argmin m_k / norm_q(grad m_k)               1 / p + 1 / q = 1
        r <- r + the step of p-norm  m_k / norm_q(grad m_k)  along which m_k falls fastest

    Margins and gradients are evaluated at `clip(x + (1 + overshoot) r)`, which is also the image that is tested. The
    paper has no box. For p < 2 a step changes few pixels, so those that are at the box's limit are left out: else
    clipping could undo the whole step.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      steps: the most steps for each image; a step takes one gradient for every class but the label.
      overshoot: by what share of itself the perturbation is lengthened, to get across the boundary.
      classes: how many of the likeliest classes are considered, the label included; 10 as in the authors' code.
      targets: `[B]`, classes to reach; the only margin is then that of the target, and a step takes one gradient.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult` with the first misclassified image.

    Raises:
      ValueError: an argument is out of its range.

    Moosavi-Dezfooli, Fawzi & Frossard, "DeepFool: a simple and accurate method to fool deep neural networks", 2016,
    algorithm 2; section 3.3 for other norms.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    arguments.counts(least=2, classes=classes)
    arguments.numbers(0, overshoot=overshoot)
    asked = Asked(classifier, images, labels, targets, key)
    numbers = {"overshoot": overshoot}
    return driver.run(kernel, asked, norm=norm, numbers=numbers, steps=steps, others=classes - 1)


def kernel(classifier, given: Problem, keys, *, norm, overshoot, steps, others) -> Found:
    start = small_start(given, keys)

    def at(r):
        return given.at((1 + overshoot) * r)

    def advance(state):
        step, r, adversarial, gradients = state
        logits, _, values, slopes = margins(classifier, given._replace(images=at(r)), others)
        adversarial |= given.adversarial(logits, CAREFUL)
        moved = r + _to_nearest(at(r), values + given.rounding(logits)[None], slopes, norm)
        moved = given.inside(moved)
        gradients += jnp.where(adversarial, 0, len(values))
        return step + 1, given.where(adversarial, r, moved), adversarial, gradients

    def goes_on(state):
        step, _, adversarial, _ = state
        return (step < steps) & ~adversarial.all()

    none = jnp.zeros(len(start), bool)
    _, r, adversarial, gradients = jax.lax.while_loop(goes_on, advance, (0, start, none, none.astype(jnp.int32)))
    return Found((1 + overshoot) * r, gradients, forwards=jnp.where(adversarial, 1, 0))


def _to_nearest(images, falls, slopes, norm):
    """The step of least p-norm `[B, *shape]` along which any one of K linear functions falls to its boundary.

    `falls [K, B]` are the values to fall by, `slopes [K, B, *shape]` the gradients.
    """
    if norm < 2:
        stopped = ((images <= 0)[None] & (slopes > 0)) | ((images >= 1)[None] & (slopes < 0))
        slopes = jnp.where(stopped, 0, slopes)
    steepness = jax.vmap(partial(geometry.norm, p=geometry.dual(norm)))(slopes)
    lengths = jnp.where(steepness > 0, jnp.maximum(falls, 0) / jnp.where(steepness > 0, steepness, 1), jnp.inf)
    nearest = lengths.argmin(0)[None]
    slope = jnp.take_along_axis(slopes, nearest.reshape(*nearest.shape, *[1] * (images.ndim - 1)), 0)[0]
    # No step is longer than the box allows, so that none is infinite where all gradients are zero.
    length = jnp.minimum(lengths.min(0), geometry.largest(images, norm))
    return -geometry.dual_direction(slope, norm) * length.reshape(-1, *[1] * (images.ndim - 1))
