"""Import and export the weights of the networks as PyTorch state_dicts, in files of safetensors or npz.

The networks have the layers of the original project's PyTorch modules, at the same places of the same attributes
`features` and `classifier`; a network that the original project lacks corresponds to a module with the same attributes.
Three things differ: the names of the arrays; the order of axes, as PyTorch's kernels are OIHW and `[out, in]`; and the
order of the features that the classifier gets, as PyTorch flattens channels first (CHW).
"""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mnist_jax import networks
from mnist_jax.errors import InputError, first_line
from mnist_jax.networks import CLASSES, IMAGE_SHAPE, Network, Weights
from mnist_jax.storage import checkpoint, files

# Flax's name of an array, and PyTorch's.
_NAMES = {"kernel": "weight", "bias": "bias", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def load(
    path: str | Path, architecture: str, shape: tuple[int, int, int] = IMAGE_SHAPE, classes: int = CLASSES
) -> checkpoint.Checkpoint:
    """Reads a PyTorch state_dict from a safetensors or npz file as a checkpoint.

    Args:
      path: of the file; npz by the suffix .npz, else safetensors.
      architecture: name of the network, such as `CNN_bn`.
      shape: height, width and channels of its images; by default MNIST's.
      classes: number of its classes; by default MNIST's.

    Raises:
      InputError: the file can't be read or holds another network.
    """
    path, network = Path(path), networks.by_name(architecture).of(shape, classes)
    try:
        content = path.read_bytes()  # NumPy leaves a file open that it fails to read
        if path.suffix == ".npz":
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
        else:
            arrays = safetensors.numpy.load(content)
    except Exception as error:  # zip, npy and safetensors raise many kinds for damaged files and other formats
        raise InputError(f"cannot read {path} as a safetensors or npz file ({first_line(error)})") from error
    return checkpoint.Checkpoint(network, from_state_dict(arrays, network, path), {"imported": path.name})


def save(path: str | Path, trained: checkpoint.Checkpoint) -> None:
    """Writes the weights of a checkpoint as a PyTorch state_dict.

    Args:
      path: ends in .safetensors or .npz.
      trained: the network.

    Raises:
      InputError: the file can't be written, has another suffix, or PyTorch lacks one of the network's layers.
    """
    path, arrays = Path(path), to_state_dict(trained.weights, trained.network)
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        files.write(path, buffer.getvalue())
    elif path.suffix == ".safetensors":
        files.write(path, safetensors.numpy.save(arrays))
    else:
        raise InputError(f"cannot export to {path}: the name must end in .safetensors or .npz")


def from_state_dict(arrays: dict[str, np.ndarray], network: type[Network], source: object = "state_dict") -> Weights:
    """The weights of `network` from the arrays of a PyTorch state_dict.

    Args:
      arrays: by PyTorch's names; `num_batches_tracked` is ignored.
      network: the class for the images' shape and the number of classes (`Network.of`).
      source: what error messages call the state_dict.

    Raises:
      InputError: names, shapes or types of the arrays don't fit the network.
    """
    wanted = _shapes(network)
    names = {name: _torch_name(name) for name in wanted}
    given = {k: np.asarray(v) for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    if given.keys() != set(names.values()):
        odd = ", ".join(sorted(given.keys() ^ set(names.values())))
        raise InputError(f"{source} is no state_dict of {network.__name__}: {odd} missing or left over")
    weights = {}
    for name, shape in wanted.items():
        array = given[names[name]]
        if array.shape != _torch_shape(shape):
            raise InputError(f"{source} is no state_dict of {network.__name__}: {names[name]} has the wrong shape")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(
                f"{source} is no state_dict of {network.__name__}: {names[name]} holds {array.dtype}, no floats"
            )
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = _exchange_flattening(array, network, name, to_torch=False).T
        with np.errstate(over="ignore"):  # what float32 can't hold is infinite
            weights[name] = jax.device_put(array.astype(np.float32))
    return weights


def to_state_dict(weights: Weights, network: type[Network]) -> dict[str, np.ndarray]:
    """The weights as arrays in PyTorch's layout and by PyTorch's names, for `load_state_dict(..., strict=False)`.

    Raises:
      InputError: PyTorch lacks one of the network's layers.
    """
    _shapes(network)
    arrays = {}
    for name, weight in weights.items():
        array = np.asarray(weight)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = _exchange_flattening(array.T, network, name, to_torch=True)
        arrays[_torch_name(name)] = np.ascontiguousarray(array)
    return arrays


def _shapes(network: type[Network]) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights by name. Raises `InputError` where one of them belongs to no PyTorch layer."""
    shapes = networks.shapes(network)
    for name, shape in shapes.items():
        if len(shape) not in (1, 2, 4):
            what = f"PyTorch has no layer for its {name} {list(shape)}"
            raise InputError(f"{network.__name__} is neither imported nor exported: {what}")
    return shapes


def _torch_name(name: str) -> str:
    layer, _, field = name.rpartition(".")
    return f"{layer}.{_NAMES[field]}"


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _exchange_flattening(array, network, name, *, to_torch):
    """Reorders the columns of the first linear layer after the features between Flax's order and PyTorch's.

    They are `[out, H * W * C]` and `[out, C * H * W]`; other layers, and networks without convolutions, stay as they
    are.
    """
    first = next(k for k, shape in networks.shapes(network).items() if k.startswith("classifier") and len(shape) == 2)
    made = networks.features_shape(network)
    if name != first or len(made) != 3:
        return array
    height, width, channels = made
    if to_torch:
        return array.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(array.shape)
    return array.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(array.shape)
