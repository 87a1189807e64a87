"""A classifier that is random, as the mean over some draws: the expectation over transformations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mnist_jax import arguments
from mnist_jax.classifier import UNIT, Classifier


@dataclass(frozen=True)
class Mean:
    """The function `apply` of the mean over keys: two of equal functions are equal."""

    function: Callable[[Any, Any, jax.Array], jax.Array]
    kind: Any  # of the keys, JAX's name for it

    def __call__(self, params: Any, images: jax.Array) -> jax.Array:
        own, numbers = params
        keys = jax.random.wrap_key_data(numbers, impl=self.kind)

        def one(image: jax.Array) -> jax.Array:
            # Alone, so that what is drawn for it is the same wherever in a batch it stands.
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
    """A classifier of a function that needs a key: the mean of its logits over some keys, always the same ones.

    So attacks follow the gradient of the mean, the expectation over transformations (Athalye et al., "Synthesizing
    robust adversarial examples", 2018), and what they find is judged by it: no image is adversarial by a lucky draw.
    Every image goes through the function `samples` times, so `attack.at_once` should be smaller. To see how much hangs
    on the keys, ask a classifier with another key about the images that were found.

    Args:
      function: `function(params, images, key) -> logits`, such as a network with noise or random crops before it;
        compared by value, as `Classifier.apply` is.
      params: as in `Classifier`.
      key: a `jax.random` key.
      samples: keys that are made of it.
      preprocess, bounds: as in `Classifier`.

    Raises:
      ValueError: key is no single key, or samples no whole number of at least 1.
    """
    arguments.counts(samples=samples)
    arguments.check_key(key, 1)
    if arguments.is_one_for_each(key):
        raise ValueError("key must be one key")
    keys = jax.random.split(
        key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key), samples
    )
    apply = Mean(function, jax.random.key_impl(keys))
    return Classifier(apply, (params, jax.random.key_data(keys)), preprocess, bounds)
