"""CapsNet: capsules are vectors whose length says whether an object is present and whose direction how it looks."""

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

# The paper is Sabour, Frosst & Hinton 2017.
FILTERS = 64  # filters of the first convolution; the paper has 256
KINDS = 8  # primary capsules at each place; the paper has 32
PRIMARY, DIGIT = 8, 16  # dimensions of a primary capsule and of a class's capsule, as in the paper
ROUNDS = 3  # rounds of routing, as in the paper
DECODER = 128, 256  # widths of the decoder's hidden layers; the paper has 512 and 1024


@dataclass(frozen=True)
class Reconstruction:
    """CapsNet's objective: a loss of the capsules' lengths, plus the error of the decoded image.

    The image is decoded from the label's capsule (Sabour, Frosst & Hinton 2017, section 4.1). It is compared with the
    image of the batch, after random distortion.

    Attributes:
      loss: a function of logits `[B, C]` and labels `[B]` that gives `[B]`.
      weight: factor of the reconstruction error, the sum over pixels of the squared differences; as in the paper.
    """

    loss: Callable[[ArrayLike, ArrayLike], jax.Array] = losses.capsule_margin
    weight: float = 0.0005

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        model = network.evaluating(weights)  # none of its layers behaves differently in training
        capsules = model.digits(images)
        logits = lengths(capsules)
        errors = jnp.square(model.decode(capsules, labels) - images).sum((1, 2, 3))
        return Outcome(self.loss(logits, labels) + self.weight * errors, jnp.zeros(()), logits, {})


def squared_norm(vectors: jax.Array) -> jax.Array:
    """The squared 2-norm of vectors along the last axis."""
    return jnp.square(vectors).sum(-1)


def squash(vectors: jax.Array) -> jax.Array:
    """Scales vectors s along the last axis to the length `|s|^2 / (1 + |s|^2)` (Sabour et al. 2017, equation 1).

    At 0, where the norm has no derivative, value and derivative are defined as 0.
    """
    square = squared_norm(vectors)[..., None]
    positive = square > 0
    norm = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return vectors * (norm / (1 + square))


def route(votes: jax.Array, rounds: int = ROUNDS) -> jax.Array:
    """Routing by agreement (Sabour et al. 2017, procedure 1): weighted sums of the primary capsules' votes.

    Each primary capsule has weights for the classes that add up to 1. In every round the weight of a class grows with
    the scalar product of the capsule's vote for it and the class's squashed sum of votes. Gradients pass through all
    rounds.

    Args:
      votes: `[B, C, I, D]`, of I primary capsules for C classes.
      rounds: number of sums; in the first, all weights are 1 / C.

    Returns:
      `[B, C, D]`, the classes' sums of the last round, which are their capsules before squashing.
    """
    totals = votes.sum(2) / votes.shape[1]  # the weights are equal in the first round
    agreement = jnp.zeros((), votes.dtype)
    for _ in range(rounds - 1):
        # einsum becomes products of matrices; written as sums of products, XLA's CPU backend takes 20 times as long.
        agreement = agreement + jnp.einsum("bcid,bcd->bci", votes, squash(totals))
        totals = jnp.einsum("bci,bcid->bcd", jax.nn.softmax(agreement, 1), votes)
    return totals


def lengths(totals: jax.Array) -> jax.Array:
    """The lengths `[B, C]` of capsules after squashing, from the capsules `[B, C, D]` before; without a square root."""
    square = squared_norm(totals)
    return square / (1 + square)


class Votes(nnx.Module):
    """The votes of primary capsules for classes, a matrix for each pair: `[B, I, PRIMARY]` to `[B, C, I, DIGIT]`."""

    def __init__(self, capsules: int, classes: int, rngs: nnx.Rngs):
        init = functools.partial(uniform_by_fan_in, fan_in=PRIMARY)
        self.classes = classes
        self.kernel = nnx.Param(init(rngs.params(), (capsules, PRIMARY, classes * DIGIT), jnp.float32))

    def __call__(self, capsules: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(*self.kernel.shape[:2], self.classes, DIGIT)
        return jnp.einsum("ikcd,bik->bcid", kernel, capsules)


class CapsNet(Network):
    """Capsules with routing by agreement; 10 million operations per image.

    Sabour, Frosst & Hinton, "Dynamic routing between capsules", 2017, but narrower: 64 filters in place of 256, 8 kinds
    of primary capsules in place of 32, and a decoder of a quarter of the width; 0.7 million weights in place of 8.2.
    The stride of 2 is in the first convolution, not in the second, whose kernel then is 5x5 in place of 9x9: a primary
    capsule sees 17x17 pixels, and there are 6x6 places, as in the paper, for a third of the work.

    The logits are the lengths of the classes' capsules, each in [0, 1). So a margin is within (-1, 1), and it
    saturates: the length `n / (1 + n)` of a capsule whose squared norm before squashing is n has the derivative
    `1 / (1 + n)^2`. An attack on the logits or their softmax gets gradients near zero there, and may make no progress.
    Attacks should therefore search on `squared_norms`, which has the same adversarial images and does not saturate, and
    on `votes`, which leaves the routing out; whether an image is adversarial is to be judged by `apply`:

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
        """Logits `[B, classes]`, the lengths of the classes' capsules, of images `[B, *shape]`; there is no dropout.

        Raises:
          ValueError: the images are of another shape.
        """
        return lengths(self.digits(images))

    def digits(self, images: jax.Array, rounds: int = ROUNDS) -> jax.Array:
        """The classes' capsules `[B, classes, DIGIT]` before squashing."""
        self.check(images)
        primary = self.features(images).reshape(len(images), self.capsules.kernel.shape[0], PRIMARY)
        return route(self.capsules(squash(primary)), rounds)

    def decode(self, totals: jax.Array, labels: jax.Array) -> jax.Array:
        """Images `[B, *shape]` decoded from the capsules of the classes `labels` `[B]` alone."""
        own = jnp.arange(self.classes)[None] == labels[:, None]
        shown = jnp.where(own[..., None], squash(totals), 0)
        return self.decoder(shown.reshape(len(labels), self.classes * DIGIT)).reshape(len(labels), *self.shape)

    @classmethod
    def objective(cls) -> Objective:
        """The objective of recipe `original`: `loss` plus the reconstruction error."""
        return Reconstruction(cls.loss)

    @classmethod
    def squared_norms(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """The squared norms `[B, classes]` of the classes' capsules before squashing, as logits that don't saturate.

        They order the classes as the lengths do, so the adversarial images are the same, up to rounding.
        """
        return squared_norm(cls.evaluating(weights).digits(images))

    @classmethod
    def votes(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """`squared_norms` without routing: every primary capsule has the same weight for every class.

        This is another classifier: an image that fools it may not fool the network.
        """
        return squared_norm(cls.evaluating(weights).digits(images, rounds=1))

    @classmethod
    def reconstruct(cls, weights: Weights, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Reconstructions `[B, *shape]` in [0, 1] of the images, decoded from the capsules of the classes `labels`."""
        model = cls.evaluating(weights)
        return model.decode(model.digits(images), jnp.asarray(labels))
