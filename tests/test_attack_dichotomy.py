"""The search for the smallest radius, against the exact distance for linear classifiers, and on real networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import attack, data, geometry, load_classifier
from mnist_jax.attack.minimal_norm.dichotomy import _rounds


@pytest.mark.parametrize("p", [1, 1.5, 2, np.inf])
def test_linear_oracle_in_the_box_and_without(p):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for free in [False] * 4 + [True] * 4:
            w, b, images, labels = random_problem(rng, batch=64, free=free)
            distance = nearest(w, b, images, labels, p)
            result = attack.dichotomy(classifier(w, b, float), images, labels, norm=p)
            # A success has to exceed 1e-5 of the largest logit; closer than that to the boundary it can't be seen.
            seen = np.isfinite(distance) & (distance > 0.1 * np.median(distance))
            ratio = np.asarray(result.distance)[seen] / distance[seen]
            assert result.success[seen].all()
            assert ratio.min() > 1 - 1e-9
            assert ratio.max() < 1.002


def straight(classifier, images, labels, radius, *, norm, targets=None):
    """A fixed-radius attack of somebody else's: one step along the gradient of the margin."""
    from mnist_jax.losses import margin

    gradient = jax.grad(lambda x: margin(classifier(x), labels).sum())(images)
    r = geometry.project_sphere_in_box(
        -radius[:, None, None, None] * geometry.dual_direction(gradient, norm), images, radius, norm
    )
    success = classifier(images + r).argmax(1) != labels
    ones = jnp.ones(len(labels), jnp.int32)
    return attack.AttackResult(images + r, jnp.where(success, radius, jnp.inf), success, ones, ones)


def test_any_fixed_radius_attack_fits():
    w, b, images, labels = random_problem(np.random.default_rng(1), classes=2)
    result = attack.dichotomy(classifier(w, b), images, labels, attack=straight)
    distance = nearest(w, b, images, labels, 2)
    clear = distance > 0.01
    np.testing.assert_allclose(result.distance[clear], distance[clear], rtol=2e-3)


def never(classifier, images, labels, radius, *, norm, targets=None):
    """An attack that tries something, and always fails, on images that others fool at any radius here."""
    none = jnp.zeros(len(labels), bool)
    ones = none + jnp.ones(len(labels), jnp.int32)
    return attack.AttackResult(1 - images, jnp.full(len(labels), jnp.inf), none, ones, 2 * ones)


def test_bisecting_an_attack_that_always_fails_finds_nothing():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=8)
    result = attack.dichotomy(classifier(w, b), images, labels, attack=never)
    assert not result.success.any()
    assert np.isinf(result.distance).all()
    assert (result.gradients == result.gradients[0]).all()
    assert 8 <= result.gradients[0] <= 24  # a round each
    inside = jax.jit(partial(attack.dichotomy, classifier(w, b), attack=never))(
        jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    )
    assert not inside.success.any()
    # A search before it is an option, with a name.
    assert attack.dichotomy(classifier(w, b), images, labels, attack=never, search_first=True).success.all()


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_an_attack_is_bisected_to_where_it_alone_succeeds(jit):
    """The single step of a 2-norm does not go to the nearest boundary of several, and misses some within any radius."""
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=16, classes=3)
    c, images, labels = classifier(w, b), jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    bisect = partial(attack.dichotomy, c, attack=attack.fgsm)
    result = (jax.jit(bisect) if jit else bisect)(images, labels)
    radii = np.linspace(0.01, 2.5, 250)
    alone = [attack.fgsm(c, images, labels, radius, norm=2) for radius in radii]
    success, distances = (np.stack(arrays) for arrays in zip(*[(a.success, a.distance) for a in alone], strict=True))
    monotone = (np.diff(success.astype(int), axis=0) >= 0).all(0) & success.any(0)
    assert monotone.sum() > 8
    # The box cuts the step, so that the distance is less than the radius.
    first = distances[success.argmax(0), np.arange(16)]
    np.testing.assert_allclose(result.distance[monotone], first[monotone], atol=0.011)
    searched = attack.dichotomy(c, images, labels, attack=attack.fgsm, search_first=True)
    assert (searched.distance <= result.distance * 1.001).all()
    assert (searched.gradients > 5 * result.gradients).all()


def test_a_key_is_for_every_round_of_the_attack():
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=8, classes=3)
    run = partial(attack.dichotomy, classifier(w, b), images, labels, attack=partial(attack.pgd, steps=5))
    one, again, other, old = (run(key=key) for key in (*map(jax.random.key, (1, 1, 2)), jax.random.PRNGKey(1)))
    np.testing.assert_array_equal(one.images, again.images)
    np.testing.assert_array_equal(one.images, old.images)
    assert not np.array_equal(one.images, other.images)
    keys = jax.random.split(jax.random.key(3), 8)
    first = attack.dichotomy(classifier(w, b), images[:3], labels[:3], attack=attack.pgd, steps=5, key=keys[:3])
    np.testing.assert_allclose(run(key=keys).images[:3], first.images, atol=1e-6)


