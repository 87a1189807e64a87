"""Load a network of the user's own: an ONNX file, or FILE.py:NAME, a function that returns a classifier."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mnist_jax import data
from mnist_jax.classifier import Classifier
from mnist_jax.commands import own_file
from mnist_jax.errors import InputError, first_line
from mnist_jax.interchange import from_onnx
from mnist_jax.interchange.graph import Graph
from mnist_jax.preprocessing import Preprocess

MODULE = "own_model"  # the name under which a file is imported
ONNX = ".onnx"


class OwnModel(NamedTuple):
    """The path of the file, its classifier, which takes images in [0, 1], and the number of classes."""

    path: Path
    classifier: Classifier
    classes: int


def is_meant(model: object) -> bool:
    """Whether --model names an ONNX file or FILE.py:NAME."""
    return isinstance(model, str) and (model.endswith(ONNX) or own_file.is_meant(model))


def load(model: str, shape: tuple[int, ...]) -> OwnModel:
    """Loads the network that --model names, for images of `shape` (height, width, channels).

    An ONNX network that takes its channels first gets them so.

    Raises:
      InputError: the file can't be read or run, gives no classifier, or its classifier does not take such images.
    """
    path, classifier = _of_onnx(Path(model), shape) if model.endswith(ONNX) else _of_python(model)
    image = jax.ShapeDtypeStruct((1, *shape), np.float32)
    try:
        classes = jax.eval_shape(classifier, image).shape[1]
    except Exception as error:  # the user's function may raise anything
        raise InputError(
            f"{path} does not take images of {data.size(shape)} pixels ({type(error).__name__}: {first_line(error)})"
        ) from error
    return OwnModel(path, classifier.in_unit_box, classes)


def _of_onnx(path: Path, shape: tuple[int, ...]) -> tuple[Path, Classifier]:
    classifier = from_onnx(path)
    assert isinstance(classifier.apply, Graph)
    *sizes, channels = shape
    first = classifier.apply.shape == (channels, *sizes) != shape
    return path, replace(classifier, preprocess=Preprocess(channels_first=True)) if first else classifier


def _of_python(text: str) -> tuple[Path, Classifier]:
    build, name, path, _ = own_file.load(text, MODULE)
    try:
        built = build()
    except Exception as error:
        raise InputError(f"{name}() of {path} fails with {type(error).__name__}: {first_line(error)}") from error
    classifier = built[0] if isinstance(built, tuple) and built else built
    if not isinstance(classifier, Classifier):
        raise InputError(f"{name}() of {path} gives no mnist_jax.Classifier, but {type(classifier).__name__}")
    return path, classifier
