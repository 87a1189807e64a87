"""Capsules: groups of neurons whose length says whether something is there, and whose direction how it looks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from mnist_jax import losses
from mnist_jax.networks.convolutional import CONVOLUTIONAL
from mnist_jax.networks.network import Network, Weights, conv, linear, shape_of, uniform_by_fan_in
from mnist_jax.objective import Objective, Outcome

FILTERS = 64  # of the first convolution; the paper has 256
KINDS = 8  # of primary capsules at each place; the paper has 32
PRIMARY, DIGIT = 8, 16  # dimensions of the capsules, as in the paper
ROUNDS = 3  # of routing
DECODER = 128, 256  # widths; the paper has 512 and 1024


@dataclass(frozen=True)
class Reconstruction:
    """The loss of the lengths, and how far the image is from what the true class's capsule is decoded to.

    Sabour, Frosst & Hinton 2017, section 4.1. The images reconstructed are those trained on, distorted or not.

    Attributes:
      loss: a function of logits `[B, C]` and labels `[B]`.
      weight: of the sum of the squared differences of pixels.
    """

    loss: Callable[[ArrayLike, ArrayLike], jax.Array] = losses.capsule_margin
    weight: float = 0.0005

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        model = network.evaluating(weights)  # no layer of it is another one in training
        capsules = model.digits(images)
        logits = lengths(capsules)
        errors = jnp.square(model.decode(capsules, labels) - images).sum((1, 2, 3))
        return Outcome(self.loss(logits, labels) + self.weight * errors, jnp.zeros(()), logits, {})


def squared_norm(vectors: jax.Array) -> jax.Array:
    """Of vectors along the last axis."""
    return jnp.square(vectors).sum(-1)


def squash(vectors: jax.Array) -> jax.Array:
    """`|s|^2 / (1 + |s|^2)` long, in the direction of s: vectors along the last axis (equation 1).

    At 0, where the norm has no derivative, the value and the derivative are 0.
    """
    square = squared_norm(vectors)[..., None]
    positive = square > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return vectors * (norm / (1 + square))


def route(votes: jax.Array, rounds: int = ROUNDS) -> jax.Array:
    """Routing by agreement (procedure 1).

    In every round a capsule shares itself out among the classes, the more to one the better its vote agrees with what
    the votes for that class add up to, by their scalar product. Gradients pass through all of it, in training too.

    Args:
      votes: `[B, C, I, D]`, of I capsules for C classes.

    Returns:
      `[B, C, D]`, the classes' capsules of the last round before they are squashed. Of one round, in which all shares
      are equal, they are the sums of the votes over C.
    """
    totals = votes.sum(2) / votes.shape[1]  # shares are equal at first
    agreement = jnp.zeros((), votes.dtype)
    for _ in range(rounds - 1):
        # Products of matrices: written as sums of products, XLA's CPU backend takes twenty times as long for them.
        agreement = agreement + jnp.einsum("bcid,bcd->bci", votes, squash(totals))
        totals = jnp.einsum("bci,bcid->bcd", jax.nn.softmax(agreement, 1), votes)
    return totals


def lengths(totals: jax.Array) -> jax.Array:
    """Lengths `[B, C]` of the capsules that `[B, C, D]` are squashed to; it needs no square root."""
    square = squared_norm(totals)
    return square / (1 + square)


class Votes(nnx.Module):
    """What each primary capsule makes of itself for each class: `[B, I, PRIMARY]` to `[B, C, I, DIGIT]`."""

    def __init__(self, capsules: int, classes: int, rngs: nnx.Rngs):
        init = functools.partial(uniform_by_fan_in, fan_in=PRIMARY)
        self.classes = classes
        self.kernel = nnx.Param(init(rngs.params(), (capsules, PRIMARY, classes * DIGIT), jnp.float32))

    def __call__(self, capsules: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(*self.kernel.shape[:2], self.classes, DIGIT)
        return jnp.einsum("ikcd,bik->bcid", kernel, capsules)


class CapsNet(Network):
    """Capsules with routing by agreement; 10 million operations an image.

    Sabour, Frosst & Hinton, "Dynamic routing between capsules", 2017, narrower: 64 filters in place of 256, 8 kinds of
    primary capsules in place of 32, and a decoder of a quarter of the width; 0.7 million weights in place of 8.2. The
    stride of 2 is in the first convolution, not in the second, whose kernel then is 5x5 in place of 9x9: a primary
    capsule sees 17x17 pixels, and there are 6x6 places, as in the paper, for a third of the work.

    The logits are the lengths of the digits' capsules, each in [0, 1). A margin, a difference of two, is within
    (-1, 1), and saturates: a length `n / (1 + n)`, of a capsule whose square was n, has a slope of `1 / (1 + n)^2`. An
    attack that goes by the size of logits, or by their softmax, sees little there; one that only follows gradients may
    stand still. So whether images fool the network is for `apply` to say, but they are to be looked for by
    `squared_norms`, which says the same of every image without saturating, and by `votes`, without the routing, too:

        attack.nearest(Classifier(CapsNet.squared_norms, weights), images, labels)
    """

    loss = staticmethod(losses.capsule_margin)
    best = replace(CONVOLUTIONAL, objective=Reconstruction(), epochs=30)

    decoder: nnx.Sequential

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(
            conv(self.shape[-1], FILTERS, 9, rngs, stride=2),
            nnx.relu,
            conv(FILTERS, PRIMARY * KINDS, 5, rngs),
        )
        height, width, _ = shape_of(self.features, self.shape)
        self.capsules = Votes(KINDS * height * width, self.classes, rngs)
        pixels = self.shape[0] * self.shape[1] * self.shape[2]
        self.decoder = nnx.Sequential(
            linear(DIGIT * self.classes, DECODER[0], rngs),
            nnx.relu,
            linear(DECODER[0], DECODER[1], rngs),
            nnx.relu,
            linear(DECODER[1], pixels, rngs),
            nnx.sigmoid,
        )

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None, masks: int = 1) -> jax.Array:
        """Lengths `[B, classes]` of the digits' capsules for images `[B, *shape]`; nothing is dropped out of them.

        Raises:
          ValueError: the images are of another shape.
        """
        return lengths(self.digits(images))

    def digits(self, images: jax.Array, rounds: int = ROUNDS) -> jax.Array:
        """The digits' capsules `[B, classes, DIGIT]` before they are squashed."""
        self.check(images)
        primary = self.features(images).reshape(len(images), self.capsules.kernel.shape[0], PRIMARY)
        return route(self.capsules(squash(primary)), rounds)

    def decode(self, totals: jax.Array, labels: jax.Array) -> jax.Array:
        """Images `[B, *shape]` from the labels' capsules alone."""
        own = jnp.arange(self.classes)[None] == labels[:, None]
        shown = jnp.where(own[..., None], squash(totals), 0)
        return self.decoder(shown.reshape(len(labels), self.classes * DIGIT)).reshape(len(labels), *self.shape)

    @classmethod
    def objective(cls) -> Objective:
        """What recipe `original` minimizes, too."""
        return Reconstruction(cls.loss)

    @classmethod
    def squared_norms(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """Squares `[B, classes]` of the norms of the digits' capsules before squashing.

        They have the order of the lengths, so that what fools one fools the other, but for rounding, and no bound.
        """
        return squared_norm(cls.evaluating(weights).digits(images))

    @classmethod
    def votes(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """As `squared_norms`, without the routing: each primary capsule counts the same for every class.

        This is another classifier: what fools it may not fool the network.
        """
        return squared_norm(cls.evaluating(weights).digits(images, rounds=1))

    @classmethod
    def reconstruct(cls, weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
        """What the decoder makes `[B, *shape]` of the images by the capsules of these classes `[B]`, in [0, 1]."""
        model = cls.evaluating(weights)
        return model.decode(model.digits(images), jnp.asarray(labels))
