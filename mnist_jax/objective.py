"""Objectives: the functions that training minimizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

if TYPE_CHECKING:
    from mnist_jax.networks import Network, Weights


class Outcome(NamedTuple):
    """The result of an objective for a batch.

    Attributes:
      losses: `[B]`; a training step follows the gradient of their mean plus the penalty.
      penalty: a number, for instance a norm of the weights.
      logits: `[B, C]`, from which the reported accuracy is computed.
      statistics: the running batch statistics after this batch; empty where the network has none.
    """

    losses: jax.Array
    penalty: ArrayLike
    logits: jax.Array
    statistics: "Weights"


class Objective(Protocol):
    """An objective: a pure function that training minimizes, called inside the jitted step.

    It is hashable, as programs are compiled for it: a function, or a frozen dataclass whose fields are its settings. A
    dataclass may have a method `initialize(network, key) -> weights`, which replaces the network's initialization.
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
        """The losses and the penalty of a batch, which are minimized over those weights that are parameters.

        Args:
          network: the network; its functions take `weights`.
          weights: parameters and running batch statistics, by name.
          images: `[B, *shape]` in [0, 1].
          labels: `[B]`.
          key: the random key of this step.
          progress: share of the training that is done, from 0 to 1, for radii and weights that depend on it.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """The objective of plain training: the loss of unperturbed images.

    Attributes:
      loss: a function of logits `[B, C]` and labels `[B]`, from losses.py.
      masks: number of dropout masks for each image; the loss is that of the mean of their logits. Evaluation, without
        dropout, approximates that mean; the more masks, the less training differs from it (compare Ma et al., "Dropout
        with expectation-linear regularization", 2017).
    """

    loss: Callable[[ArrayLike, ArrayLike], jax.Array]
    masks: int = 1

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        logits, statistics = network.apply_training(weights, images, key, self.masks)
        return Outcome(self.loss(logits, labels), jnp.zeros(()), logits, statistics)
