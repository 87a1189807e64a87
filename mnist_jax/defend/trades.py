"""The defence `trades`: training on the loss of the images and the change of the output by adversarial ones."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.classifier import Classifier
from mnist_jax.defend import pgd
from mnist_jax.defend.batch import adversarial, clean
from mnist_jax.defend.defense import Defense, ramp
from mnist_jax.geometry import INF
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class TRADES:
    """Minimizes the loss of the images, and the divergence between their probabilities and those of adversarial images:

        loss(f(x), y) + weight * KL(softmax f(x) || softmax f(x + r)),   r by PGD on that divergence

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy", 2019, equation 5.

    Attributes:
      norm: p, 1, 2 or inf.
      radius: training radius.
      weight: factor of the divergence (1 / lambda in the paper).
      steps, reach, warmup: settings of the attack, as in `pgd.PGD`.
    """

    norm: float
    radius: float
    weight: float = 6.0
    steps: int = 7
    reach: float = 2.5
    warmup: float = 0.3

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        attack_key, dropout_key = jax.random.split(key)
        radius = ramp(progress, self.warmup) * self.radius
        said = jax.lax.stop_gradient(network.apply(weights, images))
        attacked = adversarial(
            Classifier(network.apply, weights),
            images,
            labels,
            attack_key,
            norm=self.norm,
            radius=radius,
            steps=self.steps,
            reach=self.reach,
            loss=lambda logits, labels: -losses.divergence(said, logits),
        )
        plain = clean(network, weights, images, dropout_key)
        moved = network.apply_dropping(plain.weights, attacked, dropout_key)
        loss = losses.cross_entropy(plain.logits, labels) + self.weight * losses.divergence(plain.logits, moved)
        return Outcome(loss, jnp.zeros(()), plain.logits, plain.statistics)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `pgd`, with this objective."""
    return replace(pgd.recipe(network, norm, radius), objective=TRADES(norm, radius))


DEFENSE = Defense(
    (1.0, 2.0, INF), "the loss, and how far adversarial images move the probabilities", "Zhang et al. 2019", recipe
)
