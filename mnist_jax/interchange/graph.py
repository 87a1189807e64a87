"""A network as a graph of ONNX operators: a function of weights and images, hashable and compared by value."""

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
    """A constant array of a graph that is no weight, such as a shape; hashable and compared by value."""

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
    """An operator of a graph, with its inputs and outputs.

    Attributes:
      operator: the operator's name in ONNX.
      inputs: names of the values that it is given; an empty name for an optional input that is left out.
      outputs: names of the values that it gives.
      attributes: pairs of an attribute's name in ONNX and its value.
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
    """A graph of ONNX operators, which is the function `apply` of a `Classifier`.

    Values that depend on shapes and constants alone are computed by NumPy while JAX traces the graph, so that JAX gets
    shapes as numbers.

    Attributes:
      nodes: in an order in which they can be evaluated.
      constants: pairs of a value's name and the constant; all other values are weights, images, or outputs of nodes.
      images, logits: names of the input and of the output.
      shape: shape of an image.
      opset: version of the operators.
      one: whether the graph is for one image, `[1, *shape]`, as in a file with a fixed batch size of 1.
    """

    nodes: tuple[Node, ...]
    constants: tuple[tuple[str, Constant], ...]
    images: str
    logits: str
    shape: tuple[int, ...]
    opset: int
    one: bool

    def __call__(self, weights: Mapping[str, Any], images: Any) -> Any:
        """Logits `[B, C]` of images `[B, *shape]`. Raises `ValueError` for images of another shape."""
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
