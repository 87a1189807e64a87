"""The defence `smooth_adv`: adversarial training of the smoothed classifier."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.classifier import Classifier
from mnist_jax.defend import gaussian
from mnist_jax.defend.batch import adversarial
from mnist_jax.defend.defense import Defense, ramp
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class SmoothAdv:
    """Minimizes the loss of noisy images that are adversarial to the mean of the probabilities under the same noise:

        mean_i loss(f(x + r + e_i), y),   r by PGD on -log(mean_i softmax f(x + r + e_i))[y],   norm_2(r) <= radius

    Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers", 2019, section 3.2.

    Attributes:
      sigma: standard deviation of the noise in every pixel.
      radius: largest 2-norm of the perturbations r.
      draws: number of noisy copies of each image.
      steps, reach, warmup: settings of the attack, as in `pgd.PGD`.
    """

    sigma: float
    radius: float
    draws: int = 2
    steps: int = 2
    reach: float = 2.0
    warmup: float = 0.3

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        noise_key, attack_key, dropout_key = jax.random.split(key, 3)
        noise = self.sigma * jax.random.normal(noise_key, (self.draws, *images.shape), images.dtype)
        radius = ramp(progress, self.warmup) * self.radius

        def voting(parts, images):
            weights, noise = parts
            every = network.apply(weights, (images[None] + noise).reshape(-1, *images.shape[1:]))
            return losses.voted(every.reshape(self.draws, len(images), -1))

        attacked = adversarial(
            Classifier(voting, (weights, noise)),
            images,
            labels,
            attack_key,
            norm=2.0,
            radius=radius,
            steps=self.steps,
            reach=self.reach,
        )
        noisy = (attacked[None] + noise).reshape(-1, *images.shape[1:])
        logits, statistics = network.apply_training(weights, noisy, dropout_key)
        loss = losses.cross_entropy(logits, jnp.concatenate([labels] * self.draws)).reshape(self.draws, -1).mean(0)
        voted = losses.voted(logits.reshape(self.draws, len(images), -1))
        return Outcome(loss, jnp.zeros(()), voted, statistics)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `gaussian`, with this objective and the network's own distortion of images."""
    objective = SmoothAdv(gaussian.SHARE * radius, radius)
    return replace(gaussian.recipe(network, norm, radius), objective=objective, distortion=network.best.distortion)


DEFENSE = Defense(
    (2.0,),
    "the loss of noisy adversarial images of the smoothed classifier, for smoothing",
    "Salman et al. 2019",
    recipe,
)
