"""What certified training follows: bounds of the logits, the start they need, and regularizers of their widths."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.certify import linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.driver import OTHERS
from mnist_jax.certify.ibp import as_is
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import program
from mnist_jax.losses import cross_entropy
from mnist_jax.networks import Network, Weights, shapes

TOLERANCE = 0.5  # of the regularizers: ratios above it cost nothing (Shi et al. 2021)
LEAST = 1e-12  # in place of a ratio's denominator that is 0


class Bounded(NamedTuple):
    """Interval bounds of a batch.

    Attributes:
      logits: `[B, C]`, the worst there may be: minus the lower bounds of the label's lead, 0 for the label.
      bent: lower and upper bounds of what each ReLU is applied to, less its threshold.
      width: of the images' intervals, the mean.
    """

    logits: jax.Array
    bent: list[tuple[jax.Array, jax.Array]]
    width: jax.Array


def intervals(
    network: type[Network],
    weights: Weights,
    images: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    *,
    lines: jax.Array | None = None,
) -> Bounded:
    """Interval bounds over an Linf ball and the box, in evaluation mode (Gowal et al. 2018).

    They are not charged for rounding: training follows them, and a certificate comes afterwards. Where `lines`, a
    number from 0 to 1, is given, the bounds of the logits are so much nearer to those that linear bounds over the
    intervals give, where these are better (Zhang et al. 2020).
    """
    classifier = Classifier(network.apply, weights)
    computation = program.read(classifier, images.shape[1:], images.dtype, OTHERS)
    each = jnp.broadcast_to(radius, images.shape[:1]).astype(images.dtype)
    bounds = linear.walk(classifier, images, each, INF, computation, rounded=False)
    bounds.forwards(as_is)
    own = jnp.arange(network.classes)[:, None] == labels[None]

    def worst(ways: list[linear.Way]) -> jax.Array:
        return jnp.where(own, 0, -linear.leads(bounds, labels, ways)[0]).T

    logits = worst([])
    if lines is not None:
        logits = lines * worst([Bounds.back]) + (1 - lines) * logits
    bent = [node.ramp.d for node in bounds.nodes.values() if node.ramp is not None and node.ramp.fixed]
    return Bounded(logits, [(d.low, d.high) for d in bent], 2 * bounds.region.width.mean())


def worst_case(bounded: Bounded, labels: jax.Array) -> jax.Array:
    """Upper bounds `[B]` of the cross-entropy."""
    return cross_entropy(bounded.logits, labels)


def regularizer(bounded: Bounded) -> jax.Array:
    """What keeps bounds from growing through the layers, and ReLUs from being all on one side.

    Shi et al., "Fast certified robust training with short warmup", 2021, equations 6 to 8. For each ReLU: the mean
    width of the images' intervals over that of its arguments', and the balance, in mean and variance, of those that are
    certainly active and certainly inactive; each is to be `TOLERANCE` at least.
    """
    total = jnp.zeros_like(bounded.width)
    for low, high in bounded.bent:
        total = total + _short(bounded.width / jnp.maximum((high - low).mean(), LEAST))
        total = total + _balance(low, high)
    return total / (TOLERANCE * max(len(bounded.bent), 1))


def _balance(low: jax.Array, high: jax.Array) -> jax.Array:
    center = (low + high) / 2
    active, inactive = low > 0, high < 0
    spread = jnp.square(center - center.mean())
    ratios = [
        _smaller((center * active).sum(), -(center * inactive).sum()),
        _smaller((spread * active).sum(), (spread * inactive).sum()),
    ]
    return jnp.where(active.any() & inactive.any(), sum(map(_short, ratios)), 0.0)


def _smaller(a: jax.Array, b: jax.Array) -> jax.Array:
    """The ratio of two positive numbers, or its inverse, whichever is below 1."""
    return jnp.minimum(a, b) / jnp.maximum(jnp.maximum(a, b), LEAST)


def _short(ratio: jax.Array) -> jax.Array:
    return jnp.maximum(TOLERANCE - ratio, 0)


def initialize(network: type[Network], key: jax.Array) -> Weights:
    """Fresh weights with kernels of deviation `sqrt(2 pi) / fan-in`, and biases 0.

    Intervals then keep their width through a layer and a ReLU (Shi et al. 2021, section 3.1), where the usual
    initialization widens them by the square root of the fan-in, layer by layer.
    """
    weights = network.initialize(key)
    for number, name in enumerate(sorted(shapes(network))):
        array = weights[name]
        if name.endswith(".kernel"):
            deviation = math.sqrt(2 * math.pi) / math.prod(array.shape[:-1])
            drawn = jax.random.normal(jax.random.fold_in(key, number), array.shape, array.dtype)
            weights[name] = deviation * drawn
        elif name.endswith(".bias"):
            weights[name] = jnp.zeros_like(array)
    return weights


def penalty(bounded: Bounded, weights: Weights, regularization: jax.Array, sparsity: float) -> jax.Array:
    """The regularizers, and the 1-norm of all kernels together, by their weights."""
    size = sum((jnp.abs(w).sum() for name, w in weights.items() if name.endswith(".kernel")), jnp.zeros(()))
    return regularization * regularizer(bounded) + sparsity * size
