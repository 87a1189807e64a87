"""The defence `sabr`: certified training on interval bounds over small boxes around adversarial images."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax.classifier import Classifier
from mnist_jax.defend import bounded, ibp
from mnist_jax.defend.batch import adversarial, clean
from mnist_jax.defend.defense import Defense, as_published, ramp
from mnist_jax.geometry import INF
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class SABR:
    """Minimizes an upper bound of the loss over a small box around an adversarial image, inside the Linf ball:

        max over the intervals of loss(z, y) for a ball of radius `share * radius` around x + r,
        r by PGD,   norm_inf(r) <= (1 - share) * radius

    Müller et al., "Certified training: small boxes are all you need", 2023, section 3.

    Attributes:
      radius: training radius.
      share: radius of the small box as a share of `radius`.
      steps, reach: settings of the attack, as in `pgd.PGD`.
      warmup, regularization, sparsity: as in `ibp.IBP`.
    """

    radius: float
    share: float
    steps: int = 4
    reach: float = 2.0
    warmup: float = 2 / 7
    regularization: float = 0.5
    sparsity: float = 1e-6

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        attack_key, dropout_key = jax.random.split(key)
        grown = ramp(progress, self.warmup)
        small = grown * self.radius * self.share
        left = grown * self.radius - small
        attacked = adversarial(
            Classifier(network.apply, weights),
            images,
            labels,
            attack_key,
            norm=INF,
            radius=grown * self.radius,
            steps=self.steps,
            reach=self.reach,
        )
        centers = images + jnp.clip(attacked - images, -left, left)
        plain = clean(network, weights, images, dropout_key)
        bounds = bounded.intervals(network, plain.weights, centers, labels, small)
        penalty = bounded.penalty(bounds, weights, self.regularization * (1 - grown), self.sparsity)
        return Outcome(bounded.worst_case(bounds, labels), penalty, plain.logits, plain.statistics)

    initialize = staticmethod(bounded.initialize)


# `SABR.share` for large and for other radii to resist: the paper's values for MNIST at 0.3 and at 0.1.
SHARE_OF_LARGE, SHARE_OF_SMALL = 0.9, 0.4


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `ibp`, with this objective."""
    share = SHARE_OF_LARGE if radius >= ibp.LARGE else SHARE_OF_SMALL
    return replace(ibp.recipe(network, norm, radius), objective=SABR(radius + ibp.BEYOND, share))


DEFENSE = Defense(
    (INF,),
    "an upper bound of the loss over a small box around adversarial images",
    "Müller et al. 2023",
    recipe,
    as_published,
)
