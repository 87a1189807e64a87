"""The class `Recipe`, all settings of a training but seed and data, and the schedules that recipes choose from."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from mnist_jax import losses
from mnist_jax.distortion import Distortion
from mnist_jax.objective import Objective

# Recipes that every network has. A trained network's name without a recipe means the first of these that exists.
RECIPES = ("best", "original")
OF_DEFENCES = (*RECIPES, "gpu")  # recipes of defences; "gpu" trains as long as the literature, which takes a GPU


def constant(peak: float, steps: int) -> optax.Schedule:
    """A constant learning rate."""
    return optax.constant_schedule(peak)


def one_cycle(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine down to zero (Smith & Topin 2018)."""
    warmup = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def full(steps: int) -> optax.Schedule:
    """Distortion at full strength throughout the training."""
    return optax.constant_schedule(1.0)


def fading(steps: int) -> optax.Schedule:
    """Distortion at full strength for three tenths of the steps, then falling linearly to a strength of 0.3.

    The last steps then train on images that are closer to undistorted ones (compare He et al., "Data augmentation
    revisited", 2019).
    """
    return optax.linear_schedule(1.0, 0.3, steps - 3 * steps // 10, 3 * steps // 10)


@dataclass(frozen=True)
class Recipe:
    """All settings of a network's training, apart from the seed and the data.

    Attributes:
      name: name of the recipe.
      objective: the function that is minimized; from objective.py, from defend/, or a user's own.
      optimizer: makes an optax optimizer from a learning-rate schedule.
      learning_rate: peak of the learning rate.
      epochs: number of passes over the training images.
      batch_size: number of images in a batch.
      schedule: makes the learning-rate schedule from `learning_rate` and the number of steps.
      distortion: random distortion of the training images, or None.
      strength: makes the schedule of the distortion's strength, from 0 to 1, from the number of steps.
      averaging: decay, per step, of the exponential moving average of the weights, which is then the result of the
        training; 0 for no averaging.
    """

    name: str
    objective: Objective
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    learning_rate: float
    epochs: int
    batch_size: int
    schedule: Callable[[float, int], optax.Schedule] = constant
    distortion: Distortion | None = None
    strength: Callable[[int], optax.Schedule] = full
    averaging: float = 0.0

    @property
    def loss(self) -> Callable[[ArrayLike, ArrayLike], jax.Array]:
        """The loss that is reported for undistorted images: that of the objective if it has one, else cross-entropy."""
        return getattr(self.objective, "loss", losses.cross_entropy)

    def hyperparameters(self) -> dict[str, Any]:
        """The recipe's fields as JSON values, with functions by their names."""
        return {field.name: _as_json(getattr(self, field.name)) for field in fields(self)}

    def steps(self, images: int) -> int:
        """The number of gradient steps of the training, for a number of training images."""
        return self.epochs * math.ceil(images / self.batch_size)

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        """The optimizer with its learning-rate schedule, for a number of gradient steps."""
        return self.optimizer(self.schedule(self.learning_rate, steps))


def _as_json(value: Any) -> Any:
    """A function by its name, a dataclass by its name and its fields, infinity as "inf", any other value as it is."""
    if value == math.inf:
        return "inf"  # JSON has no infinity
    if is_dataclass(value):
        return {"name": type(value).__name__} | {
            field.name: _as_json(getattr(value, field.name)) for field in fields(value)
        }
    return value.__name__ if callable(value) and hasattr(value, "__name__") else value
