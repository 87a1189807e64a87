"""Pieces of certified training: interval bounds of the logits, initialization, and regularizers of the bounds."""

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

TOLERANCE = 0.5  # ratios above it are not penalized by the regularizers (Shi et al. 2021)
LEAST = 1e-12  # least denominator of a ratio, against division by 0


class IntervalBounds(NamedTuple):
    """Interval bounds of a network over a box around each image of a batch.

    Attributes:
      logits: `[B, C]`, worst-case logits relative to the label's: minus the lower bounds of the label's lead over each
        class, and 0 for the label.
      arguments: for each ReLU, lower and upper bounds of its argument minus its threshold.
      width: mean width of the pixels' intervals.
    """

    logits: jax.Array
    arguments: list[tuple[jax.Array, jax.Array]]
    width: jax.Array


def intervals(
    network: type[Network],
    weights: Weights,
    images: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    *,
    lines: jax.Array | None = None,
) -> IntervalBounds:
    """Interval bounds of a network over the part of an Linf ball in [0, 1], in evaluation mode (Gowal et al. 2018).

    They ignore rounding: they serve training, and prove nothing.

    Args:
      network, weights: the network, whose running batch statistics are used.
      images, labels: `[B, *shape]` in [0, 1] and `[B]`.
      radius: a number.
      lines: None, or a number t from 0 to 1. The bounds of the logits are then `t` times those by CROWN-IBP, or by
        intervals where these are better, plus `1 - t` times those by intervals (Zhang et al. 2020).
    """
    classifier = Classifier(network.apply, weights)
    computation = program.read(classifier, images.shape[1:], images.dtype, OTHERS)
    each = jnp.broadcast_to(radius, images.shape[:1]).astype(images.dtype)
    bounds = linear.walk(classifier, images, each, INF, computation, rounded=False)
    bounds.forwards(as_is)
    own = jnp.arange(network.classes)[:, None] == labels[None]

    def worst(methods: list[linear.Method]) -> jax.Array:
        return jnp.where(own, 0, -linear.leads(bounds, labels, methods)[0]).T

    logits = worst([])
    if lines is not None:
        logits = lines * worst([Bounds.back]) + (1 - lines) * logits
    arguments = [node.ramp.d for node in bounds.nodes.values() if node.ramp is not None and node.ramp.fixed]
    return IntervalBounds(logits, [(d.low, d.high) for d in arguments], 2 * bounds.region.width.mean())


def worst_case(bounded: IntervalBounds, labels: jax.Array) -> jax.Array:
    """Upper bounds of the cross-entropy of each image over its box, `[B]`."""
    return cross_entropy(bounded.logits, labels)


def regularizer(bounded: IntervalBounds) -> jax.Array:
    """The regularizers of Shi et al., against bounds that grow through the layers and against unbalanced ReLUs.

    "Fast certified robust training with short warmup", 2021, equations 6 to 8. They penalize ratios below `TOLERANCE`,
    for each ReLU layer: the mean width of the pixels' intervals over that of the layer's arguments, and the balance, in
    mean and in variance, between arguments that are certainly positive and those that are certainly negative.
    """
    total = jnp.zeros_like(bounded.width)
    for low, high in bounded.arguments:
        total = total + _short(bounded.width / jnp.maximum((high - low).mean(), LEAST))
        total = total + _balance(low, high)
    return total / (TOLERANCE * max(len(bounded.arguments), 1))


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
    """The smaller of two positive numbers divided by the larger one."""
    return jnp.minimum(a, b) / jnp.maximum(jnp.maximum(a, b), LEAST)


def _short(ratio: jax.Array) -> jax.Array:
    return jnp.maximum(TOLERANCE - ratio, 0)


def initialize(network: type[Network], key: jax.Array) -> Weights:
    """Initial weights for certified training: normal kernels of deviation `sqrt(2 pi) / fan-in`, and biases 0.

    With these, intervals keep their width through a layer and its ReLU (Shi et al. 2021, section 3.1); with the usual
    initialization each layer widens them by a factor that grows as the square root of the fan-in.
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


def penalty(bounded: IntervalBounds, weights: Weights, regularization: jax.Array, sparsity: float) -> jax.Array:
    """The penalty of certified training: `regularization` times `regularizer`, `sparsity` times the kernels' 1-norm."""
    size = sum((jnp.abs(w).sum() for name, w in weights.items() if name.endswith(".kernel")), jnp.zeros(()))
    return regularization * regularizer(bounded) + sparsity * size
