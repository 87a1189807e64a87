"""The defence `consistency`: training on noisy images with consistent predictions, for randomized smoothing."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from mnist_jax import losses
from mnist_jax.defend import gaussian
from mnist_jax.defend.defense import Defense
from mnist_jax.networks import Network
from mnist_jax.objective import Outcome
from mnist_jax.recipe import Recipe


@dataclass(frozen=True)
class Consistency:
    """Minimizes the loss of noisy copies of each image, and the divergence of their probabilities from their mean:

        mean_i loss(f_i, y) + weight * mean_i KL(mean || p_i) + entropy * H(mean),   f_i = f(x + e_i), p_i = softmax f_i

    Jeong & Shin, "Consistency regularization for certified robustness of smoothed classifiers", 2020, equation 8.

    Attributes:
      sigma: standard deviation of the noise in every pixel.
      weight, entropy: factors in the formula; the defaults are the paper's for MNIST.
      draws: number of noisy copies of each image.
    """

    sigma: float
    weight: float = 10.0
    entropy: float = 0.5
    draws: int = 2

    def __call__(self, network, weights, images, labels, key, progress) -> Outcome:
        noise_key, dropout_key = jax.random.split(key)
        several = jnp.concatenate([images] * self.draws)
        noisy = several + self.sigma * jax.random.normal(noise_key, several.shape, images.dtype)
        logits, statistics = network.apply_training(weights, noisy, dropout_key)
        loss = losses.cross_entropy(logits, jnp.concatenate([labels] * self.draws)).reshape(self.draws, -1).mean(0)
        every = logits.reshape(self.draws, len(images), -1)
        logs, mean = jax.nn.log_softmax(every), losses.voted(every)
        apart = (jnp.exp(mean)[None] * (mean[None] - logs)).sum(-1).mean(0)
        entropy = -(jnp.exp(mean) * mean).sum(-1)
        total = loss + self.weight * apart + self.entropy * entropy
        return Outcome(total, jnp.zeros(()), mean, statistics)


def recipe(network: type[Network], norm: float, radius: float) -> Recipe:
    """The recipe of the defence `gaussian`, with this objective and twice the epochs."""
    return replace(gaussian.recipe(network, norm, radius), objective=Consistency(gaussian.SHARE * radius), epochs=80)


DEFENSE = Defense(
    (2.0,), "the loss of noisy images, which are to be classified alike, for smoothing", "Jeong & Shin 2020", recipe
)
