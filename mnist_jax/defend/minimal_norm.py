"""The defence `minimal_norm`: adversarial training with images of a minimal-norm attack."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax import geometry, losses
from mnist_jax.attack.engine.problem import Problem
from mnist_jax.attack.minimal_norm import fmn
from mnist_jax.classifier import Classifier
from mnist_jax.defend import pgd
from mnist_jax.defend.batch import clean
from mnist_jax.defend.defense import Defense, ramp
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class MinimalNorm:
    """Minimizes the loss of the nearest adversarial images, projected onto the ball of the radius:

        loss(f(x + P(r)), y),   r = argmin norm_p(r) such that x + r is misclassified,   P the projection onto the ball

    Rony et al., "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and defenses", 2019,
    section 4.3, with the attack FMN in place of DDN, which is for the 2-norm only. An image that is easy to fool is
    perturbed just beyond the decision boundary, not by the full radius.

    Attributes:
      norm: p, 1, 2 or inf.
      radius: training radius.
      steps: number of steps of the attack, `attack.fmn`.
      learning_rate, gamma: the attack's; larger than its defaults, as there are few steps.
      warmup: share of the training over which the radius grows to its full size.
    """

    norm: float
    radius: float
    steps: int = 10
    learning_rate: float = 2.0
    gamma: float = 0.3
    warmup: float = 0.3

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        attack_key, dropout_key = jax.random.split(key)
        attacked = self.attacked(
            Classifier(network.apply, weights), images, labels, attack_key, ramp(progress, self.warmup) * self.radius
        )
        plain = clean(network, weights, images, dropout_key)
        logits = network.apply_dropping(plain.weights, attacked, dropout_key)
        return Outcome(losses.cross_entropy(logits, labels), jnp.zeros(()), logits, plain.statistics)

    def attacked(
        self, classifier: Classifier, images: jax.Array, labels: jax.Array, key: jax.Array, radius: jax.Array
    ) -> jax.Array:
        """The perturbed images `[B, *shape]` to train on; no gradient passes through them."""
        classifier, images = jax.lax.stop_gradient((classifier, images))
        given = Problem(images, labels, None)
        found = fmn.kernel(
            classifier,
            given,
            jax.random.split(key, len(images)),
            norm=self.norm,
            learning_rate=jnp.asarray(self.learning_rate, images.dtype),
            gamma=jnp.asarray(self.gamma, images.dtype),
            steps=self.steps,
        )
        each = jnp.broadcast_to(radius, images.shape[:1]).astype(images.dtype)
        return jax.lax.stop_gradient(given.at(geometry.project_ball_in_box(found.r, images, each, self.norm)))


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `pgd`, with this objective."""
    return replace(pgd.recipe(network, norm, radius), objective=MinimalNorm(norm, radius))


DEFENSE = Defense(
    pgd.DEFENSE.norms, "the loss of the nearest adversarial images, within the radius", "Rony et al. 2019", recipe
)
