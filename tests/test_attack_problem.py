"""Checks of what attacks are given: classifiers that deserve a warning, radii, and losses of the wrong sign."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import apply, random_problem

from mnist_jax import Classifier, attack, losses
from mnist_jax.arguments import radii
from mnist_jax.attack import ClassifierWarning

W, B, IMAGES, LABELS = random_problem(np.random.default_rng(0), batch=5)
PARAMS = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(B, jnp.float32)}


def probabilities(params, images):
    return jax.nn.softmax(apply(params, images))


def saturated(params, images):
    return jax.nn.softmax(2.0**20 * apply(params, images))  # a power of two, which rounds nothing


def frozen(params, images):
    return jax.lax.stop_gradient(apply(params, images))


def no_numbers(params, images):
    far = jnp.maximum(images.reshape(len(images), -1) - 2, 0)  # zero, where the norm has no derivative
    return apply(params, images) + jnp.linalg.norm(far, axis=1)[:, None]


def of_the_batch(params, images):
    return apply(params, images - images.mean(0, keepdims=True))


def noisy(params, images):
    logits = apply(params, images)
    return logits + jax.random.normal(jax.random.key(0), logits.shape)


def run(function, count=5, **options):
    classifier = Classifier(function, PARAMS)
    return attack.automatic(classifier, IMAGES[:count], LABELS[:count], steps=1, **options)


@pytest.mark.parametrize(
    ("function", "message", "count"),
    [
        (probabilities, "look like probabilities", 5),
        (probabilities, "look like probabilities", 1),
        (frozen, "gradients vanish", 5),
        (no_numbers, "or are no numbers", 5),
        (of_the_batch, "answers differently", 5),
        (noisy, "answers differently", 5),
        (noisy, "answers differently", 1),
    ],
)
def test_each_fault_has_its_warning(function, message, count):
    with pytest.warns(ClassifierWarning, match=message) as caught:
        run(function, count)
    assert len(caught) == 1


def test_saturated_probabilities_have_two_faults():
    with pytest.warns(ClassifierWarning) as caught:
        run(saturated)
    assert len(caught) == 2


def test_a_classifier_without_faults_gets_no_warning_and_is_checked_once():
    traced = []

    def watched(params, images):
        traced.append(len(images))
        return apply(params, images)

    classifier = Classifier(watched, PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack.automatic(classifier, IMAGES, LABELS, steps=1)
        looks = traced.count(4)  # a batch of four only occurs in the check, not in an attack on five or two images
        attack.dichotomy(classifier, IMAGES, LABELS, steps=1)
        attack.automatic(Classifier(watched, PARAMS), IMAGES[:2], LABELS[:2], steps=1)
    assert traced.count(4) == looks > 0  # one program for an architecture, however many images


def test_a_second_attack_does_not_check_the_classifier_again():
    calls = []

    def counted(params, images):
        jax.debug.callback(lambda: calls.append(len(images)))
        return apply(params, images)

    classifier = Classifier(counted, PARAMS)
    costs = []
    for _ in range(2):
        attack.automatic(classifier, IMAGES, LABELS, steps=3)
        jax.effects_barrier()
        costs.append(sum(calls))
        calls.clear()
    assert costs[0] - costs[1] == 8  # two batches of four images


def test_a_warning_shows_the_line_that_called():
    for run in (partial(attack.automatic, steps=1), partial(attack.fgsm, radius=0.1)):
        with pytest.warns(ClassifierWarning) as caught:
            run(Classifier(frozen, PARAMS), IMAGES, LABELS)
        assert caught[0].filename == __file__


def test_the_classifier_is_not_checked_while_a_caller_compiles():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda x: run_on(x))(jnp.asarray(IMAGES, jnp.float32))


def run_on(images):
    return attack.automatic(Classifier(frozen, PARAMS), images, jnp.asarray(LABELS), steps=1)


@pytest.mark.parametrize("radius", [1, np.float64(1), [1, 1, 1], jnp.array([1, 1, 1])])
def test_radii_are_of_the_type_of_the_images(radius):
    found = radii(radius, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(found, np.ones(3, np.float32), strict=True)


@pytest.mark.parametrize("radius", [-1, [1, 2], [1, np.nan, 1], jnp.array([1, -1, 1])])
def test_bad_radii_are_refused(radius):
    with pytest.raises(ValueError, match="radius must be"):
        radii(radius, jnp.zeros((3, 2)))


def weighted(logits, labels):
    return losses.margin(logits, labels) * jnp.asarray([1.0, 2, 3, 4, 5])[labels]


@pytest.mark.parametrize("run", [attack.fgsm, attack.fixed_norm])
def test_a_loss_of_the_wrong_sign_is_refused(run):
    give = partial(run, Classifier(apply, PARAMS), IMAGES, LABELS, 0.5, norm=2)
    with pytest.raises(ValueError, match="must not fall where the label's logit grows"):
        give(loss=losses.cross_entropy)
    with pytest.raises(ValueError, match="must not fall where the label's logit grows"):
        jax.jit(lambda images: run(Classifier(apply, PARAMS), images, LABELS, 0.5, norm=2, loss=minus_margin))(
            jnp.asarray(IMAGES, jnp.float32)
        )
    with pytest.raises(ValueError, match="a number for each image"):
        give(loss=lambda logits, labels: losses.margin(logits, labels).sum())
    assert give(loss=weighted).distance.shape == (5,)


def test_the_direction_of_a_loss_with_traced_values_is_not_checked():
    def run(temperature):
        loss = lambda logits, labels: losses.margin(logits, labels) * temperature  # noqa: E731
        return attack.fgsm(Classifier(apply, PARAMS), IMAGES, LABELS, 0.5, loss=loss).distance

    np.testing.assert_array_equal(jax.jit(run)(2.0), run(2.0))
    for wrong in (["margin"], 3, None):
        with pytest.raises(ValueError, match="loss must be"):
            attack.fgsm(Classifier(apply, PARAMS), IMAGES, LABELS, 0.5, loss=wrong)


def minus_margin(logits, labels):
    return -losses.margin(logits, labels)


def test_the_dichotomy_checks_the_direction_of_a_loss():
    for search_first in (True, False):
        with pytest.raises(ValueError, match="must not fall where the label's logit grows"):
            attack.dichotomy(Classifier(apply, PARAMS), IMAGES, LABELS, loss=minus_margin, search_first=search_first)
