"""FAB: exact after a few steps on linear classifiers, its restarts, and its version of one class at a time."""

from functools import partial

import jax
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack


@pytest.mark.parametrize(("p", "classes"), [(1, None), (2, None), (np.inf, None), (2, 4), (np.inf, 4)])
def test_exact_on_linear_classifiers(p, classes):
    with jax.enable_x64(True):
        w, b, images, labels = random_problem(np.random.default_rng(0))
        result = attack.fab(classifier(w, b, float), images, labels, norm=p, steps=20, classes=classes)
        exact = nearest(w, b, images, labels, p)
        ratio = np.asarray(result.distance) / exact
    assert result.success.all()
    clear = exact > 0.1 * np.median(exact)  # closer, the rounding that a success has to exceed counts for more
    assert ratio.min() > 1 - 1e-9
    # Of all classes, the one whose boundary would be nearest without the box is not always the right one.
    assert (np.median if classes is None else np.max)(ratio[clear]) < 1.01


def test_counts():
    w, b, images, labels = random_problem(np.random.default_rng(1), batch=4)
    run = partial(attack.fab, classifier(w, b), images, labels, steps=3)
    for options, gradients, evaluations in (({}, 12, 3), ({"classes": 2}, 6, 6), ({"restarts": 2}, 24, 6)):
        result = run(**options)
        np.testing.assert_array_equal(result.gradients, gradients)
        np.testing.assert_array_equal(result.forwards, evaluations + 7)
    targets = (labels + 1) % 5
    result = run(targets=targets)
    np.testing.assert_array_equal(result.gradients, 3)
    assert (np.asarray(classifier(w, b)(result.images)).argmax(1) == targets)[result.success].all()


def test_restarts_never_lose_and_depend_on_the_key():
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(20, 30)).astype(np.float32)
    images = random_problem(rng)[2]
    out = rng.normal(size=(30, 5)).astype(np.float32)

    def network(params, images):
        return jax.nn.relu(images.reshape(len(images), -1) @ params[0]) @ params[1]

    run = partial(attack.fab, Classifier(network, (hidden, out)), images, steps=5)
    once, more, again, other = run(), run(restarts=3), run(restarts=3), run(restarts=3, key=jax.random.key(5))
    assert (more.distance <= once.distance * 1.02).all()
    np.testing.assert_array_equal(more.images, again.images)
    assert not np.array_equal(more.images, other.images)


@pytest.mark.parametrize("wrong", [{"norm": 3}, {"steps": 0}, {"restarts": 0}, {"classes": 0}])
def test_bad_arguments_are_refused(wrong):
    w, b, images, labels = random_problem(np.random.default_rng(3), batch=4)
    with pytest.raises(ValueError, match="must be"):
        attack.fab(classifier(w, b), images, labels, **wrong)
