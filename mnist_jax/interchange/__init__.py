"""Imports networks of other frameworks as classifiers: PyTorch modules, ONNX files, and Flax modules (NNX, Linen)."""

from mnist_jax.interchange.flax_module import from_flax
from mnist_jax.interchange.onnx_file import from_onnx
from mnist_jax.interchange.torch_module import from_torch

__all__ = ["from_flax", "from_onnx", "from_torch"]
