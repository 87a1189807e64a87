"""mnist_jax: train, attack, certify and defend small image classifiers in JAX."""

from mnist_jax import startup  # first, as the other imports take seconds  # noqa: F401

# isort: split
from mnist_jax import attack, certify, geometry, losses
from mnist_jax.bracket import Bracket, bracket
from mnist_jax.classifier import Classifier
from mnist_jax.compiled import keep_compiled
from mnist_jax.errors import InputError
from mnist_jax.expectation import expectation
from mnist_jax.interchange import from_flax, from_onnx, from_torch
from mnist_jax.networks import NETWORKS
from mnist_jax.preprocessing import Preprocess
from mnist_jax.storage import checkpoint, pytorch
from mnist_jax.storage.checkpoint import load_classifier
from mnist_jax.version import VERSION as __version__

__all__ = [
    "NETWORKS",
    "Bracket",
    "Classifier",
    "InputError",
    "Preprocess",
    "__version__",
    "attack",
    "bracket",
    "certify",
    "checkpoint",
    "expectation",
    "from_flax",
    "from_onnx",
    "from_torch",
    "geometry",
    "keep_compiled",
    "load_classifier",
    "losses",
    "pytorch",
]
