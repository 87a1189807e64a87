"""AutoAttack: which attack gets which images and settings, and which results count. The four attacks are replaced."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import Classifier, attack
from mnist_jax.attack.engine.result import AttackResult

# A constant classifier has no gradients.
pytestmark = pytest.mark.filterwarnings("ignore::mnist_jax.attack.ClassifierWarning")

auto = importlib.import_module("mnist_jax.attack.fixed_radius.auto_attack")  # the name in the package is the function


@pytest.fixture
def calls(monkeypatch):
    """Replaces the attacks: each fools the images below a limit of its own, the third one at twice the radius."""
    calls = []

    def replaced(name, limit, distance):
        def run(classifier, images, labels, *radius, norm, targets, key=None, **settings):
            calls.append((name, images.shape, settings))
            broken = images[:, 0] < limit
            far = jnp.where(broken, distance, jnp.inf)
            used = jnp.full(len(images), 10, jnp.int32)
            return AttackResult(images + limit, far, broken, used, used)

        monkeypatch.setattr(auto, name, run)

    for name, limit, distance in (
        ("apgd", 0.2, 0.1),
        ("apgd_targeted", 0.4, 0.1),
        ("_fab", 0.9, 0.2),
        ("square", 0.6, 0.1),
    ):
        replaced(name, limit, distance)
    return calls


CONSTANT = Classifier(lambda params, x: jnp.zeros((len(x), 9), x.dtype) + jnp.arange(9.0, dtype=x.dtype)[None], ())
IMAGES = np.array([[0.1], [0.5], [0.3], [0.7], [0.15]], np.float32)


def test_fooled_images_are_not_attacked_again(calls):
    result = attack.auto_attack(CONSTANT, IMAGES, None, 0.1)
    assert [(name, shape[0]) for name, shape, _ in calls] == [
        ("apgd", 5),
        ("apgd_targeted", 3),
        ("_fab", 2),
        ("square", 2),
    ]
    assert result.success.tolist() == [True, True, True, False, True]
    assert result.gradients.tolist() == [10, 40, 20, 40, 10]
    np.testing.assert_allclose(result.distance, [0.1, 0.1, 0.1, np.inf, 0.1])
    np.testing.assert_allclose(result.images[:, 0], [0.3, 1.1, 0.7, 1.3, 0.35], rtol=1e-6)


def test_fab_succeeds_only_within_the_radius(calls):
    result = attack.auto_attack(CONSTANT, IMAGES, None, jnp.array([0.1, 0.3, 0.3, 0.3, 0.05]))
    assert result.success.tolist() == [True, True, True, True, False]
    np.testing.assert_allclose(result.distance, [0.1, 0.2, 0.1, 0.2, np.inf])


def test_the_standard_settings(calls):
    attack.auto_attack(CONSTANT, IMAGES, None, 0.1, norm=2)
    attack.auto_attack(CONSTANT, IMAGES, None, 0.1, norm=1)
    settings = {(name, i // 4): given for i, (name, _, given) in enumerate(calls)}
    square = {"queries": 5000, "schedule": 10_000}
    assert settings["apgd", 0] == {"steps": 100, "restarts": 1, "large_radius": False}
    assert settings["apgd_targeted", 0] == {"steps": 100, "classes": 9, "large_radius": False}
    assert settings["apgd", 1] == {"steps": 100, "restarts": 5, "large_radius": True}
    assert settings["apgd_targeted", 1] == {"steps": 100, "classes": 5, "large_radius": True}
    assert settings["square", 0] == settings["square", 1] == square


def test_under_jit_the_same_comes_out(calls):
    plain = attack.auto_attack(CONSTANT, IMAGES, None, 0.1)
    jitted = jax.jit(lambda images: attack.auto_attack(CONSTANT, images, None, 0.1))(IMAGES)
    for ours, theirs in zip(plain, jitted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
