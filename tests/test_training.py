"""Training against a loop of plain optax steps, on a few random images.

The label of image i is i, so that a loss which writes down its labels shows which images a step saw; its class is i
modulo ten.
"""

import json
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnist_jax import layers, losses, networks, training
from mnist_jax.data import Split
from mnist_jax.distortion import Distortion
from mnist_jax.errors import InputError
from mnist_jax.networks import MLP, NETWORKS, CapsNet
from mnist_jax.networks.capsules import Reconstruction
from mnist_jax.objective import Plain
from mnist_jax.recipe import RECIPES, Recipe, constant, fading, one_cycle

SEEN = []  # the labels of every batch so far


def loss(logits, labels):
    jax.debug.callback(lambda labels: SEEN.append(np.asarray(labels).tolist()), labels, ordered=True)
    return losses.cross_entropy(logits, labels % 10)


class Small(networks.Network):
    """A network with batch normalization on 16 of the pixels, which compiles fast."""

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(lambda images: images[:, ::7, ::7])
        self.classifier = nnx.Sequential(
            networks.linear(16, 12, rngs), layers.BatchNorm(12, rngs=rngs), networks.linear(12, 10, rngs)
        )


class SmallWithDropout(networks.Network):
    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(lambda images: images[:, ::7, ::7])
        self.classifier = nnx.Sequential(nnx.Dropout(0.5), networks.linear(16, 10, rngs))


ADAM = Recipe("adam", Plain(loss), optax.adam, learning_rate=1e-3, epochs=3, batch_size=16)
SMALL = replace(ADAM, objective=Plain(losses.cross_entropy), learning_rate=1e-2)


def some_images(count, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 1)).astype(np.uint8)
    return Split(jnp.asarray(images), jnp.arange(count, dtype=jnp.int32))


def ten_classes(split):
    return Split(split.images, split.labels % 10)


def started(network, recipe, train, seed=0):
    return training.start(network, recipe, jax.random.key(seed), recipe.steps(len(train.labels)))


def run_epochs(network, recipe, train, state, epochs=1):
    """The last state, all progress reports, and the labels of every batch."""
    SEEN.clear()
    reports = []
    for _ in range(epochs):
        for progress in training.epoch(network, recipe, train, state):
            reports.append(progress)
            state = progress.state
    jax.effects_barrier()
    return state, reports, list(SEEN)


def numbers(tree):
    """The leaves of a pytree as NumPy arrays, random keys as their data."""
    leaves = jax.tree.leaves(tree)
    keys = [jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.asarray(jax.random.key_data(leaf) if key else leaf) for leaf, key in zip(leaves, keys, strict=True)]


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def assert_close(left, right, atol):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=atol, err_msg=name)


# An epoch


