"""Recipe: everything that says how a network is trained, and the schedules that recipes choose from."""

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

RECIPES = ("best", "original")  # of every network; a bare name of a trained one means the first that there is
OF_DEFENCES = (*RECIPES, "gpu")  # of some defences too, as the literature trains: longer, and on a GPU


def constant(peak: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def one_cycle(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine down to zero (Smith & Topin 2018)."""
    warmup = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def full(steps: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def fading(steps: int) -> optax.Schedule:
    """Full strength for three tenths of the steps, then linearly down to three tenths of it.

    What is learnt last is nearest to the images as they are (compare He et al., "Data augmentation revisited", 2019).
    """
    return optax.linear_schedule(1.0, 0.3, steps - 3 * steps // 10, 3 * steps // 10)


@dataclass(frozen=True)
class Recipe:
    """Everything that says how a network is trained, apart from the seed and the data.

    Attributes:
      objective: what is minimized; from objective.py, defend/, or a user's own.
      optimizer: makes an optax optimizer of a learning-rate schedule.
      schedule: makes that schedule of `learning_rate`, its peak, and the number of steps.
      distortion: of the training images, or None.
      strength: makes the schedule of the distortion's strength, of the number of steps.
      averaging: decay, per step, of the exponential moving average of the weights that is the result; 0 for none.
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
        """The loss by which a network is measured on images as they are: that of a plain objective."""
        return getattr(self.objective, "loss", losses.cross_entropy)

    def hyperparameters(self) -> dict[str, Any]:
        """The recipe as plain JSON values: functions by their names."""
        return {field.name: _as_json(getattr(self, field.name)) for field in fields(self)}

    def steps(self, images: int) -> int:
        """Gradient steps in all; the last batch of an epoch may be a smaller one."""
        return self.epochs * math.ceil(images / self.batch_size)

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        return self.optimizer(self.schedule(self.learning_rate, steps))


def _as_json(value: Any) -> Any:
    """A function by its name, a dataclass by its name and its fields, infinity as "inf", any other value as it is."""
    if value == math.inf:
        return "inf"  # JSON has no such number
    if is_dataclass(value):
        return {"name": type(value).__name__} | {
            field.name: _as_json(getattr(value, field.name)) for field in fields(value)
        }
    return value.__name__ if callable(value) and hasattr(value, "__name__") else value
