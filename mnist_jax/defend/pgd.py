"""The defence `pgd`: adversarial training with images of projected gradient descent."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.classifier import Classifier
from mnist_jax.defend.batch import adversarial, clean
from mnist_jax.defend.defense import Defense, clipped_adam, ramp
from mnist_jax.geometry import INF
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class PGD:
    """Minimizes the loss of adversarial images, found by PGD, in place of that of the images themselves:

        loss(f(x + r), y),   r by PGD from a random starting point,  norm_p(r) <= radius

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018.

    Attributes:
      norm: p, 1, 2 or inf.
      radius: training radius.
      steps: number of steps of the attack.
      reach: sum of the lengths of the attack's steps, in radii.
      warmup: share of the training over which the radius grows to its full size. With the full radius from the first
        step, the networks of this project learn to predict the most frequent class only.
    """

    norm: float
    radius: float
    steps: int = 7
    reach: float = 2.5
    warmup: float = 0.3

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        attack_key, dropout_key = jax.random.split(key)
        radius = ramp(progress, self.warmup) * self.radius
        attacked = adversarial(
            Classifier(network.apply, weights),
            images,
            labels,
            attack_key,
            norm=self.norm,
            radius=radius,
            steps=self.steps,
            reach=self.reach,
        )
        plain = clean(network, weights, images, dropout_key)
        logits = network.apply_dropping(plain.weights, attacked, dropout_key)
        return Outcome(losses.cross_entropy(logits, labels), jnp.zeros(()), logits, plain.statistics)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The network's recipe `best` with this objective and no distortion, which would need more capacity."""
    return replace(
        network.best,
        objective=PGD(norm, radius),
        optimizer=clipped_adam,
        learning_rate=2e-3,
        epochs=40,
        batch_size=100,
        distortion=None,
    )


DEFENSE = Defense((1.0, 2.0, INF), "the loss of adversarial images, found by PGD", "Madry et al. 2018", recipe)
