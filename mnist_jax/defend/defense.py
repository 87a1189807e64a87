"""What is said of a defence beside its objective, and what the defences' recipes have in common."""

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
DROP = 0.2  # of the learning rate, at each of DROPS
DROPS = (5 / 7, 6 / 7)  # shares of the training: epochs 50 and 60 of 70 (Shi et al. 2021)


class Defense(NamedTuple):
    """A defence's description.

    Attributes:
      norms: the exponents p that it can be for.
      what: what it does, in a line.
      paper: authors and year.
      recipe: makes the recipe `best` that trains a network to resist perturbations of that norm and radius.
      gpu: makes recipe `gpu` of that one, where there is one.
    """

    norms: tuple[float, ...]
    what: str
    paper: str
    recipe: Callable[[type[Network], float, float], Recipe]
    gpu: Callable[[Recipe], Recipe] | None = None

    def check_norm(self, p: float) -> float:
        """The norm as `geometry.check_norm` gives it. Raises `ValueError` where the defence is for no such norm."""
        return geometry.check_norm(p, self.norms)


def clipped_adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam on gradients of a 2-norm of at most `CLIPPED`."""
    return optax.chain(optax.clip_by_global_norm(CLIPPED), optax.adam(schedule))


def dropping(peak: float, steps: int) -> optax.Schedule:
    """A constant rate that falls fivefold at 5/7 and again at 6/7 of the steps."""
    return optax.piecewise_constant_schedule(peak, {round(share * steps): DROP for share in DROPS})


def as_published(best: Recipe) -> Recipe:
    """Recipe `gpu` of certified training: that of the literature, 70 epochs (Shi et al. 2021; De Palma et al. 2024)."""
    return replace(best, name="gpu", epochs=70, batch_size=256, learning_rate=5e-4)


def ramp(progress: jax.Array, share: float) -> jax.Array:
    """Linearly from 0 to 1 over the first `share` of the training, then 1."""
    return jnp.minimum(progress / share, 1.0) if share else jnp.ones_like(progress)
