"""What the networks have in common.

A network is a Flax module class. What the rest of the project works with is its pure functions: weights are a flat
dictionary from names (`"features.0.kernel"`) to arrays, parameters and batch statistics together.
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

IMAGE_SHAPE = (28, 28, 1)
CLASSES = 10


def uniform_by_fan_in(key, shape, dtype, *, fan_in: int):
    """PyTorch's initialization of linear and convolutional layers, kernel and bias: U(-1, 1) / sqrt(fan_in)."""
    return jax.random.uniform(key, shape, dtype, -1, 1) / fan_in**0.5


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    init = functools.partial(uniform_by_fan_in, fan_in=inputs)
    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)


def conv(inputs: int, outputs: int, size: int, rngs: nnx.Rngs, *, stride: int = 1, padding: int = 0) -> layers.Conv:
    init = functools.partial(uniform_by_fan_in, fan_in=size * size * inputs)
    return layers.Conv(inputs, outputs, size, stride=stride, padding=padding, init=init, rngs=rngs)


def mean_of_pixels(x: jax.Array) -> jax.Array:
    """`[B, H, W, C]` to `[B, C]`. Raises `ValueError` where there are no pixels left."""
    if not math.prod(x.shape[1:3]):
        raise ValueError(f"no pixels are left in {list(x.shape)}")
    return x.mean((1, 2))


def outputs(features: nnx.Module, shape: tuple[int, ...]) -> int:
    """How many values the features make of an image of that shape. Raises `InputError` where it is too small."""
    return math.prod(shape_of(features, shape))


def shape_of(features: nnx.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the features make of an image of that shape. Raises `InputError` where it is too small."""

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
    """`features` on the image, `classifier` on what comes out of them, flattened; the result is the logits.

    The class attributes are the shape of the images, height, width and channels, the number of classes (`of` gives the
    network for others), and the original project's training hyperparameters; recipe `original` uses just these.
    """

    shape: ClassVar[tuple[int, int, int]] = IMAGE_SHAPE
    classes: ClassVar[int] = CLASSES

    learning_rate = 2e-4
    epochs = 30
    batch_size = 32
    optimizer = staticmethod(optax.adam)
    loss = staticmethod(losses.cross_entropy_of_softmax)

    best: ClassVar[Recipe]  # what the field knows by now, in no more gradient steps than the original takes

    features: nnx.Sequential
    classifier: nnx.Sequential

    def __init__(self, rngs: nnx.Rngs):
        """Each network's own sets `features` and `classifier`."""

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None, masks: int = 1) -> jax.Array:
        """Logits `[B, classes]` of images `[B, *shape]` in [0, 1].

        In training mode `rngs` draws the dropout masks: `masks` of them for each image, and the logits are the mean.

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
    @functools.cache  # one class for each, as programs are compiled for a class
    def of(cls, shape: tuple[int, int, int], classes: int) -> type[Self]:
        """This network for images of another shape and another number of classes."""
        if (shape, classes) == (cls.shape, cls.classes):
            return cls
        own = {"shape": shape, "classes": classes, "__module__": cls.__module__}
        return cast(type[Self], types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(own)))

    @classmethod
    def initialize(cls, key: jax.Array) -> Weights:
        """Fresh weights, distributed as PyTorch initializes these layers."""
        return _flatten(cls(nnx.Rngs(key)))

    @classmethod
    def apply(cls, weights: Weights, images: jax.Array) -> jax.Array:
        """Logits in evaluation mode: running batch statistics, no dropout, so no image depends on another."""
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
        """Logits in training mode, and batch statistics: the running ones moved on by this batch, or its own."""
        if not moved:  # from zero, a running statistic moves by this share of the way to the batch's
            weights = weights | {name: jnp.zeros_like(weights[name]) for name in cls.statistics()}
        model = _unflatten(cls, weights)
        model.train()
        logits = model(images, rngs=nnx.Rngs(dropout=key), masks=masks)
        statistics = {name: array for name, array in _flatten(model).items() if name in cls.statistics()}
        return logits, statistics if moved else {k: v / (1 - layers.MOMENTUM) for k, v in statistics.items()}

    @classmethod
    def apply_dropping(cls, weights: Weights, images: jax.Array, key: jax.Array, masks: int = 1) -> jax.Array:
        """Logits with dropout, but normalized by the statistics among the weights."""
        model = _unflatten(cls, weights)
        model.train()
        model.set_attributes(use_running_average=True, raise_if_not_found=False)
        return model(images, rngs=nnx.Rngs(dropout=key), masks=masks)

    @classmethod
    def objective(cls) -> Objective:
        """What recipe `original` minimizes: `loss` of the images as they are."""
        return Plain(cls.loss)

    @classmethod
    def recipe(cls, name: str) -> Recipe:
        """The recipe of that name for this network. Raises `InputError` where there is none."""
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
        if name == "best":
            return cls.best
        return Recipe("original", cls.objective(), cls.optimizer, cls.learning_rate, cls.epochs, cls.batch_size)

    @classmethod
    @functools.cache
    def statistics(cls) -> frozenset[str]:
        """The names of the weights that are running batch statistics, which no gradient trains."""
        flat = nnx.to_flat_state(_skeleton(cls)[1])
        return frozenset(_name(path) for path, variable in flat if not isinstance(variable, nnx.Param))

    @classmethod
    def parameters(cls, weights: Weights) -> Weights:
        """The weights that are trained: all but the statistics."""
        return {name: array for name, array in weights.items() if name not in cls.statistics()}


@functools.cache
def _skeleton(cls: type[Network]) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: cls(nnx.Rngs(0))))


def _name(path) -> str:
    return ".".join(str(part) for part in path if part != "layers")


def _flatten(model: Network) -> Weights:
    return {_name(path): variable[...] for path, variable in nnx.to_flat_state(nnx.state(model))}


def _unflatten(cls: type[N], weights: Weights) -> N:
    graphdef, skeleton = _skeleton(cls)
    flat = [(path, variable.replace(weights[_name(path)])) for path, variable in nnx.to_flat_state(skeleton)]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def features_shape(cls: type[Network]) -> tuple[int, ...]:
    """The shape of what the network's features make of an image, before it is flattened."""
    return shape_of(nnx.merge(*_skeleton(cls)).features, cls.shape)


def shapes(cls: type[Network]) -> dict[str, tuple[int, ...]]:
    """The names of the network's weights, each with its shape."""
    return {_name(path): variable.shape for path, variable in nnx.to_flat_state(_skeleton(cls)[1])}
