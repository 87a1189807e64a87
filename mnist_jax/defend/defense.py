"""The description of a defence, and pieces that the defences' recipes share: optimizer, schedules, warm-up."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mnist_jax import geometry
from mnist_jax.networks import Network
from mnist_jax.recipe import Recipe

CLIPPED = 10.0  # largest 2-norm of a step's gradient, as is usual in certified training (Shi et al. 2021)
DROP = 0.2  # factor by which the learning rate falls at each of DROPS (Shi et al. 2021)
DROPS = (5 / 7, 6 / 7)  # when the learning rate falls, as shares of all steps: epochs 50 and 60 of 70 (Shi et al. 2021)


class Defense(NamedTuple):
    """A defence's description.

    Attributes:
      norms: exponents p of the norms that it supports.
      what: what its objective is, in a line.
      paper: authors and year of its paper.
      recipe: makes the recipe `best` for a network, a norm and a radius to resist.
      gpu: makes the recipe `gpu` from the recipe `best`; None where the defence has none.
    """

    norms: tuple[float, ...]
    what: str
    paper: str
    recipe: Callable[[type[Network], float, float], Recipe]
    gpu: Callable[[Recipe], Recipe] | None = None

    def check_norm(self, p: float) -> float:
        """The norm as `geometry.check_norm` gives it. Raises `ValueError` where the defence does not support it."""
        return geometry.check_norm(p, self.norms)


def clipped_adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam on gradients that are clipped to a 2-norm of `CLIPPED`."""
    return optax.chain(optax.clip_by_global_norm(CLIPPED), optax.adam(schedule))


def dropping(peak: float, steps: int) -> optax.Schedule:
    """A constant learning rate that falls by a factor of 5 at 5/7 and again at 6/7 of the steps."""
    return optax.piecewise_constant_schedule(peak, {round(share * steps): DROP for share in DROPS})


def as_published(best: Recipe) -> Recipe:
    """The recipe `gpu` of certified training, with the literature's 70 epochs, batch size and learning rate.

    Shi et al. 2021; De Palma et al. 2024.
    """
    return replace(best, name="gpu", epochs=70, batch_size=256, learning_rate=5e-4)


def ramp(progress: jax.Array, share: float) -> jax.Array:
    """A factor that grows linearly from 0 to 1 over the first `share` of the training, and is 1 afterwards."""
    return jnp.minimum(progress / share, 1.0) if share else jnp.ones_like(progress)
