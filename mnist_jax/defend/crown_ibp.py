"""The defence `crown_ibp`: training on CROWN bounds of the logits, with interval bounds of all other values."""

from dataclasses import dataclass, replace

from mnist_jax.defend import bounded, ibp
from mnist_jax.defend.batch import clean
from mnist_jax.defend.defense import Defense, as_published, ramp
from mnist_jax.geometry import INF
from mnist_jax.losses import cross_entropy
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class CROWNIBP:
    """Minimizes an upper bound of the loss over an Linf ball, by CROWN-IBP and interval arithmetic, and the loss:

        share * loss of (t CROWN-IBP + (1 - t) IBP) + (1 - share) * loss(f(x), y)

    CROWN-IBP propagates the label's leads backwards to the image, with each ReLU's lines from its interval bounds;
    leads that interval arithmetic bounds better keep that bound. The weight t falls from 1 to 0 while the radius grows
    (Zhang et al., "Towards stable and efficient training of verifiably robust neural networks", 2020, equation 13).

    Attributes:
      radius, share, warmup, regularization, sparsity: as in `ibp.IBP`.
    """

    radius: float
    share: float = 0.7
    warmup: float = 2 / 7
    regularization: float = 0.5
    sparsity: float = 2e-6

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        grown = ramp(progress, self.warmup)
        plain = clean(network, weights, images, key)
        bounds = bounded.intervals(network, plain.weights, images, labels, grown * self.radius, lines=1 - grown)
        bound, loss = bounded.worst_case(bounds, labels), cross_entropy(plain.logits, labels)
        penalty = bounded.penalty(bounds, weights, self.regularization * (1 - grown), self.sparsity)
        return Outcome(self.share * bound + (1 - self.share) * loss, penalty, plain.logits, plain.statistics)

    initialize = staticmethod(bounded.initialize)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `ibp`, with this objective."""
    return replace(ibp.recipe(network, norm, radius), objective=CROWNIBP(radius + ibp.BEYOND))


DEFENSE = Defense(
    (INF,),
    "an upper bound of the loss, by lines over interval bounds",
    "Zhang et al. 2020",
    recipe,
    as_published,
)
