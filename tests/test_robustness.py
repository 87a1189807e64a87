"""Robust accuracy by several attacks: successes are recomputed, and masked gradients are detected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import Classifier, certify, load_classifier
from mnist_jax.geometry import exact_norm
from mnist_jax.robustness import alone, attempts, breaks, masking, robustness

RADIUS = 0.05
WAVE = 3e-4  # amplitude of the ripple, in pixel values: far below the radius


@pytest.fixture(scope="module")
def mlp():
    return load_classifier("MLP-original")


@pytest.fixture(scope="module")
def some(mnist):
    return np.asarray(mnist.val.images[:48], np.float32) / 255, mnist.val.labels[:48]


def masked(params, images):
    """The same network with a small ripple added to its images, which makes its gradients useless: they are masked."""
    ripple = WAVE * jnp.sin(images * (50 / WAVE))
    return load_classifier("MLP-original").apply(params, images + ripple)


def test_each_attack_gets_the_images_that_the_others_left(mlp, some):
    images, labels = some
    every = attempts(mlp, RADIUS, surrogate=load_classifier("MLP_bn-original"))
    chosen = {name: every[name] for name in ("transfer", "pgd", "nearest")}
    seen = {}

    def watched(name):
        def attempt(x, y):
            seen[name] = len(x)
            return chosen[name](x, y)

        return attempt

    result = robustness(mlp, images, labels, RADIUS, {name: watched(name) for name in chosen})
    left = int(result.clean.sum())
    for name, broken in result.broken.items():
        assert seen[name] == left
        left -= int(broken.sum())
    assert left == result.robust.sum()
    assert 0 < left < 40
    assert not any((broken & ~result.clean).any() for broken in result.broken.values())
    nearest = np.asarray(every["nearest"](images, labels))
    within = exact_norm(nearest.astype(float) - images, np.inf) <= RADIUS
    assert not (result.robust & within).any()


def test_certified_images_are_not_attacked(mlp, some):
    images, labels = some
    proved = np.asarray(certify.crown(mlp, images, labels, 0.02).certified)
    assert 0 < proved.sum() < 48

    def attempt(x, y):
        assert len(x) == (~proved).sum() - (~robustness(mlp, images, labels, 0.02, {}).clean).sum()
        return x

    assert (robustness(mlp, images, labels, 0.02, {"none": attempt}, certified=proved).robust | ~proved).all()


@pytest.mark.parametrize("wrong", ["too far", "outside"])
def test_images_that_are_not_adversarial_count_for_nothing(mlp, some, wrong):
    images, labels = some
    gray = np.full_like(images, 0.5)
    assert (np.asarray(mlp(gray)).argmax(1) != labels).any()
    radius, candidates = (0.3, gray) if wrong == "too far" else (3.0, gray + 1)
    assert not breaks(mlp, images, labels, radius, lambda x, y: candidates, norm=np.inf).any()
    assert breaks(mlp, images, labels, 1.0, lambda x, y: gray, norm=np.inf).any()


@pytest.mark.filterwarnings("ignore::mnist_jax.attack.ClassifierWarning")
def test_masked_gradients_are_found_out(mlp, some):
    images, labels = some
    hidden = Classifier(masked, mlp.params)
    np.testing.assert_array_equal(np.asarray(hidden(images)).argmax(1), np.asarray(mlp(images)).argmax(1))
    accuracies = {}
    for name, classifier in (("plain", mlp), ("masked", hidden)):
        every = attempts(classifier, 0.1, surrogate=load_classifier("MLP_bn-original"), effort=20)
        chosen = {attack: every[attack] for attack in ("transfer", "pgd", "square")}
        accuracies[name] = alone(classifier, images, labels, 0.1, chosen)
    assert masking(accuracies["plain"]) == []
    assert masking(accuracies["masked"]), accuracies


def test_what_is_measured_is_what_is_classified(mlp, some):
    images, labels = some
    whole = np.round(images)  # as whole numbers they would be taken for pixels from 0 to 255
    result = robustness(mlp, whole, labels, 0.1, {"identity": lambda x, y: x.astype(np.uint8)})
    assert result.clean.any()
    np.testing.assert_array_equal(result.robust, result.clean)
    assert len(robustness(mlp, images[:0], labels[:0], 0.1, {"none": lambda x, y: x}).robust) == 0


def test_masking_compares_accuracies_with_that_of_pgd():
    assert masking({"pgd": 0.9, "square": 0.86, "transfer": 0.95}) == []
    assert masking({"pgd": 0.9, "square": 0.84, "transfer": 0.3}) == ["square", "transfer"]


def test_every_attack_is_there_and_random_only_by_the_key(mlp, some):
    images, labels = (array[:4] for array in some)
    assert list(attempts(mlp, RADIUS)) == ["pgd", "square", "auto_attack", "nearest"]
    same = [attempts(mlp, RADIUS, key=jax.random.key(seed))["pgd"](images, labels) for seed in (0, 0)]
    np.testing.assert_array_equal(*same)