def test_two_epochs_are_a_loop_of_optax_steps():
    recipe = replace(ADAM, schedule=one_cycle, epochs=2)
    train = some_images(70)
    state = started(MLP, recipe, train)
    first = state.weights
    state, reports, seen = run_epochs(MLP, recipe, train, state, epochs=2)

    # Each epoch has every image once, in its own order, with the smaller batch last.
    assert [len(batch) for batch in seen] == [16, 16, 16, 16, 6] * 2
    orders = [np.concatenate(seen[:5]).tolist(), np.concatenate(seen[5:]).tolist()]
    assert all(sorted(order) == list(range(70)) for order in orders)
    assert orders[0] != orders[1]
    assert list(range(70)) not in orders

    images = np.asarray(train.images, np.float32).reshape(70, 784) / 255
    schedule = optax.warmup_cosine_decay_schedule(0, 1e-3, 1, 10)
    optimizer = optax.adam(schedule)
    weights, optimizer_state = first, optimizer.init(first)

    @jax.jit
    def step(weights, optimizer_state, x, labels):
        def mean_loss(w):
            hidden = jax.nn.relu(x @ w["classifier.0.kernel"] + w["classifier.0.bias"][None])
            hidden = jax.nn.relu(hidden @ w["classifier.2.kernel"] + w["classifier.2.bias"][None])
            logits = hidden @ w["classifier.4.kernel"] + w["classifier.4.bias"][None]
            every = -jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels % 10]
            return every.mean(), (every.sum(), (logits.argmax(-1) == labels).sum())

        gradient, sums = jax.grad(mean_loss, has_aux=True)(weights)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(weights, updates), optimizer_state, sums

    sums = []
    for batch in seen:
        weights, optimizer_state, both = step(weights, optimizer_state, images[batch], np.array(batch))
        sums.append(both)
    assert_close(state.weights, weights, atol=1e-5)
    moved = max(np.abs(weights[name] - first[name]).max() for name in first)
    assert moved > 1e-3

    # The reports are means over the images of the epoch so far.
    assert [(r.step, r.steps) for r in reports] == [(4, 5), (5, 5)] * 2
    assert [int(r.state.step) for r in reports] == [4, 5, 9, 10]
    assert [int(r.state.epoch) for r in reports] == [0, 1, 1, 2]
    sums = np.array(sums, float)
    expected = [sums[:4].sum(0) / 64, sums[:5].sum(0) / 70, sums[5:9].sum(0) / 64, sums[5:].sum(0) / 70]
    np.testing.assert_allclose([(r.loss, r.accuracy) for r in reports], expected, rtol=1e-5)


@pytest.mark.parametrize(("count", "sizes"), [(10, [10]), (17, [16, 1])])
def test_sizes_of_batches(count, sizes):
    recipe, train = ADAM, some_images(count)
    assert recipe.steps(count) == 3 * len(sizes)
    state, reports, seen = run_epochs(Small, recipe, train, started(Small, recipe, train))
    assert [len(batch) for batch in seen] == sizes
    assert sorted(np.concatenate(seen)) == list(range(count))
    assert (int(state.step), int(state.epoch)) == (len(sizes), 1)
    assert math.isfinite(reports[-1].loss)
    assert all(np.isfinite(array).all() for array in state.weights.values())


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batches_contain_every_image_once_in_few_shapes(batch_size):
    sizes = [*range(1, 40), *(n * batch_size + left for n in (99, 100, 101, 127, 400, 1562, 1563) for left in (0, 5))]
    for images in sizes:
        order = np.random.default_rng(images).permutation(images)
        pieces = list(training._pieces(order, batch_size))
        np.testing.assert_array_equal(np.concatenate([piece.ravel() for piece in pieces]), order)
        full, left = divmod(images, batch_size)
        if left:
            assert pieces.pop().shape == (1, left)
        assert all(piece.shape[1] == batch_size and 1 <= len(piece) <= 100 for piece in pieces)
        assert len({piece.shape for piece in pieces}) <= 2
        assert len(pieces) <= math.ceil(full / 25)


def test_no_images_make_no_batches():
    assert list(training._pieces(np.arange(0), 16)) == []


def test_arrays_of_batches_of_one_shape_share_a_program():
    traces = []

    def counted(logits, labels):
        traces.append(logits.shape)
        return losses.cross_entropy(logits, labels)

    # 101 full batches, in arrays of 100 and of 1, and a smaller last batch.
    recipe, train = replace(SMALL, objective=Plain(counted), batch_size=2), ten_classes(some_images(203))
    _, reports, _ = run_epochs(Small, recipe, train, started(Small, recipe, train), epochs=2)
    assert [r.step for r in reports] == [100, 101, 102] * 2
    assert traces == [(2, 10), (2, 10), (1, 10)]


