"""A random network as a deterministic classifier: the mean of its logits over fixed draws (EOT)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax import arguments
from mnist_jax.classifier import UNIT, Classifier


@dataclass(frozen=True)
class Mean:
    """The `apply` of a classifier that averages logits over keys; compared by value."""

    function: Callable[[Any, Any, jax.Array], jax.Array]
    kind: Any  # JAX's name of the random number generator of the keys

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        own, numbers = params
        keys = jax.random.wrap_key_data(numbers, impl=self.kind)

        def one(image: jax.Array) -> jax.Array:
            # Each image is evaluated alone, so that its draws don't depend on its place in the batch.
            return jax.vmap(lambda key: self.function(own, image[None], key)[0])(keys).mean(0)

        return jax.vmap(one)(images)


def expectation(
    function: Callable[[Any, Any, jax.Array], jax.Array],
    params: Any,
    key: jax.Array,
    samples: int = 16,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    bounds: tuple[float, float] = UNIT,
) -> Classifier:
    """Makes a classifier of a random function: the mean of its logits over a fixed set of keys.

    Attacks then follow the gradient of the mean, the expectation over transformations (Athalye et al., "Synthesizing
    robust adversarial examples", 2018), and an image is adversarial if the mean misclassifies it, not by a lucky draw.
    Each image goes through the function `samples` times, so that `attack.at_once` should be smaller. To see how much a
    result depends on the keys, classify the images that were found by a classifier with another key.

    Args:
      function: `function(params, images, key) -> logits`, such as a network with noise or random crops before it;
        compared by value, as `Classifier.apply` is.
      params: as in `Classifier`.
      key: a `jax.random` key.
      samples: the number of keys, made of `key`, over which the mean is taken.
      preprocess, bounds: as in `Classifier`.

    Returns:
      A `Classifier`.

    Raises:
      ValueError: `key` is not a single key, or `samples` not a whole number of at least 1.
    """
    arguments.counts(samples=samples)
    arguments.check_key(key, 1)
    if arguments.is_one_for_each(key):
        raise ValueError("key must be a single key, not an array of keys")
    keys = jax.random.split(
        key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key), samples
    )
    apply = Mean(function, jax.random.key_impl(keys))
    return Classifier(apply, (params, jax.random.key_data(keys)), preprocess, bounds)
