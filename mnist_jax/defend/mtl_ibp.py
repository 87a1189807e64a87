"""The defence `mtl_ibp`: certified training on adversarial images and interval bounds together."""

from dataclasses import dataclass, replace

import jax

from mnist_jax.classifier import Classifier
from mnist_jax.defend import bounded, ibp
from mnist_jax.defend.batch import adversarial, clean
from mnist_jax.defend.defense import Defense, as_published, ramp
from mnist_jax.geometry import INF
from mnist_jax.losses import cross_entropy
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe

# Training radius for a large radius to resist, in units of that radius; for smaller ones see `ibp.BEYOND`. It is closer
# to the radius to resist than in `ibp`, as adversarial images keep the bounds tighter.
BEYOND = 1.1


@dataclass(frozen=True)
class MTLIBP:
    """Minimizes the loss of adversarial images, and an upper bound of the loss over an Linf ball:

        share * max over the intervals of loss(z, y) + (1 - share) * loss(f(x + r), y),   r by PGD

    De Palma et al., "Expressive losses for verified robustness via convex combinations", 2024, equation 8: a convex
    combination of a lower and an upper bound of the worst-case loss.

    Attributes:
      radius: training radius.
      share: weight of the upper bound, in [0, 1].
      steps, reach: settings of the attack, as in `pgd.PGD`.
      warmup, regularization, sparsity: as in `ibp.IBP`.
    """

    radius: float
    share: float
    steps: int = 1
    reach: float = 1.25
    warmup: float = 2 / 7
    regularization: float = 0.5
    sparsity: float = 1e-6

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        attack_key, dropout_key = jax.random.split(key)
        grown = ramp(progress, self.warmup)
        radius = grown * self.radius
        attacked = adversarial(
            Classifier(network.apply, weights),
            images,
            labels,
            attack_key,
            norm=INF,
            radius=radius,
            steps=self.steps,
            reach=self.reach,
        )
        plain = clean(network, weights, images, dropout_key)
        bounds = bounded.intervals(network, plain.weights, images, labels, radius)
        loss = cross_entropy(network.apply_dropping(plain.weights, attacked, dropout_key), labels)
        bound = bounded.worst_case(bounds, labels)
        penalty = bounded.penalty(bounds, weights, self.regularization * (1 - grown), self.sparsity)
        return Outcome(self.share * bound + (1 - self.share) * loss, penalty, plain.logits, plain.statistics)

    initialize = staticmethod(bounded.initialize)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `ibp`, with this objective."""
    large = radius >= ibp.LARGE
    objective = MTLIBP(radius * BEYOND if large else radius + ibp.BEYOND, share=0.5 if large else 0.2)
    return replace(ibp.recipe(network, norm, radius), objective=objective)


DEFENSE = Defense(
    (INF,),
    "the loss of adversarial images, and an upper bound of it by interval arithmetic",
    "De Palma et al. 2024",
    recipe,
    as_published,
)
