"""Training: a gradient step, many steps as one compiled program, and the loop over an epoch. To train for an epoch:

state = start(network, recipe, jax.random.key(seed), steps)
for progress in epoch(network, recipe, train, state): ...
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax import losses
from mnist_jax.data import Split, normalize
from mnist_jax.networks import Network, Weights
from mnist_jax.recipe import Recipe


class State(NamedTuple):
    """The state of a training, a pytree: with it, the recipe and the data, training resumes to the same bits."""

    weights: Weights
    average: Weights  # the moving average of the weights; empty where the recipe has none
    optimizer: optax.OptState
    key: jax.Array
    epoch: jax.Array  # number of epochs done
    step: jax.Array  # number of steps done


class Progress(NamedTuple):
    """The progress of an epoch: steps done of `steps`, and mean loss and accuracy on the epoch's batches so far."""

    state: State
    step: int
    steps: int
    loss: float
    accuracy: float


def start(network: type[Network], recipe: Recipe, key: jax.Array, steps: int) -> State:
    """The state before the first of `steps` training steps: weights, optimizer and random key."""
    init_key, key = jax.random.split(key)
    its_own = getattr(recipe.objective, "initialize", None)
    weights = its_own(network, init_key) if its_own else network.initialize(init_key)
    optimizer = recipe.make_optimizer(steps).init(network.parameters(weights))
    zero = jnp.zeros((), jnp.int32)
    return State(weights, dict(weights) if recipe.averaging else {}, optimizer, key, zero, zero)


def epoch(network: type[Network], recipe: Recipe, train: Split, state: State) -> Iterator[Progress]:
    """Trains for one epoch over `train` (arrays on the device), in a new random order; yields after every few steps.

    The epoch is counted in the state of the last `Progress`.
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
    """The order of the images in arrays `[steps, batch]` of one shape if possible, and the smaller last batch.

    Each shape compiles a program. `longest` is the largest number of steps in an array.
    """
    full = len(order) // batch_size
    length = max((k for k in range(1, longest + 1) if full % k == 0), default=1)
    if length < longest // 4:  # no large divisor: arrays of the longest size and a shorter one
        length = min(longest, max(full, 1))
    batches = order[: full * batch_size].reshape(full, batch_size)
    yield from (batches[i : i + length] for i in range(0, full, length))
    if len(order) % batch_size:
        yield order[None, full * batch_size :]


def result(network: type[Network], state: State, train: Split) -> Weights:
    """The trained weights, to evaluate and to save: the moving average where the recipe has one.

    The running batch statistics do not fit averaged weights, and come from distorted images. So the statistics of the
    average are computed anew, over at most 40 batches of undistorted training images (Izmailov et al., "Averaging
    weights leads to wider optima and better generalization", 2018).
    """
    if not state.average:
        return state.weights
    if not network.statistics():
        return state.average
    batch = min(250, len(train.labels))
    batches = train.images[: 40 * batch]
    batches = batches[: len(batches) // batch * batch].reshape(-1, batch, *batches.shape[1:])
    return _with_statistics(network, state.average, batches)


@partial(jax.jit, static_argnums=0)
def _with_statistics(network, weights, batches):
    """The weights with the mean of the statistics of the batches `[K, B, H, W, C]`."""
    zeros = {name: jnp.zeros_like(weights[name]) for name in network.statistics()}

    def body(sums, images):
        _, of_batch = network.apply_training(weights, normalize(images), jax.random.key(0), moved=False)
        return jax.tree.map(jnp.add, sums, of_batch), None

    sums, _ = jax.lax.scan(body, zeros, batches)
    return weights | {name: total / len(batches) for name, total in sums.items()}


@partial(jax.jit, static_argnums=(0, 1, 2))
def train_steps(network, recipe, total_steps, state, train, batches, key):
    """One program for many training steps, on batches of image indices `[steps, B]`.

    Gives the new state, and the sums over all images of the loss and of correct predictions.
    """
    step = partial(_train_step, network, recipe, total_steps)
    numbers = state.step + jnp.arange(len(batches))
    distortion_keys, dropout_keys = jax.vmap(lambda n: jax.random.split(jax.random.fold_in(key, n)), out_axes=1)(
        numbers
    )
    distorted = None
    if recipe.distortion:
        # In a loop of its own: in the loop over steps XLA fuses it into all readers of the images, which repeats it.
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


def _train_step(network, recipe, total_steps, state, images, labels, key):
    def minimized(parameters):
        weights, progress = state.weights | parameters, state.step / total_steps
        outcome = recipe.objective(network, weights, images, labels, key, progress)
        return outcome.losses.mean() + outcome.penalty, outcome

    parameters, optimizer = network.parameters(state.weights), recipe.make_optimizer(total_steps)
    gradients, outcome = jax.grad(minimized, has_aux=True)(parameters)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, parameters)
    weights = state.weights | outcome.statistics | optax.apply_updates(parameters, updates)
    average = state.average
    if recipe.averaging:
        # The decay is smaller in the first steps, so that the average forgets the random initialization.
        decay = jnp.minimum(recipe.averaging, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update(weights, average, 1 - decay)
    new = state._replace(weights=weights, average=average, optimizer=optimizer_state, step=state.step + 1)
    return new, (outcome.losses.sum(), losses.accuracy(outcome.logits, labels).sum())