def test_options_may_have_a_value_for_each_image():
    w, b, images, labels = random_problem(np.random.default_rng(4), batch=6, classes=3)
    c, rates = classifier(w, b), np.linspace(0.02, 0.05, 6)
    for how in ({"attack": attack.pgd, "step_size": rates, "steps": 5}, {"learning_rate": rates, "steps": 2}):
        together = attack.dichotomy(c, images, labels, **how)
        last = {name: value[5:] if np.ndim(value) else value for name, value in how.items()}
        alone = attack.dichotomy(c, images[5:], labels[5:], **last)
        np.testing.assert_allclose(alone.distance, together.distance[5:], rtol=2e-3)
    known = _rounds._cache_size()
    attack.dichotomy(c, images, labels, steps=2, learning_rate=rates / 2)
    assert _rounds._cache_size() == known  # another learning rate compiles nothing


def test_low_and_high_are_limits():
    w, b, images, labels = random_problem(np.random.default_rng(2), batch=64)
    c, distance = classifier(w, b), nearest(w, b, images, labels, 2)
    high = float(np.median(distance))
    result = attack.dichotomy(c, images, labels, high=high)
    assert (np.asarray(result.success)[distance < 0.99 * high]).all()
    assert not (np.asarray(result.success)[distance > 1.001 * high]).any()
    assert np.isinf(result.distance[~result.success]).all()
    assert np.isfinite(result.images).all()
    huge = attack.dichotomy(c, images, labels, high=1e9)
    np.testing.assert_array_equal(huge.distance, attack.dichotomy(c, images, labels).distance)


@pytest.mark.parametrize("name", ["MLP-original", "CNN-original"])
def test_real_images_are_fooled(name):
    c, split = load_classifier(name), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:16])), split.labels[:16]
    result = attack.dichotomy(c, images, labels)
    assert result.success.all()
    assert (result.images >= 0).all()
    assert (result.images <= 1).all()
    assert (np.asarray(c(result.images)).argmax(1) != labels).all()
    attacked = result.distance > 0  # the others were misclassified from the start
    assert attacked.sum() >= 14
    lengths = np.linalg.norm((np.asarray(result.images) - images).reshape(16, -1), axis=1)
    np.testing.assert_allclose(result.distance, lengths, rtol=1e-5)
    assert 0.1 < np.median(lengths) < 3
    assert (result.gradients[attacked] > 0).all()
    assert (result.forwards > 0).all()


def test_an_image_does_not_depend_on_its_neighbours():
    c, split = load_classifier("MLP-original"), data.load().val
    images, labels = np.asarray(data.normalize(split.images[:16])), split.labels[:16]
    together = attack.dichotomy(c, images, labels)
    other = np.array([0] + [7] * 15)
    np.testing.assert_array_equal(together.images[0], attack.dichotomy(c, images[other], labels[other]).images[0])


def test_more_images_than_a_chunk_and_none():
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=300)
    result = attack.dichotomy(classifier(w, b), images, labels)
    assert result.distance.shape == (300,)
    first = attack.dichotomy(classifier(w, b), images[:128], labels[:128])
    np.testing.assert_allclose(result.distance[:128], first.distance, rtol=1e-4)
    assert attack.dichotomy(classifier(w, b), images[:0], labels[:0]).distance.shape == (0,)


def test_some_of_the_images_inside_a_jitted_function():
    w, b, images, labels = random_problem(np.random.default_rng(4))
    images, labels = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    run = partial(attack.dichotomy, classifier(w, b))
    some = jax.jit(run)(images[:3], labels[:3])
    np.testing.assert_allclose(some.distance, run(images, labels).distance[:3], rtol=1e-3)


def test_a_key_disturbs_the_start():
    c, split = load_classifier("MLP-original"), data.load().val
    run = partial(attack.dichotomy, c, np.asarray(data.normalize(split.images[:16])), split.labels[:16])
    one, again, other = (run(key=jax.random.key(k)) for k in (1, 1, 2))
    assert one.success.all()
    np.testing.assert_array_equal(one.images, again.images)
    assert not np.array_equal(one.images, other.images)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tolerance": 0.0},
        {"norm": 0.0},
        {"low": -1.0},
        {"high": np.ones(3)},
        {"high": np.nan},
        {"low": 2.0, "high": 1.0},
        {"learning_rate": np.nan},
        {"learning_rate": -1.0},
        {"steps": 0},
        {"steps": 2.5},
        {"stepz": 3},
        {"attack": None},
        {"attack": "pgd"},
        {"attack": attack.nearest},
        {"low": np.array([0, 0, 2, 0]), "high": 1, "attack": attack.fgsm},
    ],
)
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(5), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.dichotomy(classifier(w, b), images, labels, **wrong)
