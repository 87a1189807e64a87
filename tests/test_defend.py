"""The defences' objectives against NumPy, against each other, and against the losses that they bound."""

import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mnist_jax import Classifier, certify, defend, geometry, layers, losses, networks, training
from mnist_jax.data import Split
from mnist_jax.defend import (
    batch,
    bounded,
    consistency,
    crown_ibp,
    defense,
    gaussian,
    ibp,
    minimal_norm,
    mtl_ibp,
    pgd,
    sabr,
    smooth_adv,
    trades,
)
from mnist_jax.errors import InputError
from mnist_jax.objective import Plain
from mnist_jax.recipe import Recipe
from mnist_jax.storage import checkpoint

INF = np.inf


class Linear(networks.Network):
    """Logits that are affine in 16 of the pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(lambda images: images[:, ::7, ::7])
        self.classifier = nnx.Sequential(networks.linear(16, 10, rngs))


class Normalized(networks.Network):
    """Two batch normalizations, and dropout, which evaluation and bounds leave out."""

    def __init__(self, rngs: nnx.Rngs):
        self.features = nnx.Sequential(lambda images: images[:, ::7, ::7])
        self.classifier = nnx.Sequential(
            networks.linear(16, 12, rngs),
            layers.BatchNorm(12, rngs=rngs),
            nnx.relu,
            nnx.Dropout(0.2),
            networks.linear(12, 12, rngs),
            layers.BatchNorm(12, rngs=rngs),
            nnx.relu,
            networks.linear(12, 10, rngs),
        )


KEY = jax.random.key(5)
LABELS = jnp.asarray(np.random.default_rng(1).integers(0, 10, 24), jnp.int32)
IMAGES = jnp.asarray(np.random.default_rng(0).random((24, 28, 28, 1), np.float32))

# An objective of each defence, with a radius for which the networks here resist on some images and not on others.
OBJECTIVES = {
    "pgd inf": pgd.PGD(INF, 0.1),
    "pgd 2": pgd.PGD(2.0, 0.5),
    "pgd 1": pgd.PGD(1.0, 2.0),
    "trades": trades.TRADES(INF, 0.1),
    "minimal_norm inf": minimal_norm.MinimalNorm(INF, 0.1),
    "minimal_norm 1": minimal_norm.MinimalNorm(1.0, 2.0),
    "ibp": ibp.IBP(0.05),
    "crown_ibp": crown_ibp.CROWNIBP(0.05),
    "mtl_ibp": mtl_ibp.MTLIBP(0.05, 0.5),
    "sabr": sabr.SABR(0.05, 0.4),
    "smooth_adv": smooth_adv.SmoothAdv(0.3, 0.5),
    "gaussian": gaussian.Gaussian(0.3),
    "consistency": consistency.Consistency(0.3),
}
each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def weights_of(network, seed=0):
    """Weights with running batch statistics that differ from those of the images."""
    weights = network.initialize(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return {k: w + jnp.asarray(rng.uniform(0, 0.2, w.shape), w.dtype) for k, w in weights.items()}


@partial(jax.jit, static_argnums=(0, 1))
def outcome(objective, network, weights, progress, images=IMAGES, labels=LABELS, key=KEY):
    return objective(network, weights, images, labels, key, progress)


def cross_entropy(logits, labels):
    logits = np.asarray(logits, float)
    top = logits.max(1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(1, keepdims=True)))[:, 0] - logits[np.arange(len(logits)), labels]


# Properties of every objective


@each_objective
def test_an_outcome_has_losses_statistics_and_gradients(objective):
    weights = weights_of(Normalized)
    got = outcome(objective, Normalized, weights, 0.5)
    assert got.losses.shape == (24,)
    assert np.isfinite(got.losses).all()
    assert got.logits.shape == (24, 10)
    assert got.statistics.keys() == Normalized.statistics()
    assert hash(objective) == hash(replace(objective))

    @jax.jit
    def total(parameters):
        result = objective(Normalized, weights | parameters, IMAGES, LABELS, KEY, 0.5)
        return result.losses.mean() + result.penalty

    gradients = jax.grad(total)(Normalized.parameters(weights))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        # A bias before a batch normalization has no effect.
        assert np.abs(gradient).max() > 0 or name in ("classifier.0.bias", "classifier.4.bias"), name


@pytest.mark.parametrize("name", ["pgd inf", "trades", "ibp", "mtl_ibp", "sabr"])
def test_statistics_are_those_of_the_clean_batch(name):
    weights = weights_of(Normalized)
    key = jax.random.split(KEY)[1] if name != "ibp" else KEY  # dropout changes the statistics of the second layer
    _, expected = Normalized.apply_training(weights, IMAGES, key)
    got = outcome(OBJECTIVES[name], Normalized, weights, 1.0).statistics
    for statistic in Normalized.statistics():
        np.testing.assert_allclose(got[statistic], expected[statistic], rtol=1e-5, atol=1e-6)


def test_gradients_pass_through_the_statistics_of_the_clean_batch():
    # The gradient of the whole objective against finite differences in double precision.
    with jax.enable_x64(True):
        weights = {k: w.astype(jnp.float64) for k, w in weights_of(Normalized).items()}
        objective = replace(OBJECTIVES["ibp"], share=1.0)

        @jax.jit
        def total(parameters):
            x = IMAGES.astype(jnp.float64)
            result = objective(Normalized, weights | parameters, x, LABELS, KEY, 0.1)
            return result.losses.mean() + result.penalty

        parameters = Normalized.parameters(weights)
        gradients, name = jax.grad(total)(parameters), "classifier.0.kernel"
        direction = jnp.asarray(np.random.default_rng(3).normal(size=parameters[name].shape))
        step = 1e-6
        ends = [total(parameters | {name: parameters[name] + s * step * direction}) for s in (1, -1)]
        slope = float((gradients[name] * direction).sum())
        assert abs(slope) > 1e-3
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-4)


# Adversarial images


@pytest.mark.parametrize(("norm", "radius"), [(INF, 0.1), (2.0, 0.5), (1.0, 2.0)])
def test_adversarial_images_are_in_ball_and_box_and_have_larger_losses(norm, radius):
    weights = weights_of(Normalized)
    how = {"norm": norm, "radius": radius, "steps": 7, "reach": 2.5}
    found = jax.jit(partial(batch.adversarial, **how))(Classifier(Normalized.apply, weights), IMAGES, LABELS, KEY)
    assert ((found >= 0) & (found <= 1)).all()
    assert (geometry.exact_norm(np.asarray(found, float) - np.asarray(IMAGES, float), norm) <= radius * 1.0001).all()
    before, after = (losses.cross_entropy(Normalized.apply(weights, x), LABELS) for x in (IMAGES, found))
    assert after.mean() > before.mean() + 0.05
    assert (after > before - 1e-4).mean() > 0.9


def test_at_radius_0_adversarial_training_is_plain():
    weights = weights_of(Linear)
    expected = outcome(Plain(losses.cross_entropy), Linear, weights, 1.0).losses
    for name in ("pgd inf", "pgd 2", "trades", "minimal_norm inf"):  # at progress 0 the radius is 0
        np.testing.assert_allclose(outcome(OBJECTIVES[name], Linear, weights, 0.0).losses, expected, rtol=1e-5)


@pytest.mark.parametrize(("norm", "radius"), [(INF, 0.05), (2.0, 0.3), (1.0, 1.5)])
def test_minimal_norm_images_are_the_nearest_adversarial_ones_within_the_radius(norm, radius):
    weights = weights_of(Linear)
    objective = minimal_norm.MinimalNorm(norm, radius, steps=40, learning_rate=1.0)
    classifier = Classifier(Linear.apply, weights)
    labels = classifier(IMAGES).argmax(1)
    found = np.asarray(jax.jit(objective.attacked)(classifier, IMAGES, labels, KEY, jnp.float32(radius)), float)
    distance = geometry.exact_norm(found - np.asarray(IMAGES, float), norm)
    assert ((found >= 0) & (found <= 1)).all()
    assert (distance <= radius * (1 + 1e-4)).all()
    # Each image's distance to the nearest decision boundary of the linear network, without the box [0, 1].
    w, logits = np.asarray(weights["classifier.0.kernel"], float), np.asarray(classifier(IMAGES), float)
    dual = {INF: 1, 2.0: 2, 1.0: INF}[norm]
    nearest = np.full(len(labels), np.inf)
    for other in range(10):
        for i, label in enumerate(np.asarray(labels)):
            if other != label:
                ahead = logits[i, label] - logits[i, other]
                nearest[i] = min(nearest[i], ahead / np.linalg.norm(w[:, label] - w[:, other], dual))
    fooled = np.asarray(classifier(jnp.asarray(found, jnp.float32)).argmax(1) != labels)
    assert 0 < fooled.sum() < 24  # some images have an adversarial one within the radius, others have none
    assert (distance[fooled] >= nearest[fooled] * 0.999).all()
    assert np.median(distance[fooled] / nearest[fooled]) < 1.5
    assert (distance[~fooled] > 0.9 * radius).mean() > 0.8  # perturbed by nearly the whole radius


def test_trades_is_the_loss_and_the_divergence():
    weights = weights_of(Linear)
    plain = cross_entropy(Linear.apply(weights, IMAGES), LABELS)
    one, six = (outcome(replace(OBJECTIVES["trades"], weight=w), Linear, weights, 1.0).losses for w in (1.0, 6.0))
    np.testing.assert_allclose(six - plain, 6 * (one - plain), rtol=1e-3, atol=1e-5)
    # PGD reaches a larger divergence than random corners of the ball.
    said = np.asarray(jax.nn.log_softmax(Linear.apply(weights, IMAGES)), float)
    rng, largest = np.random.default_rng(0), np.zeros(24)
    for _ in range(300):
        corner = jnp.clip(IMAGES + 0.1 * jnp.asarray(rng.choice([-1.0, 1.0], (28, 28, 1)), jnp.float32)[None], 0, 1)
        moved = np.asarray(jax.nn.log_softmax(Linear.apply(weights, corner)), float)
        largest = np.maximum(largest, (np.exp(said) * (said - moved)).sum(1))
    assert (one - plain).mean() > largest.mean()


# Bounds


def test_the_bound_of_a_linear_network_is_exact():
    weights, radius = weights_of(Linear), 0.05
    objective = replace(OBJECTIVES["ibp"], share=1.0, sparsity=0.0)
    got = outcome(objective, Linear, weights, 1.0)
    w = np.asarray(weights["classifier.0.kernel"], float)
    x = np.asarray(IMAGES, float)[:, ::7, ::7].reshape(24, 16)
    low, high = np.maximum(x - radius, 0), np.minimum(x + radius, 1)
    center, width = (low + high) / 2, (high - low) / 2
    logits = center @ w + np.asarray(weights["classifier.0.bias"], float)
    worst = np.zeros((24, 10))
    for i, label in enumerate(np.asarray(LABELS)):
        difference = w - w[:, [label]]
        worst[i] = logits[i] - logits[i, label] + width[i] @ np.abs(difference)
    np.testing.assert_allclose(got.losses, cross_entropy(worst, LABELS), rtol=1e-4)
    assert float(got.penalty) == 0.0


def test_training_bounds_are_those_of_certificates_without_rounding():
    weights = weights_of(Normalized)
    proved = certify.ibp(Classifier(Normalized.apply, weights), IMAGES, LABELS, 0.03)
    run = jax.jit(partial(bounded.intervals, Normalized))
    logits = np.asarray(run(weights, IMAGES, LABELS, 0.03).logits)
    others = np.where(np.arange(10) == np.asarray(LABELS)[:, None], -np.inf, logits)
    np.testing.assert_allclose(-others.max(1), proved.margin, rtol=0, atol=1e-3)
    assert (-others.max(1) >= np.asarray(proved.margin)).all()  # only certificates are charged for rounding
    np.testing.assert_array_equal(logits[np.arange(24), LABELS], 0)


@pytest.mark.parametrize("network", [Linear, Normalized])
def test_adversarial_losses_are_below_the_bounds(network):
    # In evaluation mode, as dropout would change the loss at random.
    weights, radius = weights_of(network), 0.05
    how = {"norm": INF, "radius": radius, "steps": 20, "reach": 4.0}
    found = jax.jit(partial(batch.adversarial, **how))(Classifier(network.apply, weights), IMAGES, LABELS, KEY)
    attacked = losses.cross_entropy(network.apply(weights, found), LABELS)
    bounds = jax.jit(partial(bounded.intervals, network))(weights, IMAGES, LABELS, radius)
    assert (attacked <= bounded.worst_case(bounds, LABELS) + 1e-4).all()


@pytest.mark.parametrize("progress", [0.0, 0.1, 1.0])
def test_crown_ibp_changes_from_crown_bounds_to_interval_bounds(progress):
    weights, made = weights_of(Normalized), replace(OBJECTIVES["crown_ibp"], share=1.0, radius=0.02)
    got = outcome(made, Normalized, weights, progress).losses
    grown = min(progress / made.warmup, 1.0)
    plain = batch.clean(Normalized, weights, IMAGES, KEY)
    radius = jnp.float32(grown * made.radius)
    by_ibp, both = (
        np.asarray(bounded.intervals(Normalized, plain.weights, IMAGES, LABELS, radius, lines=t).logits, float)
        for t in (None, jnp.float32(1.0))
    )
    assert (both <= by_ibp + 1e-5).all()
    if 0 < grown < 1:
        assert (both < by_ibp - 1e-4).mean() > 0.5  # CROWN-IBP is tighter, so that the comparison means something
    expected = cross_entropy((1 - grown) * both + grown * by_ibp, LABELS)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    found = batch.adversarial(  # no adversarial loss by the same statistics exceeds the bound
        Classifier(Normalized.apply, plain.weights), IMAGES, LABELS, KEY, norm=INF, radius=radius, steps=20, reach=4.0
    )
    assert (
        losses.cross_entropy(Normalized.apply(plain.weights, found), LABELS) <= cross_entropy(both, LABELS) + 1e-4
    ).all()


def test_mtl_ibp_is_between_adversarial_loss_and_bound():
    weights, made = weights_of(Linear), OBJECTIVES["mtl_ibp"]
    attacked, half, bound = (outcome(replace(made, share=s), Linear, weights, 1.0).losses for s in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(half, (attacked + bound) / 2, rtol=1e-5)
    assert (attacked <= bound + 1e-5).all()
    intervals = outcome(replace(OBJECTIVES["ibp"], share=1.0), Linear, weights, 1.0).losses
    np.testing.assert_allclose(bound, intervals, rtol=1e-5)


def test_sabr_bounds_less_than_the_ball_and_more_than_the_adversarial_image():
    weights, made = weights_of(Linear), OBJECTIVES["sabr"]
    nothing, half, whole = (outcome(replace(made, share=s), Linear, weights, 1.0).losses for s in (0.0, 0.5, 1.0))
    ball = outcome(replace(OBJECTIVES["ibp"], share=1.0), Linear, weights, 1.0).losses
    np.testing.assert_allclose(whole, ball, rtol=1e-5)
    assert (nothing <= half + 1e-5).all()
    assert (half <= ball + 1e-5).all()
    assert half.mean() < ball.mean() - 1e-3
    assert nothing.mean() > outcome(Plain(losses.cross_entropy), Linear, weights, 1.0).losses.mean() + 0.05


def test_the_radius_grows_and_the_regularizer_fades():
    weights, made = weights_of(Normalized), replace(OBJECTIVES["ibp"], warmup=0.5, share=1.0, sparsity=0.0)
    runs = [outcome(made, Normalized, weights, progress) for progress in (0.0, 0.25, 0.5, 1.0)]
    means = [float(run.losses.mean()) for run in runs]
    assert means[0] < means[1] < means[2] == means[3]
    assert float(runs[1].penalty) > 0
    assert float(runs[2].penalty) == float(runs[3].penalty) == 0.0
    half = outcome(replace(made, radius=made.radius / 2), Normalized, weights, 1.0)
    np.testing.assert_allclose(half.losses, runs[1].losses, rtol=1e-5)


def test_the_regularizers_have_the_values_of_the_formulas():
    rng = np.random.default_rng(0)
    low = rng.normal(size=(1, 6, 5)).astype(np.float32)
    high = low + rng.random(low.shape, np.float32)
    bounds = bounded.IntervalBounds(jnp.zeros((5, 10)), [(jnp.asarray(low), jnp.asarray(high))], jnp.asarray(0.1))
    center, active, inactive = (low + high) / 2, low > 0, high < 0
    spread = (center - center.mean()) ** 2
    ratio = [(center * active).sum() / -(center * inactive).sum(), (spread * active).sum() / (spread * inactive).sum()]
    expected = max(0.5 - 0.1 / (high - low).mean(), 0) + sum(max(0.5 - min(r, 1 / r), 0) for r in ratio)
    np.testing.assert_allclose(bounded.regularizer(bounds), expected / 0.5, rtol=1e-5)
    narrow = bounds._replace(arguments=[(jnp.full((1, 6, 5), -0.05), jnp.full((1, 6, 5), 0.05))])
    assert float(bounded.regularizer(narrow)) == 0.0  # widths as the images' own, and no argument of one sign


def test_initial_weights_keep_the_width_of_intervals():
    # In this deep network of wide layers the usual initialization widens intervals by a factor of hundreds.
    class Deep(networks.Network):
        def __init__(self, rngs: nnx.Rngs):
            sizes = [784] + [100] * 6
            self.features = nnx.Sequential()
            self.classifier = nnx.Sequential(
                *[part for a, b in pairwise(sizes) for part in (networks.linear(a, b, rngs), nnx.relu)],
                networks.linear(100, 10, rngs),
            )

    def widening(weights):
        bounds = jax.jit(partial(bounded.intervals, Deep))(weights, 0.3 + 0.4 * IMAGES, LABELS, 0.1)
        low, high = bounds.arguments[-1]
        return float((high - low).mean() / bounds.width)

    weights = bounded.initialize(Deep, jax.random.key(0))
    assert 0.3 < widening(weights) < 3
    assert widening(Deep.initialize(jax.random.key(0))) > 30
    kernel = np.asarray(weights["classifier.0.kernel"])
    assert kernel.std() == pytest.approx(math.sqrt(2 * math.pi) / 784, rel=0.02)
    assert not np.array_equal(weights["classifier.2.kernel"], weights["classifier.4.kernel"])
    assert (weights["classifier.2.bias"] == 0).all()


# Noise


def noisy_logits(weights, sigma, draws):
    noise_key, _ = jax.random.split(KEY)
    several = jnp.concatenate([IMAGES] * draws)
    noisy = several + sigma * jax.random.normal(noise_key, several.shape)
    assert float(noisy.min()) < 0  # noisy images are not clipped
    return np.asarray(Linear.apply(weights, noisy), float).reshape(draws, 24, 10)


def test_gaussian_training_is_the_loss_of_noisy_images():
    weights = weights_of(Linear)
    got = outcome(OBJECTIVES["gaussian"], Linear, weights, 1.0).losses
    np.testing.assert_allclose(got, cross_entropy(noisy_logits(weights, 0.3, 1)[0], LABELS), rtol=1e-4)


def test_consistency_has_the_value_of_its_formula():
    weights = weights_of(Linear)
    logits = noisy_logits(weights, 0.3, 2)
    p = np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    mean = p.mean(0)
    loss = (cross_entropy(logits[0], LABELS) + cross_entropy(logits[1], LABELS)) / 2
    apart = (mean * (np.log(mean) - np.log(p))).sum(-1).mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    got = outcome(OBJECTIVES["consistency"], Linear, weights, 1.0)
    np.testing.assert_allclose(got.losses, loss + 10 * apart + 0.5 * entropy, rtol=1e-3)
    np.testing.assert_array_equal(np.asarray(got.logits).argmax(1), mean.argmax(1))


def test_adversarial_training_of_the_smoothed_classifier():
    weights, made = weights_of(Linear), OBJECTIVES["smooth_adv"]
    noise_key, _, _ = jax.random.split(KEY, 3)
    noise = 0.3 * jax.random.normal(noise_key, (2, *IMAGES.shape))
    logits = [Linear.apply(weights, IMAGES + each) for each in noise]
    plain = np.mean([cross_entropy(each, LABELS) for each in logits], 0)
    np.testing.assert_allclose(outcome(made, Linear, weights, 0.0).losses, plain, rtol=1e-4)
    got = outcome(made, Linear, weights, 1.0)
    assert got.losses.mean() > plain.mean() + 0.05
    voted = outcome(made, Linear, weights, 0.0).logits
    expected = np.mean([np.asarray(jax.nn.softmax(each), float) for each in logits], 0)
    np.testing.assert_allclose(jax.nn.softmax(voted), expected, rtol=1e-4)


# Recipes, and training with them


def test_ramp_and_schedule():
    progress = jnp.asarray([0.0, 0.1, 0.2, 0.4, 1.0])
    np.testing.assert_allclose(defense.ramp(progress, 0.4), [0, 0.25, 0.5, 1, 1])
    np.testing.assert_allclose(defense.ramp(progress, 0.0), 1)
    rates = [float(defense.dropping(1.0, 70)(step)) for step in (0, 49, 50, 59, 60, 69)]
    np.testing.assert_allclose(rates, [1, 1, 0.2, 0.2, 0.04, 0.04], rtol=1e-6)


@pytest.mark.parametrize("name", defend.DEFENSES)
def test_recipes(name):
    described = defend.DEFENSES[name]
    norm = described.norms[-1]
    recipe = defend.recipe(name, networks.CNN5_bn, norm, 0.3)
    assert recipe.name == "best"
    assert described.what
    assert described.paper
    assert hash(recipe.objective) == hash(defend.recipe(name, networks.CNN5_bn, norm, 0.3).objective)
    hyperparameters = recipe.hyperparameters()
    assert hyperparameters["objective"]["name"] == type(recipe.objective).__name__
    assert json.loads(json.dumps(hyperparameters, allow_nan=False)) == hyperparameters  # JSON keeps their values
    original = defend.recipe(name, networks.MLP, norm, 0.3, "original")
    assert (original.name, original.epochs, original.objective) == ("original", 30, recipe.objective)


@pytest.mark.parametrize("path", sorted(checkpoint.shipped().glob("*-*-*-*.safetensors")), ids=lambda p: p.stem)
def test_the_shipped_networks_are_those_of_the_recipes(path):
    name, trained = checkpoint.Name.parse(path.stem), checkpoint.load(path)
    defense, norm, radius = name.defense.split("-")
    recipe = defend.recipe(defense, trained.network, float(norm), float(radius), name.recipe)
    assert trained.about["hyperparameters"] == recipe.hyperparameters()
    assert (trained.about["seed"], trained.about["defense"]) == (0, name.defense)


def test_recipe_gpu_is_that_of_the_literature():
    for name in ("ibp", "mtl_ibp"):
        best, gpu = (defend.recipe(name, networks.CNN7_bn, INF, 0.3, kind) for kind in ("best", "gpu"))
        assert (gpu.name, gpu.epochs, gpu.batch_size, gpu.learning_rate) == ("gpu", 70, 256, 5e-4)
        assert gpu.objective == best.objective
    with pytest.raises(InputError, match="the defence pgd has no recipe gpu"):
        defend.recipe("pgd", networks.MLP, INF, 0.3, "gpu")


def test_unknown_defences_norms_and_recipes():
    with pytest.raises(InputError, match="unknown defence 'pgdd': did you mean pgd"):
        defend.recipe("pgdd", networks.MLP, INF, 0.1)
    with pytest.raises(InputError, match="the defence ibp is for other norms: norm must be inf, not 2"):
        defend.recipe("ibp", networks.MLP, 2.0, 0.1)
    with pytest.raises(InputError, match="unknown recipe 'better'"):
        defend.recipe("ibp", networks.MLP, INF, 0.1, "better")


def clusters(count, seed=0):
    """Images of ten classes around ten random points, far enough apart for a radius of 0.1."""
    centers = np.random.default_rng(7).random((10, 28, 28, 1))
    labels = np.arange(count) % 10
    noise = np.random.default_rng(seed).normal(scale=0.05, size=(count, 28, 28, 1))
    images = np.clip(centers[labels] + noise, 0, 1)
    return Split(jnp.asarray(np.round(255 * images), jnp.uint8), jnp.asarray(labels, jnp.int32))


def trained(objective, epochs=12, key=0, network=Normalized):
    recipe = Recipe("some", objective, optax.adam, learning_rate=1e-2, epochs=epochs, batch_size=50)
    train = clusters(500)
    state = training.start(network, recipe, jax.random.key(key), recipe.steps(500))
    for _ in range(epochs):
        for progress in training.epoch(network, recipe, train, state):
            state = progress.state
    return state


def test_certified_training_certifies_what_plain_training_does_not():
    test = clusters(60, seed=1)
    images = np.asarray(test.images, np.float32) / 255
    certified = {}
    for objective in (Plain(losses.cross_entropy), ibp.IBP(0.1), mtl_ibp.MTLIBP(0.1, 0.5)):
        classifier = Classifier(Normalized.apply, trained(objective).weights)
        certified[type(objective).__name__] = float(certify.ibp(classifier, images, test.labels, 0.1).certified.mean())
    assert certified["IBP"] > certified["Plain"] + 0.3
    assert certified["MTLIBP"] > certified["Plain"] + 0.3


def test_the_same_seed_gives_the_same_bits():
    one, other, third = (trained(pgd.PGD(INF, 0.1, steps=2), 1, key) for key in (0, 0, 1))
    for name, array in one.weights.items():
        np.testing.assert_array_equal(array, other.weights[name])
    assert any((array != third.weights[name]).any() for name, array in one.weights.items())


def test_every_defence_is_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs/defences.md").read_text()
    for name, described in defend.DEFENSES.items():
        norms = ", ".join(f"{p:g}" for p in described.norms)
        assert f"\n| `{name}` | {norms} | " in text


def test_the_objective_in_the_documentation_trains():
    text = (Path(__file__).parents[1] / "docs/defences.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    exec(code, names := {"__name__": "mine"})
    got = outcome(names["Margins"](norm=INF, radius=0.3), Linear, weights_of(Linear), 1.0)
    assert got.losses.shape == (24,)


@pytest.mark.parametrize("network", networks.NETWORKS.values(), ids=networks.NETWORKS)
def test_every_network_can_be_defended(network):
    # Traced, not run: this checks that bounds support all operations of the network.
    weights = jax.eval_shape(network.initialize, jax.random.key(0))
    for name in ("mtl_ibp", "consistency"):
        objective = defend.recipe(name, network, defend.DEFENSES[name].norms[0], 0.3).objective
        if (network, name) == (networks.CapsNet, "mtl_ibp"):  # squashing of capsules has a comparison
            with pytest.raises(certify.UnsupportedOperation, match=r"no bounds of gt are known .*capsules\.py"):
                jax.eval_shape(partial(objective, network), weights, IMAGES, LABELS, KEY, jnp.zeros(()))
            continue
        got = jax.eval_shape(partial(objective, network), weights, IMAGES, LABELS, KEY, jnp.zeros(()))
        assert got.losses.shape == (24,)
        assert got.statistics.keys() == network.statistics()
