"""Randomized smoothing: certificates for the classifier that takes the majority vote over noisy copies of an image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, losses
from mnist_jax.classifier import Classifier

# Standard deviations allowed: below, rounding to single precision changes the noise; above, the noise loses the image.
LEAST_SIGMA, LARGEST_SIGMA = 1e-3, 1e3
AT_ONCE = 500  # noisy images that go through the network together; chosen by hand
# Share by which a radius is reduced: more than the deviation of noise drawn in single precision may differ from sigma.
SLACK = 1e-6


class SmoothingResult(NamedTuple):
    """What is certified of the smoothed classifier; for each image it is wrong with probability `failure` at most.

    Attributes:
      classes: `[B]`, the class that the smoothed classifier predicts; -1 where it abstains.
      abstained: `[B]`, whether the samples do not show that one class has a probability above 1/2.
      radius: `[B]`, float64: every image within this 2-norm gets the same class; 0 where it abstains.
      counts: `[B, C]`, how many of the samples got each class; a sample with NaN or infinite logits counts for none.
    """

    classes: np.ndarray
    abstained: np.ndarray
    radius: np.ndarray
    counts: np.ndarray


def smoothing(
    classifier: Classifier,
    images: ArrayLike,
    *,
    sigma: float,
    samples: int = 100_000,
    selection: int = 100,
    failure: float = 0.001,
    key: jax.Array,
) -> SmoothingResult:
    """Certifies the smoothed classifier, which gives the class that the classifier gives most often under normal noise.

        g(x) = the class c with the largest P(f(x + e) = c),   e normal, of standard deviation sigma in every pixel
        radius = sigma * Phi^-1(p),   p a lower bound of P(f(x + e) = g(x)), where it is above 1/2

    Cohen, Rosenfeld & Kolter, "Certified adversarial robustness via randomized smoothing", 2019, theorem 1 and
    CERTIFY. `selection` samples choose the class, and `samples` others, a number fixed beforehand, bound its
    probability (Clopper & Pearson 1934). Nothing is said about the classifier itself. Whoever certifies an image
    several times and keeps the best result has to divide `failure` by the number of times.

    Args:
      classifier: it is given images outside of [0, 1], too, as noisy images are not clipped.
      images: `[B, *shape]` in [0, 1].
      sigma: standard deviation of the noise, from 0.001 to 1000, in the units of the pixels.
      samples: number of noisy images for the bound; they limit the radius to `sigma * Phi^-1(failure^(1 / samples))`.
      selection: number of noisy images that choose the class.
      failure: probability, for each image, that its result is wrong; above 0 and below 1.
      key: a `jax.random` key. Each image gets its own noise.

    Returns:
      The predicted classes, radii and counts.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
    """
    arguments.numbers(LEAST_SIGMA, LARGEST_SIGMA, sigma=sigma)
    arguments.numbers(0, 1, above=True, below=True, failure=failure)
    arguments.counts(samples=samples, selection=selection)
    x = arguments.images_of(classifier, images)
    keys = arguments.keys_of(key, len(x))
    size = jax.eval_shape(classifier, x[:1]).shape[1] if len(x) else 0
    deviation = jnp.asarray(sigma, x.dtype)

    def ask(purpose: int, count: int) -> np.ndarray:
        each = [votes(classifier, deviation, x[i], jax.random.fold_in(keys[i], purpose), count) for i in range(len(x))]
        return np.array(each, int).reshape(len(x), size)

    with jax.default_matmul_precision("highest"):
        few, counts = ask(0, selection), ask(1, samples)
    chosen = few.argmax(1) if len(x) else np.zeros(0, int)
    p = lower_bound(counts[np.arange(len(x)), chosen], samples, failure)
    from scipy.stats import norm  # which takes half a second to import

    radius = np.where(p > 0.5, float(deviation) * norm.ppf(p) * (1 - SLACK), 0.0)
    abstained = ~(radius > 0)
    return SmoothingResult(np.where(abstained, -1, chosen), abstained, np.where(abstained, 0.0, radius), counts)


def lower_bound(successes: ArrayLike, samples: int, failure: float) -> np.ndarray:
    """A lower bound of the probability of success, from a number of successes in `samples` trials.

    It is wrong with probability `failure` at most (Clopper & Pearson 1934, the one-sided interval).
    """
    from scipy.stats import beta

    k = np.asarray(successes)
    return np.where(k > 0, beta.ppf(failure, np.maximum(k, 1), samples - k + 1), 0.0)


@jax.jit
def votes(classifier: Classifier, sigma: jax.Array, image: jax.Array, key: jax.Array, samples: jax.Array) -> jax.Array:
    """How many of `samples` noisy copies of an image `[*shape]` get each class, `[C]`."""

    def some(i: jax.Array, votes: jax.Array) -> jax.Array:
        noise = jax.random.normal(jax.random.fold_in(key, i), (AT_ONCE, *image.shape), image.dtype)
        logits = classifier(image[None] + sigma * noise)
        counted = (i * AT_ONCE + jnp.arange(AT_ONCE) < samples) & ~losses.broken(logits)
        chosen = jnp.where(counted, logits.argmax(1), -1)
        return votes + (chosen[:, None] == jnp.arange(votes.size)[None]).sum(0)

    none = jnp.zeros(jax.eval_shape(classifier, image[None]).shape[1], jnp.int32)
    return jax.lax.fori_loop(0, -(-samples // AT_ONCE), some, none)
