"""Flax modules, of NNX and of Linen, as classifiers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import linen, nnx

from mnist_jax.classifier import UNIT, Classifier


@dataclass(frozen=True)
class OfNnx:
    """The function `apply` of a module of NNX: two of one architecture are equal."""

    graphdef: Any
    # Streams of random numbers, which evaluation does not use.
    streams: Any = field(compare=False, repr=False)

    def __call__(self, weights: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, weights, self.streams)(images)


@dataclass(frozen=True)
class OfLinen:
    """The function `apply` of a module of Linen: two of one architecture are equal."""

    module: linen.Module
    options: tuple[tuple[str, Any], ...]

    def __call__(self, variables: Any, images: jax.Array) -> Any:
        return self.module.apply(variables, images, **dict(self.options))


def from_flax(
    module: nnx.Module | linen.Module,
    variables: Mapping[str, Any] | None = None,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    bounds: tuple[float, float] = UNIT,
    **options: Any,
) -> Classifier:
    """A Flax module as a classifier, whose weights are leaves.

    It is the module itself that is called, so there is nothing to compare with. Two modules of one architecture give an
    equal `apply`, so that what is compiled for one serves the other, as far as the functions that they hold are equal.

    Args:
      module: of NNX, in evaluation mode whatever its own mode is, which stays; or of Linen.
      variables: for Linen, all collections, `{"params": ..., "batch_stats": ...}`.
      preprocess, bounds: see `Classifier`.
      options: for Linen, what the module is called with besides images: what it takes to evaluate, `train=False` or
        `deterministic=True` for instance.

    Raises:
      ValueError: a module of Linen has no variables, or one of NNX has variables or options.
    """
    if isinstance(module, linen.Module):
        if variables is None:
            raise ValueError("a module of Linen needs its variables: from_flax(module, variables)")
        return Classifier(OfLinen(module, tuple(sorted(options.items()))), variables, preprocess, bounds)
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module must be of flax.nnx or flax.linen, not {type(module).__name__}")
    if variables is not None or options:
        raise ValueError("a module of NNX has its variables and its mode itself: from_flax(module)")
    evaluating = nnx.clone(module)
    evaluating.eval()
    graphdef, streams, *(weights,) = nnx.split(evaluating, nnx.RngState, ...)
    return Classifier(OfNnx(graphdef, streams), weights, preprocess, bounds)
