"""Imports Flax modules, of NNX and of Linen, as classifiers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import linen, nnx

from mnist_jax.classifier import UNIT, Classifier


@dataclass(frozen=True)
class OfNnx:
    """The function `apply` of a classifier that is an NNX module; equal for two modules of one architecture."""

    graphdef: Any
    # The module's random number streams, which evaluation does not use.
    streams: Any = field(compare=False, repr=False)

    def __call__(self, weights: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, weights, self.streams)(images)


@dataclass(frozen=True)
class OfLinen:
    """The function `apply` of a classifier that is a Linen module; equal for two modules of one architecture."""

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
    """A Flax module, of NNX or Linen, as a classifier whose parameters are the module's weights.

    The classifier calls the module itself, so its logits need no comparison with the original. Two modules of one
    architecture give equal functions `apply`, so that programs compiled for one serve the other, as far as functions
    that the modules hold are equal.

    Args:
      module: of NNX, of which a copy in evaluation mode is used; or of Linen.
      variables: for Linen, all collections, `{"params": ..., "batch_stats": ...}`.
      preprocess, bounds: see `Classifier`.
      options: for Linen, keyword arguments for calling the module in evaluation mode, for instance `train=False` or
        `deterministic=True`.

    Raises:
      ValueError: `module` is no Flax module; or a Linen module is given without variables, or an NNX module with
        variables or options.
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
