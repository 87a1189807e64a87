"""alpha-CROWN: linear bounds whose slopes are optimized."""

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

AT_ONCE = 8  # images
STEP = 0.3  # of Adam; it falls to a tenth of it
SOONER = 0.5  # of Adam's memory of gradients: there are few steps


def alpha_crown(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
    steps: int = 10,
) -> CertifyResult:
    """Certifies by linear bounds with the best slopes that Adam finds, for every margin and every step of the network.

    Xu et al., "Fast and complete: enabling complete verification with massively parallel incomplete verifiers", 2021.
    As in `crown` every step that may bend is bounded by what comes before it. Each of these bounds, and that of each
    margin, has lower slopes of its own for all that it goes through, and is the best of all that are met.

    Args:
      classifier, images, labels, radius, norm: as in `crown`.
      steps: of the optimizer, for each bound.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
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
    """The method, inside any transformation: lower bounds of the margin `[B]`, and candidates like the images."""
    bounds = linear.walk(classifier, images, radius, norm, computation)
    way = partial(optimized, steps)
    bounds.forwards(partial(linear.tighten, way))
    return linear.margin(bounds, labels, [way, partial(linear.with_slopes, "flat")])


def optimized(
    steps: int, bounds: Bounds, place: int, functions: dict[int, jax.Array], constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Bounds with optimized slopes, each function's own; the best that was met, and where the last is attained."""
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
        # Where a gradient is no number, as at radius 0, the slope stays; the bound is one all the same.
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        update, memory = rule.update(gradient, memory)
        slopes = jax.tree.map(lambda s, u: jnp.clip(s + u, 0, 1), slopes, update)
        return slopes, memory, jnp.maximum(best, least)

    lowest = jnp.full(constant.shape, -jnp.inf, constant.dtype)
    slopes, _, best = jax.lax.fori_loop(0, steps, step, (begin, rule.init(begin), lowest))
    last, where = bounds.back(place, functions, constant, slopes.get)
    return jnp.maximum(best, last), where