def test_steps_do_not_depend_on_how_many_run_in_one_program():
    recipe = replace(SMALL, averaging=0.9)
    train = ten_classes(some_images(64))
    first = started(SmallWithDropout, recipe, train)
    batches = np.random.default_rng(0).permutation(64).reshape(4, 16)
    steps = partial(training.train_steps, SmallWithDropout, recipe, 4, train=train, key=jax.random.key(7))
    whole, sums = steps(first, batches=batches)
    state, totals = first, np.zeros(2)
    for batch in batches:
        state, more = steps(state, batches=batch[None])
        totals += more
    assert_close(state.weights, whole.weights, atol=1e-5)
    assert_close(state.average, whole.average, atol=1e-5)
    np.testing.assert_allclose(totals, sums, rtol=1e-5)
    assert_same_bits((state.key, state.step, state.epoch), (first.key, whole.step, first.epoch))


def test_every_step_draws_its_own_distortion():
    recipe = replace(SMALL, learning_rate=0.0, distortion=Distortion(translation=5))
    train, batch = ten_classes(some_images(16)), np.arange(16)[None]
    state = started(Small, recipe, train)
    w = state.weights
    pixels = np.asarray(train.images)[:, ::7, ::7].reshape(16, 16) / 255
    means = [(pixels @ w["classifier.0.kernel"] + w["classifier.0.bias"][None]).mean(0)]
    for _ in range(3):
        before = state.weights["classifier.1.mean"]
        state, _ = training.train_steps(Small, recipe, 3, state, train, batch, jax.random.key(0))
        np.testing.assert_array_equal(state.weights["classifier.0.kernel"], w["classifier.0.kernel"])
        # The mean of the batch, which has weight 0.1 in the running mean.
        means.append(10 * (state.weights["classifier.1.mean"] - 0.9 * before))
    apart = [np.abs(means[i] - means[j]).max() for i in range(4) for j in range(i)]
    assert min(apart) > 0.01


def off(steps):
    """A schedule of the distortion's strength: 1 in the first step, 0 in all others."""
    return lambda step: jnp.where(step < 1, 1.0, 0.0)


def test_the_strength_of_the_distortion_follows_its_schedule():
    plain = replace(SMALL, optimizer=optax.sgd)
    distorted = replace(plain, distortion=Distortion(translation=5))
    faded = replace(distorted, strength=off)
    train, batch = ten_classes(some_images(16)), np.arange(16)[None]

    def kernel(recipe, number):
        """The weights of the first layer after one step, which is step `number` of a training."""
        state = started(Small, plain, train)
        state = state._replace(step=state.step + number)
        state, _ = training.train_steps(Small, recipe, 3, state, train, batch, jax.random.key(0))
        return np.asarray(state.weights["classifier.0.kernel"])

    np.testing.assert_allclose(kernel(faded, 0), kernel(distorted, 0), atol=1e-6)
    np.testing.assert_allclose(kernel(faded, 1), kernel(plain, 1), atol=1e-6)
    assert np.abs(kernel(distorted, 0) - kernel(plain, 0)).max() > 1e-5


# A run


def test_sixty_four_images_are_memorized():
    recipe = replace(SMALL, learning_rate=3e-3)
    train = ten_classes(some_images(64))
    state, reports, _ = run_epochs(MLP, recipe, train, started(MLP, recipe, train), epochs=15)
    assert reports[0].accuracy < 0.5
    assert reports[-1].accuracy == 1
    images = np.asarray(train.images, np.float32) / 255
    logits = jax.jit(MLP.apply)(training.result(MLP, state, train), images)
    np.testing.assert_array_equal(logits.argmax(-1), train.labels)


AVERAGED = replace(SMALL, schedule=one_cycle, averaging=0.9)


def test_same_seed_same_bits():
    train = ten_classes(some_images(40))
    first, second, other = (
        run_epochs(Small, AVERAGED, train, started(Small, AVERAGED, train, seed), epochs=2)[0] for seed in (3, 3, 4)
    )
    assert_same_bits(first, second)
    for name in ("classifier.0.kernel", "classifier.1.mean", "classifier.2.bias"):
        assert np.all(first.weights[name] != other.weights[name])


