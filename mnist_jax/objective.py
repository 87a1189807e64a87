"""Objectives: what training minimizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from mnist_jax.networks import Network, Weights


class Outcome(NamedTuple):
    """What an objective gives for a batch.

    Attributes:
      losses: `[B]`; a step follows the gradient of their mean and the penalty.
      penalty: a number, of the weights for instance.
      logits: `[B, C]`, by which the accuracy is reported.
      statistics: the running batch statistics, moved on; empty where the network has none.
    """

    losses: jax.Array
    penalty: ArrayLike
    logits: jax.Array
    statistics: "Weights"


class Objective(Protocol):
    """What training minimizes: a pure function that runs inside the jitted step, hashable, as programs are made for it.

    It is a function, or a frozen dataclass whose fields say how. One that is a class may have `initialize(network,
    key) -> weights`, for a start of its own.
    """

    def __call__(
        self,
        network: "type[Network]",
        weights: "Weights",
        images: jax.Array,
        labels: jax.Array,
        key: jax.Array,
        progress: jax.Array,
    ) -> Outcome:
        """What to minimize, by the weights that are parameters.

        Args:
          network: whose functions take `weights`.
          images: `[B, *shape]` in [0, 1].
          labels: `[B]`.
          key: of this step.
          progress: of the training, from 0 to 1: for radii and weights that change on the way.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """The loss of the images as they are.

    Attributes:
      loss: a function of logits `[B, C]` and labels `[B]`, from losses.py.
      masks: how many dropout masks an image is seen through at once, the loss being that of the mean of their logits.
        Evaluation, which drops nothing out, stands for that mean; the more masks, the less training differs from it
        (compare Ma et al., "Dropout with expectation-linear regularization", 2017).
    """

    loss: Callable[[ArrayLike, ArrayLike], jax.Array]
    masks: int = 1

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        logits, statistics = network.apply_training(weights, images, key, self.masks)
        return Outcome(self.loss(logits, labels), jnp.zeros(()), logits, statistics)
