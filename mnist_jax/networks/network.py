"""The base class of the networks, and the layers that they share.

A network is a class of Flax modules. The rest of the project uses its class methods, which are pure functions of
weights: a flat dictionary from names such as `"features.0.kernel"` to arrays, with the trained parameters and the
running batch statistics together.
"""

import functools
import math
import types
from typing import ClassVar, Self, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mnist_jax import layers, losses
from mnist_jax.errors import InputError, unknown
from mnist_jax.objective import Objective, Plain
from mnist_jax.recipe import RECIPES, Recipe

Weights = dict[str, jax.Array]

N = TypeVar("N", bound="Network")

IMAGE_SHAPE = (28, 28, 1)  # height, width and channels of MNIST's images
CLASSES = 10  # number of MNIST's classes


def uniform_by_fan_in(key, shape, dtype, *, fan_in: int):
    """PyTorch's initialization of linear and convolutional layers, kernel and bias: U(-1, 1) / sqrt(fan_in)."""
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer, initialized as PyTorch does."""
    init = functools.partial(uniform_by_fan_in, fan_in=inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, *, stride: int = 1, padding: int = 0) -> layers.Conv:
    """A convolution by square kernels (see `layers.Conv`), initialized as PyTorch does."""
    init = functools.partial(uniform_by_fan_in, fan_in=size * size * inputs)
    return layers.Conv(inputs, outputs, size, stride=stride, padding=padding, init=init, rngs=rngs)


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """The mean over all pixels, `[B, H, W, C]` to `[B, C]`. Raises `ValueError` where there is no pixel."""
    if not math.prod(x.shape[1:3]):
        raise ValueError(f"no pixels are left in {list(x.shape)}")
    return x.mean((1, 2))


def outputs(features: nnx.Module, shape: tuple[int, ...]) -> int:
    """The number of values that `features` computes from an image of this shape. Raises as `shape_of`."""
    return math.prod(shape_of(features, shape))


def shape_of(features: nnx.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the output of `features` for an image of this shape, in evaluation mode, without the batch.

    Raises:
      InputError: the image is too small.
    """

    def run(state, images):
        model = nnx.merge(graphdef, state)
        model.eval()
        return model(images)

    graphdef, state = nnx.split(features)
    try:
        made = jax.eval_shape(run, state, jax.ShapeDtypeStruct((1, *shape), jnp.float32)).shape[1:]
    except (ValueError, TypeError):
        made = (0,)
    if not math.prod(made):
        raise InputError(f"images of {shape[0]}x{shape[1]} pixels are too small for this network")
    return made