def test_training_resumes_from_its_state():
    train = ten_classes(some_images(40))
    straight, reports, _ = run_epochs(Small, AVERAGED, train, started(Small, AVERAGED, train), epochs=3)
    after_one = next(r.state for r in reports if r.state.epoch == 1)

    # The state is converted to NumPy arrays and back, as by a file.
    restored = jax.tree.unflatten(jax.tree.structure(after_one), numbers(after_one))
    restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
    assert_same_bits(run_epochs(Small, AVERAGED, train, restored, epochs=2)[0], straight)


def test_the_seed_changes_the_order_and_the_initialization():
    train = some_images(17)
    orders = [run_epochs(Small, ADAM, train, started(Small, ADAM, train, seed))[2] for seed in (0, 1)]
    assert orders[0] != orders[1]
    starts = [started(Small, ADAM, train, seed).weights["classifier.0.kernel"] for seed in (0, 1)]
    assert np.all(starts[0] != starts[1])


def test_averaging():
    recipe, train = replace(SMALL, averaging=0.3), ten_classes(some_images(96))
    state = started(Small, recipe, train)
    assert_same_bits(state.average, state.weights)
    average = {name: np.float64(array) for name, array in state.weights.items()}
    for step in range(6):
        batch = np.arange(16 * step, 16 * step + 16)[None]
        state, _ = training.train_steps(Small, recipe, 6, state, train, batch, jax.random.key(0))
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * state.weights[name] for name in average}
        assert_close(state.average, average, atol=1e-6)
    assert np.abs(state.average["classifier.1.var"] - state.weights["classifier.1.var"]).max() > 1e-3


def test_the_result_without_averaging_is_the_weights():
    train = some_images(16)
    state = started(Small, SMALL, train)
    assert state.average == {}
    assert_same_bits(training.result(Small, state, train), state.weights)


def test_the_result_without_batch_statistics_is_the_average():
    train = some_images(16)
    state = started(SmallWithDropout, AVERAGED, train)
    state = state._replace(average=jax.tree.map(lambda array: 2 * array, state.weights))
    assert_same_bits(training.result(SmallWithDropout, state, train), state.average)


@pytest.mark.parametrize("count", [30, 500])
def test_the_batch_statistics_of_the_result_are_computed_with_its_own_weights(count):
    train = some_images(count)
    state = started(Small, AVERAGED, train)
    # An average whose batch statistics belong to other weights.
    average = {name: array + 1 for name, array in state.weights.items()}
    got = training.result(Small, state._replace(average=average), train)
    assert got.keys() == average.keys()
    for name in average.keys() - {"classifier.1.mean", "classifier.1.var"}:
        np.testing.assert_array_equal(got[name], average[name])
    pixels = np.asarray(train.images)[:, ::7, ::7].reshape(count, 16) / 255
    hidden = pixels @ average["classifier.0.kernel"] + average["classifier.0.bias"][None]
    np.testing.assert_allclose(got["classifier.1.mean"], hidden.mean(0), rtol=0.01)
    np.testing.assert_allclose(got["classifier.1.var"], hidden.var(0, ddof=1), rtol=0.02)


def test_batch_statistics_are_not_optimized():
    state = started(Small, SMALL, some_images(16))
    moments = state.optimizer[0].mu
    assert state.weights.keys() - moments.keys() == {"classifier.1.mean", "classifier.1.var"}


# Schedules and recipes


def test_one_cycle():
    rate = one_cycle(0.5, 200)
    values = np.array([rate(step) for step in range(0, 201, 10)])
    np.testing.assert_allclose(values[:3], [0, 0.25, 0.5], rtol=1e-6)
    halfway = (20 + 200) / 2
    assert rate(halfway) == pytest.approx(0.25)
    assert (np.diff(values[2:]) < 0).all()
    assert values[-1] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_one_cycle_of_very_few_steps(steps):
    rate = one_cycle(0.5, steps)
    assert all(0 <= float(rate(step)) <= 0.5 for step in range(steps + 1))


def test_constant():
    assert [float(constant(0.25, 10)(step)) for step in (0, 5, 10)] == [0.25] * 3


