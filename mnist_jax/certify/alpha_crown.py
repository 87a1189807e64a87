"""The certificate alpha-CROWN: CROWN's linear bounds, with the slopes of the lower lines optimized."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mnist_jax import arguments
from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.relaxations import steepness
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import Program

AT_ONCE = 8  # largest number of images in a chunk; chosen by hand
STEP = 0.3  # Adam's first learning rate, in units of the slope; it falls to a tenth of that. Chosen by hand
SOONER = 0.5  # Adam's b1 and b2, smaller than usual as there are few steps; chosen by hand


def alpha_crown(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
    steps: int = 10,
) -> CertifyResult:
    """Certifies images by CROWN's linear bounds, with slopes of the lower lines that Adam optimizes for each bound.

    Xu et al., "Fast and complete: enabling complete verification with massively parallel incomplete verifiers", 2021.
    As in `crown`, the argument of every nonlinear operation is bounded first, then the label's lead over every other
    class. Each of these bounds optimizes its own slopes for all the nonlinear operations before it, and keeps the best
    value that it had at any step.

    Args:
      classifier, images, labels, radius, norm: as in `crown`.
      steps: number of optimizer steps for each bound.

    Returns:
      What is proved of each image, and adversarial images that were found on the way.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for.
    """
    arguments.counts(steps=steps)
    return driver.run(kernel, classifier, images, labels, radius, norm=norm, at_once=AT_ONCE, steps=steps)


def kernel(
    classifier: Classifier,
    images: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    *,
    norm: float,
    computation: Program,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the margin `[B]` by alpha-CROWN, and candidates `[B, *shape]` for adversarial images.

    A pure function, for use inside any JAX transformation.
    """
    bounds = linear.walk(classifier, images, radius, norm, computation)
    method = partial(optimized, steps)
    bounds.forwards(partial(linear.tighten, method))
    return linear.margin(bounds, labels, [method, partial(linear.with_slopes, "flat")])


def optimized(
    steps: int, bounds: Bounds, place: int, functions: dict[int, jax.Array], constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of linear functions with slopes optimized for each of them; takes and gives what `Bounds.back` does.

    The bounds are the best of all steps; the points where they are nearly attained are those of the last step.
    """
    ramps = {at: node.ramp for at, node in bounds.nodes.items() if at < place and node.ramp is not None}
    if not ramps:
        return bounds.back(place, functions, constant)
    begin = {
        at: jnp.broadcast_to(steepness(r.d, "adaptive"), (*r.d.low.shape[:-1], *constant.shape))
        for at, r in ramps.items()
    }

    def bound(slopes: dict[int, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        least, where = bounds.back(place, functions, constant, slopes.get)
        return -least.sum(), (least, where)

    rule = optax.adam(optax.exponential_decay(STEP, steps, 0.1), b1=SOONER, b2=SOONER)

    def step(_, state):
        slopes, memory, best = state
        gradient, (least, _) = jax.grad(bound, has_aux=True)(slopes)
        # Where the gradient is not finite, as at radius 0, the slope stays; the bound holds for any slope.
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        update, memory = rule.update(gradient, memory)
        slopes = jax.tree.map(lambda s, u: jnp.clip(s + u, 0, 1), slopes, update)
        return slopes, memory, jnp.maximum(best, least)

    lowest = jnp.full(constant.shape, -jnp.inf, constant.dtype)
    slopes, _, best = jax.lax.fori_loop(0, steps, step, (begin, rule.init(begin), lowest))
    last, where = bounds.back(place, functions, constant, slopes.get)
    return jnp.maximum(best, last), where
