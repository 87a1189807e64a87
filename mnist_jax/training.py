"""Training: recipes, one step, some steps as one program, one loop.

state = start(network, recipe, jax.random.key(seed), steps)
for progress in epoch(network, recipe, train, state): ...
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from mnist_jax import layers, losses
from mnist_jax.data import Split, normalize
from mnist_jax.distortion import Distortion
from mnist_jax.errors import unknown
from mnist_jax.networks import Network, Weights, is_statistic


def constant(peak: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def one_cycle(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine down to zero (Smith & Topin 2018)."""
    warmup = max(1, steps // 10)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1))


def full(steps: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def fading(steps: int) -> optax.Schedule:
    """Full strength for three tenths of the steps, then linearly down to three tenths of it.

    What is learnt last is nearest to the images as they are (compare He et al., "Data augmentation revisited", 2019).
    """
    return optax.linear_schedule(1.0, 0.3, steps - 3 * steps // 10, 3 * steps // 10)


@dataclass(frozen=True)
class Recipe:
    """Everything that says how a network is trained, apart from the seed and the data.

    Attributes:
      loss: a function of logits `[B, C]` and labels `[B]`, from losses.py.
      optimizer: makes an optax optimizer of a learning-rate schedule.
      schedule: makes that schedule of `learning_rate`, its peak, and the number of steps.
      distortion: of the training images, or None.
      strength: makes the schedule of the distortion's strength, of the number of steps.
      averaging: decay, per step, of the exponential moving average of the weights that is the result; 0 for none.
      masks: how many dropout masks an image is seen through at once, the loss being that of the mean of their logits.
        Evaluation, which drops nothing out, stands for that mean; the more masks, the less training differs from it
        (compare Ma et al., "Dropout with expectation-linear regularization", 2017).
    """

    name: str
    loss: Callable[[ArrayLike, ArrayLike], jax.Array]
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    learning_rate: float
    epochs: int
    batch_size: int
    schedule: Callable[[float, int], optax.Schedule] = constant
    distortion: Distortion | None = None
    strength: Callable[[int], optax.Schedule] = full
    averaging: float = 0.0
    masks: int = 1

    def hyperparameters(self) -> dict[str, Any]:
        """The recipe as plain JSON values: functions by their names."""
        return {k: v.__name__ if callable(v) and hasattr(v, "__name__") else v for k, v in asdict(self).items()}

    def steps(self, images: int) -> int:
        """Gradient steps in all; the last batch of an epoch may be a smaller one."""
        return self.epochs * math.ceil(images / self.batch_size)

    def make_optimizer(self, steps: int) -> optax.GradientTransformation:
        return self.optimizer(self.schedule(self.learning_rate, steps))


def original(network: type[Network]) -> Recipe:
    """The original project's: the hyperparameters that the network's class carries."""
    return Recipe(
        "original", network.loss, network.optimizer, network.learning_rate, network.epochs, network.batch_size
    )


def best(network: type[Network]) -> Recipe:
    """What the field knows by now, in no more gradient steps than the original takes."""
    return BEST[network.__name__]


_MILD = Distortion(rotation=8, scaling=0.08, shear=0.05, translation=1.0, elastic=0.7)
_STRONG = Distortion(rotation=12, scaling=0.12, shear=0.1, translation=1.5, elastic=1.0)
_CONVOLUTIONAL = Recipe(
    "best",
    losses.cross_entropy,
    optax.adam,
    learning_rate=1.5e-3,
    epochs=45,
    batch_size=50,
    schedule=one_cycle,
    distortion=_MILD,
    averaging=0.999,
)
_DENSE = replace(_CONVOLUTIONAL, learning_rate=2e-3, epochs=90, batch_size=100, distortion=_STRONG)

BEST: dict[str, Recipe] = {
    "MLP": _DENSE,
    "MLP_d": replace(
        _DENSE,
        learning_rate=3e-3,
        epochs=60,
        batch_size=250,
        distortion=_MILD,
        averaging=0.9995,
        masks=4,
    ),
    "MLP_bn": _DENSE,
    "CNN": _CONVOLUTIONAL,
    "CNN_d": replace(_CONVOLUTIONAL, epochs=36, masks=4),
    "CNN_bn": replace(_CONVOLUTIONAL, learning_rate=4e-3, strength=fading),
}

RECIPES: dict[str, Callable[[type[Network]], Recipe]] = {"best": best, "original": original}


def recipe(name: str, network: type[Network]) -> Recipe:
    """The recipe of that name for a network. Raises `InputError` where there is none."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name](network)


class State(NamedTuple):
    """The state of a training: a pytree. With it, and the recipe and the data, a run goes on as if never stopped."""

    weights: Weights
    average: Weights  # empty where the recipe averages nothing
    optimizer: optax.OptState
    key: jax.Array
    epoch: jax.Array  # epochs done
    step: jax.Array  # steps done


class Progress(NamedTuple):
    """Where an epoch is, with the means over it so far, of the loss and of the accuracy on the batches as trained."""

    state: State
    step: int
    steps: int
    loss: float
    accuracy: float


def start(network: type[Network], recipe: Recipe, key: jax.Array, steps: int) -> State:
    """The state before the first of `steps` steps."""
    init_key, key = jax.random.split(key)
    weights = network.initialize(init_key)
    optimizer = recipe.make_optimizer(steps).init(_parameters(weights))
    zero = jnp.zeros((), jnp.int32)
    return State(weights, dict(weights) if recipe.averaging else {}, optimizer, key, zero, zero)


def epoch(network: type[Network], recipe: Recipe, train: Split, state: State) -> Iterator[Progress]:
    """Trains for one epoch over `train` (arrays on the device), in a new order; yields some times on the way.

    The state of the last `Progress` has the epoch counted.
    """
    images = len(train.labels)
    order_key, _ = epoch_keys = jax.random.split(jax.random.fold_in(state.key, state.epoch))
    order = np.asarray(jax.random.permutation(order_key, images))
    loss = correct = 0.0
    seen = done = 0
    steps = math.ceil(images / recipe.batch_size)
    for batches in _pieces(order, recipe.batch_size):
        state, sums = train_steps(network, recipe, recipe.steps(images), state, train, batches, epoch_keys[1])
        done, seen = done + len(batches), seen + batches.size
        if done == steps:
            state = state._replace(epoch=state.epoch + 1)
        loss, correct = (total + float(s) for total, s in zip((loss, correct), sums, strict=True))
        yield Progress(state, done, steps, loss / seen, correct / seen)


def _pieces(order: np.ndarray, batch_size: int, longest: int = 100) -> Iterator[np.ndarray]:
    """The order as arrays `[steps, batch]`, equal ones so that one program serves them, and the smaller last batch."""
    full = len(order) // batch_size
    length = max((k for k in range(1, longest + 1) if full % k == 0), default=1)
    if length < longest // 4:  # no good divisor: pieces of the longest size and a shorter one
        length = min(longest, max(full, 1))
    batches = order[: full * batch_size].reshape(full, batch_size)
    yield from (batches[i : i + length] for i in range(0, full, length))
    if len(order) % batch_size:
        yield order[None, full * batch_size :]


def result(network: type[Network], state: State, train: Split) -> Weights:
    """The weights to evaluate and to keep: the average, where the recipe makes one.

    No batch ever had the statistics of averaged weights, and the batches were distorted; so its batch statistics are
    taken anew, over undistorted training images (Izmailov et al., "Averaging weights leads to wider optima and better
    generalization", 2018).
    """
    if not state.average:
        return state.weights
    if not any(map(is_statistic, state.average)):
        return state.average
    batch = min(250, len(train.labels))
    batches = train.images[: 40 * batch]
    batches = batches[: len(batches) // batch * batch].reshape(-1, batch, *batches.shape[1:])
    return _with_statistics(network, state.average, batches)


@partial(jax.jit, static_argnums=0)
def _with_statistics(network, weights, batches):
    """The weights with the mean of the statistics of the batches `[K, B, H, W, C]`."""
    zeros = {name: jnp.zeros_like(array) for name, array in weights.items() if is_statistic(name)}

    def body(sums, images):
        # From zero, a running statistic moves by this share of the way to the batch's.
        moved = network.apply_training(weights | zeros, normalize(images), jax.random.key(0))[1]
        return {name: total + moved[name] / (1 - layers.MOMENTUM) for name, total in sums.items()}, None

    sums, _ = jax.lax.scan(body, zeros, batches)
    return weights | {name: total / len(batches) for name, total in sums.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def train_steps(network, recipe, total_steps, state, train, batches, key):
    """One program for many steps, a batch of indices `[steps, B]` each: the new state, and (loss, correct) summed."""
    step = partial(_train_step, network, recipe, recipe.make_optimizer(total_steps))
    numbers = state.step + jnp.arange(len(batches))
    distortion_keys, dropout_keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(key, n)), out_axes=1)(
        numbers
    )
    distorted = None
    if recipe.distortion:
        # A loop of its own: inside the steps, XLA would fuse it into all that reads the images, and so repeat it.
        distorted = jax.lax.map(
            lambda inputs: recipe.distortion(inputs[0], normalize(train.images[inputs[1]]), inputs[2]),
            (distortion_keys, batches, jax.vmap(recipe.strength(total_steps))(numbers)),
        )

    def body(state, inputs):
        images, batch, dropout_key = inputs
        images = normalize(train.images[batch]) if images is None else images
        return step(state, images, train.labels[batch], dropout_key)

    state, sums = jax.lax.scan(body, state, (distorted, batches, dropout_keys))
    return state, jax.tree.map(jnp.sum, sums)


def _train_step(network, recipe, optimizer, state, images, labels, dropout_key):
    def mean_loss(parameters):
        logits, moved = network.apply_training(state.weights | parameters, images, dropout_key, recipe.masks)
        loss = recipe.loss(logits, labels)
        return loss.mean(), (loss.sum(), losses.accuracy(logits, labels).sum(), moved)

    parameters = _parameters(state.weights)
    gradients, (loss, correct, moved) = jax.grad(mean_loss, has_aux=True)(parameters)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, parameters)
    weights = moved | optax.apply_updates(parameters, updates)
    average = state.average
    if recipe.averaging:
        # Young averages forget faster, so that the random start does not stay in them.
        decay = jnp.minimum(recipe.averaging, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update(weights, average, 1 - decay)
    new = state._replace(weights=weights, average=average, optimizer=optimizer_state, step=state.step + 1)
    return new, (loss, correct)


def _parameters(weights: Weights) -> Weights:
    return {name: array for name, array in weights.items() if not is_statistic(name)}
