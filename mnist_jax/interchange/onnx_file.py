"""Imports ONNX files as classifiers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.errors import InputError, first_line
from mnist_jax.interchange import agreement
from mnist_jax.interchange.graph import Attribute, Constant, Graph, Node
from mnist_jax.interchange.needed import needed
from mnist_jax.interchange.operators import OPERATORS

EXTRA = "onnx"
DOMAINS = ("", "ai.onnx")  # the two names of the domain of ONNX's own operators


def from_onnx(
    path: str | Path,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    bounds: tuple[float, float] = UNIT,
) -> Classifier:
    """The network in an ONNX file as a classifier whose parameters are the file's weights.

    Two files of one architecture give equal functions `apply`, so that programs compiled for one serve the other. The
    weights are the file's floating-point arrays except scalars, in single precision, by their names in the file.

    Args:
      path: the file. The network has one input, images `[B, *shape]` for any B or for B = 1, and one output, logits
        `[B, C]`.
      preprocess, bounds: see `Classifier`. By default the classifier takes the images that the network takes, which
        usually have the channels first, in [0, 1].

    Raises:
      InputError: the package `onnx` is not installed (`pip install "mnist_jax[onnx]"`); the file can't be read; it has
        operators that are not supported, which the message names; or its logits of random images, by ONNX's reference
        evaluator, differ by more than 1e-5 of the largest logit.
    """
    onnx = needed("onnx", EXTRA)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error
    except Exception as error:  # protobuf and ONNX have exceptions of their own
        raise InputError(f"{path} is no valid ONNX file ({first_line(error)})") from error
    graph, weights, shape = read(model, str(path))
    evaluator, (name,) = needed("onnx.reference", EXTRA).ReferenceEvaluator(model), _inputs(model)

    def original(images: np.ndarray) -> np.ndarray:
        return evaluator.run(None, {name: images})[0]

    classifier = Classifier(graph, weights, bounds=bounds)
    agreement.check(classifier, original, shape, one=graph.one, what=str(path))
    return replace(classifier, preprocess=preprocess)


def read(model: Any, what: str) -> tuple[Graph, dict[str, Any], tuple[int, ...]]:
    """The graph of an `onnx.ModelProto`, its weights by name, and the shape of an image.

    `what` names the model in messages. Raises `InputError` where it is no classifier or an operator is not supported.
    """
    onnx = needed("onnx", EXTRA)
    if model.functions:
        model = needed("onnx.inliner", EXTRA).inline_local_functions(model)
    graph = model.graph
    _check_operators(graph, what)
    (images,), (logits,) = _one(_inputs(model), "input", what), _one(_names(graph.output), "output", what)
    batch, *shape = _shape(graph, images, what)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays |= {node.output[0]: _constant(node) for node in graph.node if node.op_type == "Constant"}
    # Scalars, such as the limits of a Clip, are constants and no weights, so that certificates know their values.
    weights = {name: array for name, array in arrays.items() if array.dtype.kind == "f" and array.ndim}
    constants = {name: array for name, array in arrays.items() if name not in weights}
    (opset,) = [o.version for o in model.opset_import if o.domain in DOMAINS]
    nodes = tuple(_node(node) for node in graph.node if node.op_type != "Constant")
    fixed = tuple((name, Constant.of(_single(array))) for name, array in sorted(constants.items()))
    read = Graph(nodes, fixed, images, logits, tuple(shape), opset, one=batch == 1)
    return read, {name: jnp.asarray(_single(array)) for name, array in weights.items()}, tuple(shape)


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _names(values: Any) -> list[str]:
    return [value.name for value in values]


def _inputs(model: Any) -> list[str]:
    """Names of the inputs that are no weights; older files list weights as inputs, too."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [name for name in _names(model.graph.input) if name not in weights]


def _one(names: list[str], kind: str, what: str) -> list[str]:
    if len(names) != 1:
        raise InputError(f"{what} has {len(names)} {kind}s ({', '.join(names)}); a classifier has one")
    return names


def _check_operators(graph: Any, what: str) -> None:
    known = {*OPERATORS, "Constant"}
    used = {node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}" for node in graph.node}
    if unknown := sorted(used - known):
        raise InputError(
            f"{what} has ONNX operators that are not supported: {', '.join(unknown)}; supported are "
            f"{', '.join(sorted(known))}"
        )


def _shape(graph: Any, name: str, what: str) -> list[int]:
    """The batch size of an input, 0 where it is not fixed, and the shape of an image."""
    (value,) = [value for value in graph.input if value.name == name]
    kind = value.type.tensor_type
    batch, *shape = [dim.dim_value for dim in kind.shape.dim] or [0]  # 0 where it is not fixed
    if not shape or 0 in shape:
        raise InputError(f"{what} does not say the shape of its images; export it with one")
    if batch not in (0, 1):
        raise InputError(f"{what} has a fixed batch size of {batch}; export it for any batch size, or for 1")
    if needed("onnx", EXTRA).helper.tensor_dtype_to_np_dtype(kind.elem_type).kind != "f":
        raise InputError(f"{what} takes images that are not floating-point; export it for floating-point images")
    return [batch, *shape]


def _constant(node: Any) -> np.ndarray:
    """The array of a Constant node."""
    onnx = needed("onnx", EXTRA)
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value, np.float32 if attribute.name.startswith("value_float") else np.int64)


def _node(node: Any) -> Node:
    attributes = tuple(sorted((a.name, _attribute(node, a)) for a in node.attribute))
    return Node(node.op_type, tuple(node.input), tuple(node.output), attributes)


def _attribute(node: Any, attribute: Any) -> Attribute:
    """The value of a node's attribute, hashable; a type as its name in NumPy."""
    helper = needed("onnx", EXTRA).helper
    value = helper.get_attribute_value(attribute)
    if node.op_type == "Cast" and attribute.name == "to":
        return helper.tensor_dtype_to_np_dtype(value).name
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float):
        return value
    if attribute.type == attribute.TENSOR:
        return Constant.of(needed("onnx", EXTRA).numpy_helper.to_array(value))
    return tuple(value)
