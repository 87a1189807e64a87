"""A network as a graph of ONNX operators: a function of weights and images that is compared by value."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.interchange.operators import OPERATORS


@dataclass(frozen=True)
class Constant:
    """An array that is part of the computation and no weight, such as a shape: hashable, and compared by value."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> "Constant":
        return cls(array.dtype.str, array.shape, array.tobytes())

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | Constant


@dataclass(frozen=True)
class Node:
    """One operator.

    Attributes:
      operator: its name in ONNX.
      inputs: names of values; empty where an optional one is left out.
      outputs: names of values.
      attributes: by their names in ONNX.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __call__(self, values: Mapping[str, Any], opset: int) -> Any:
        arguments = [values[name] if name else None for name in self.inputs]
        results = OPERATORS[self.operator](*arguments, opset=opset, **dict(self.attributes))
        return results if isinstance(results, tuple) else (results,)


@dataclass(frozen=True)
class Graph:
    """The function `apply` of a `Classifier`.

    What is made of shapes and constants alone is worked out when it is traced, so that a shape is a shape there.

    Attributes:
      nodes: in an order in which they can be worked off.
      constants: by the names of their values; all other values are weights, images, or made by nodes.
      images, logits: names of values.
      shape: of an image.
      opset: version of the operators.
      one: whether it is a computation for one image, `[1, *shape]`, as of a file that fixes the size of the batch.
    """

    nodes: tuple[Node, ...]
    constants: tuple[tuple[str, Constant], ...]
    images: str
    logits: str
    shape: tuple[int, ...]
    opset: int
    one: bool

    def __call__(self, weights: Mapping[str, Any], images: Any) -> Any:
        """Logits `[B, C]` of images `[B, *shape]`. Raises `ValueError` where they are of another shape."""
        images = jnp.asarray(images)
        if images.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"the network takes images [{wanted}], not {list(images.shape)}")
        weights = {name: jnp.asarray(weight) for name, weight in weights.items()}
        if not self.one:
            return self._run(weights, images)
        run = partial(self._run, weights)
        return jax.vmap(lambda image: run(image[None])[0])(images)

    def _run(self, weights: Mapping[str, jax.Array], images: jax.Array) -> Any:
        values: dict[str, Any] = {name: constant.array for name, constant in self.constants}
        values |= weights
        values[self.images] = images
        for node in self.nodes:
            values |= dict(zip(node.outputs, node(values, self.opset), strict=False))
        return values[self.logits]