class Network(nnx.Module):
    """A network of two parts: `features` of the image, flattened, go through `classifier`, which gives the logits.

    Class attributes are the shape of the images (height, width, channels), the number of classes (`of` gives the
    network for others), and the original project's training hyperparameters, which recipe `original` uses.
    """

    shape: ClassVar[tuple[int, int, int]] = IMAGE_SHAPE
    classes: ClassVar[int] = CLASSES

    learning_rate = 2e-4
    epochs = 30
    batch_size = 32
    optimizer = staticmethod(optax.adam)
    loss = staticmethod(losses.cross_entropy_of_softmax)

    best: ClassVar[Recipe]  # recipe by newer methods, which takes no more gradient steps than the original

    features: nnx.Sequential
    classifier: nnx.Sequential

    def __init__(self, rngs: nnx.Rngs):
        """Draws random weights. Each network's own `__init__` sets `features` and `classifier`."""

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None, masks: int = 1) -> jax.Array:
        """Logits `[B, classes]` of images `[B, *shape]` in [0, 1].

        In training mode `rngs` draws `masks` dropout masks for each image, and the logits are the mean over them.

        Raises:
          ValueError: the images are of another shape.
        """
        self.check(images)
        x = self.features(images, rngs=rngs)
        x = jnp.concatenate([x.reshape(len(x), math.prod(x.shape[1:]))] * masks)
        return self.classifier(x, rngs=rngs).reshape(masks, len(images), self.classes).mean(0)

    def check(self, images: jax.Array) -> None:
        """Raises `ValueError` unless the images are `[B, *shape]`."""
        if images.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("B", *self.shape)))
            raise ValueError(f"{type(self).__name__} takes images [{wanted}], not {list(images.shape)}")

    @classmethod
    @functools.cache  # the same class each time, as compiled programs belong to a class
    def of(cls, shape: tuple[int, int, int], classes: int) -> type[Self]:
        """The class of this network for images of `shape` (height, width, channels) and this number of classes."""
        if (shape, classes) == (cls.shape, cls.classes):
            return cls
        own = {"shape": shape, "classes": classes, "__module__": cls.__module__}
        return cast(type[Self], types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(own)))

    @classmethod
    def initialize(cls, key: jax.Array) -> Weights:
        """Random weights, distributed as PyTorch initializes these layers."""
        return _flatten(cls(nnx.Rngs(key)))

    @classmethod
    def apply(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits `[B, classes]` of images `[B, *shape]` in evaluation mode: no dropout, running batch statistics.

        So the logits of an image don't depend on the other images of the batch.
        """
        return cls.evaluating(weights)(images)

    @classmethod
    def evaluating(cls, weights: Weights) -> Self:
        """The module with these weights, in evaluation mode."""
        model = _unflatten(cls, weights)
        model.eval()
        return model

    @classmethod
    def apply_training(
        cls, weights: Weights, images: jax.Array, key: jax.Array, masks: int = 1, *, moved: bool = True
    ) -> tuple[jax.Array, Weights]:
        """Logits `[B, classes]` in training mode, and batch statistics by name.

        The statistics are the running ones updated by this batch, or if not `moved` the batch's own.
        """
        if not moved:  # updated from 0, a running statistic is (1 - MOMENTUM) times the batch's, which is undone below
            weights = weights | {name: jnp.zeros_like(weights[name]) for name in cls.statistics()}
        model = _unflatten(cls, weights)
        model.train()
        logits = model(images, rngs=nnx.Rngs(dropout=key), masks=masks)
        statistics = {name: array for name, array in _flatten(model).items() if name in cls.statistics()}
        return logits, statistics if moved else {k: v / (1 - layers.MOMENTUM) for k, v in statistics.items()}

    @classmethod
    def apply_dropping(cls, weights: Weights, images: jax.Array, key: jax.Array, masks: int = 1) -> jax.Array:
        """Logits `[B, classes]` with dropout as in training, but with the running statistics among the weights."""
        model = _unflatten(cls, weights)
        model.train()
        model.set_attributes(use_running_average=True, raise_if_not_found=False)
        return model(images, rngs=nnx.Rngs(dropout=key), masks=masks)

    @classmethod
    def objective(cls) -> Objective:
        """The objective of recipe `original`: the mean of `loss` on clean images."""
        return Plain(cls.loss)

    @classmethod
    def recipe(cls, name: str) -> Recipe:
        """The recipe `original` or `best` of this network. Raises `InputError` for other names."""
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        if name == "best":
            return cls.best
        return Recipe("original", cls.objective(), cls.optimizer, cls.learning_rate, cls.epochs, cls.batch_size)

    @classmethod
    @functools.cache
    def statistics(cls) -> frozenset[str]:
        """The names of the weights that are running batch statistics, not trained by gradients."""
        flat = nnx.to_flat_state(_skeleton(cls)[1])
        return frozenset(_name(path) for path, variable in flat if not isinstance(variable, nnx.Param))

    @classmethod
    def parameters(cls, weights: Weights) -> Weights:
        """The weights that gradients train: all but the running statistics."""
        return {name: array for name, array in weights.items() if name not in cls.statistics()}


@functools.cache
def _skeleton(cls: type[Network]) -> tuple[nnx.GraphDef, nnx.State]:
    """The structure of the network's module, with abstract arrays (shapes only) for weights."""
    return nnx.split(nnx.eval_shape(lambda: cls(nnx.Rngs(0))))


def _name(path) -> str:
    """The name of a weight, from its path in the module."""
    return ".".join(str(part) for part in path if part != "layers")


def _flatten(model: Network) -> Weights:
    """The weights of a module by name."""
    return {_name(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}


def _unflatten(cls: type[N], weights: Weights) -> N:
    """The module with these weights."""
    graphdef, skeleton = _skeleton(cls)
    flat = [(path, variable.replace(weights[_name(path)])) for path, variable in nnx.to_flat_state(skeleton)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def features_shape(cls: type[Network]) -> tuple[int, ...]:
    """The shape of the output of the network's `features` for one image, before flattening."""
    return shape_of(nnx.merge(*_skeleton(cls)).features, cls.shape)


def shapes(cls: type[Network]) -> dict[str, tuple[int, ...]]:
    """The names of the network's weights, each with its shape."""
    return {_name(path): variable.shape for path, variable in nnx.to_flat_state(_skeleton(cls)[1])}