def test_fading():
    strength = fading(100)
    got = np.array([strength(step) for step in range(101)])
    np.testing.assert_array_equal(got[:31], 1)
    np.testing.assert_allclose(got[30:], np.linspace(1, 0.3, 71), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_fading_in_very_few_steps(steps):
    strength = fading(steps)
    assert all(0.29 < float(strength(step)) <= 1 for step in range(steps + 1))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_original_recipe(network):
    assert network.recipe("original") == Recipe(
        name="original",
        objective=Reconstruction() if network is CapsNet else Plain(losses.cross_entropy_of_softmax),
        optimizer=optax.adam,
        learning_rate=2e-4,
        epochs=30,
        batch_size=32,
        schedule=constant,
        distortion=None,
        averaging=0.0,
    )


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_best_recipe_takes_no_more_steps(network):
    best = network.recipe("best")
    assert best.name == "best"
    assert best.steps(50_000) <= network.recipe("original").steps(50_000) == 30 * 1563


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_hyperparameters_are_plain_json(network, name):
    recipe = network.recipe(name)
    values = recipe.hyperparameters()
    assert json.loads(json.dumps(values)) == values
    assert values["name"] == name
    assert values["optimizer"] == "adam"
    loss = {"original": "cross_entropy_of_softmax", "best": "cross_entropy"}[name]
    plain = {"name": "Plain", "loss": loss, "masks": getattr(recipe.objective, "masks", 1)}
    capsules = {"name": "Reconstruction", "loss": "capsule_margin", "weight": 0.0005}
    assert values["objective"] == (capsules if network is CapsNet else plain)
    assert values["schedule"] == recipe.schedule.__name__
    numbers = ("learning_rate", "epochs", "batch_size", "averaging")
    assert [values[key] for key in numbers] == [getattr(recipe, key) for key in numbers]
    distortion = recipe.distortion and {"name": "Distortion"} | vars(recipe.distortion)
    assert values["distortion"] == distortion


def test_an_unknown_recipe():
    with pytest.raises(
        InputError, match=r"^unknown recipe 'orignal': did you mean original\? There are best, original$"
    ):
        MLP.recipe("orignal")


def test_several_masks_train_on_the_mean_of_their_logits():
    """One step of plain gradient descent, against the gradient of the loss of the mean, written out."""
    recipe = replace(SMALL, objective=Plain(losses.cross_entropy, masks=3), optimizer=optax.sgd, batch_size=8)
    train = ten_classes(some_images(8))
    state = started(SmallWithDropout, recipe, train)
    batches, key = np.arange(8)[None], jax.random.key(3)
    got, (_, correct) = training.train_steps(SmallWithDropout, recipe, 1, state, train, batches, key)

    images = jnp.asarray(np.asarray(train.images, np.float32) / 255)
    dropout_key = jax.random.split(jax.random.fold_in(key, 0))[1]

    def mean_logits(weights):
        logits, _ = SmallWithDropout.apply_training(weights, jnp.concatenate([images] * 3), dropout_key)
        return (logits[:8] + logits[8:16] + logits[16:]) / 3

    def loss(weights):
        return losses.cross_entropy(mean_logits(weights), train.labels).mean()

    gradients = jax.grad(loss)(state.weights)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(got.weights[name], state.weights[name] - 1e-2 * gradient, rtol=1e-4, atol=1e-6)
    assert correct == (mean_logits(state.weights).argmax(-1) == train.labels).sum()


def test_masks_change_nothing_without_dropout():
    train = ten_classes(some_images(16))
    once, several = (
        training.train_steps(
            MLP, recipe, 1, started(MLP, recipe, train), train, np.arange(16)[None], jax.random.key(0)
        )[0]
        for recipe in (
            replace(SMALL, objective=Plain(losses.cross_entropy, masks), optimizer=optax.sgd) for masks in (1, 4)
        )
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), once.weights, several.weights)
