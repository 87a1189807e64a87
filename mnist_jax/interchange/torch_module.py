"""Imports PyTorch modules as classifiers, by exporting them to ONNX and reading that as an ONNX file is read."""

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.errors import InputError, first_line
from mnist_jax.interchange import agreement, onnx_file
from mnist_jax.interchange.needed import needed

EXTRA = "torch"


def from_torch(
    module: Any,
    example: Any,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    bounds: tuple[float, float] = UNIT,
) -> Classifier:
    """A PyTorch module as a classifier whose parameters are the module's weights.

    A copy of the module, in evaluation mode and single precision, is exported by `torch.onnx.export` and read as an
    ONNX file is (see `from_onnx`); the module itself is not changed. Two modules of one architecture give equal
    functions `apply`, so that programs compiled for one serve the other.

    Args:
      module: a `torch.nn.Module` from images to logits.
      example: images `[B, *shape]`, of NumPy, JAX or PyTorch, as the classifier will be given them. Only their shape
        matters.
      preprocess, bounds: see `Classifier`. By default the classifier takes the images that the module takes, which
        usually have the channels first, in [0, 1].

    Raises:
      InputError: PyTorch or ONNX is not installed (`pip install "mnist_jax[torch]"`); PyTorch can't export the module;
        it has operators that are not supported, which the message names; or its logits of random images differ by more
        than 1e-5 of the largest logit.
    """
    torch = needed("torch", EXTRA)
    for name in ("onnx", "onnxscript"):
        needed(name, EXTRA)
    what = f"the module {type(module).__name__}"
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{what} is no torch.nn.Module")
    given = jax.ShapeDtypeStruct((2, *tuple(example.shape)[1:]), jnp.float32)
    shape = (given if preprocess is None else jax.eval_shape(preprocess, given)).shape[1:]
    copied = copy.deepcopy(module).cpu().float().eval()
    graph, weights, _ = onnx_file.read(_exported(copied, shape, what), what)
    classifier = Classifier(graph, weights, bounds=bounds)

    def original(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return copied(torch.from_numpy(images)).numpy()

    agreement.check(classifier, original, shape, one=graph.one, what=what)
    return replace(classifier, preprocess=preprocess)


def _exported(module: Any, shape: tuple[int, ...], what: str) -> Any:
    """The module as an `onnx.ModelProto`, for any batch size where PyTorch can export that, else for a batch of one."""
    for batch in (2, 1):
        try:
            model = _export(module, (batch, *shape))
        except Exception as error:  # export raises many kinds
            if batch == 1:
                cause = error.__cause__ or error
                raise InputError(
                    f"PyTorch can't export {what} ({type(cause).__name__}: {first_line(cause)})"
                ) from error
        else:
            if batch == 1 or not model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value"):
                return model
    raise AssertionError("the loop returns or raises")


def _export(module: Any, shape: tuple[int, ...]) -> Any:
    """The module as an `onnx.ModelProto` for images of `shape` `[B, ...]`: of B = 1 exactly, or of any B for B > 1."""
    torch = needed("torch", EXTRA)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings recommend further packages
    any_number = None if shape[0] == 1 else ({0: torch.export.Dim.AUTO},)
    how = {"dynamo": True, "dynamic_shapes": any_number, "verbose": False}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.onnx.export(module, (torch.zeros(shape),), **how).model_proto
    finally:
        logger.setLevel(level)
