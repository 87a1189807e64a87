"""Auto-PGD: the paper's algorithm, written once more in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import Classifier, attack
from mnist_jax.attack.fixed_radius.apgd import checkpoints

CENTER, RATES = np.array([0.1, 0.9, 0.45, 0.7]), np.array([1.0, 3.0, 5.0, 20.0])


def bowl(params, images):
    """A margin that falls towards the center, in each pixel at its own rate, and is never below 1."""
    margin = 1 + ((images - CENTER[None].astype(images.dtype)) ** 2 * RATES[None].astype(images.dtype)).sum(1)
    return jnp.stack([margin, 0 * margin], 1)


def algorithm_1(x, radius, p, steps):
    """The paper's algorithm for one image, without the box; gives the lowest loss and the point of it."""

    def onto(r):
        return np.clip(r, -radius, radius) if p == np.inf else r * min(1, radius / max(np.linalg.norm(r), 1e-30))

    def value(r):
        return (RATES * (x + r - CENTER) ** 2).sum()

    def direction(r):
        gradient = 2 * RATES * (x + r - CENTER)
        return np.sign(gradient) if p == np.inf else gradient / np.linalg.norm(gradient)

    r, previous, eta = np.zeros(4), np.zeros(4), 2 * radius
    passed, best = [value(r)], r
    lowest_before, halved, mark = -np.inf, False, 0
    for k in range(steps):
        if k in checkpoints(steps):
            falls = sum(b < a for a, b in zip(passed[mark:], passed[mark + 1 :], strict=False))
            halved = falls < 0.75 * (k - mark) or (not halved and value(best) == lowest_before)
            lowest_before, mark = value(best), k
            if halved:
                eta, r = eta / 2, best
        z = onto(r - eta * direction(r))
        new = z if k == 0 else onto(r + 0.75 * (z - r) + 0.25 * (r - previous))
        r, previous = new, r
        passed.append(value(r))
        best = r if passed[-1] < value(best) else best
    return best


def test_the_papers_checkpoints():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000) == [220, 410, 570, 700, 800, 870, 930, 990]
    assert checkpoints(2) == [1]
    assert checkpoints(1) == []


@pytest.mark.parametrize(("p", "steps"), [(2, 3), (2, 40), (np.inf, 1), (np.inf, 40)])
def test_follows_the_paper(p, steps):
    images = np.random.default_rng(1).uniform(0.3, 0.6, (6, 4)).astype(np.float32)
    result = attack.apgd(Classifier(bowl, ()), images, np.zeros(6, int), 0.25, norm=p, steps=steps, loss="margin")
    wanted = [algorithm_1(x, 0.25, p, steps) for x in images.astype(float)]
    np.testing.assert_allclose(result.images - images, wanted, atol=2e-4)
    assert (result.gradients == steps).all()
    assert not result.success.any()


@pytest.mark.parametrize(("p", "large"), [(1, False), (1, True), (2, False), (np.inf, False)])
def test_succeeds_beyond_the_exact_distance_and_fails_below_it(p, large):
    w, b, images, labels = random_problem(np.random.default_rng(2), classes=3)
    distance = nearest(w, b, images, labels, p)
    how = {"norm": p, "steps": 50, "restarts": 2, "large_radius": large, "key": jax.random.key(1)}
    run = partial(attack.apgd, classifier(w, b), images, labels, **how)
    found = run(radius=1.3 * distance)
    assert found.success[distance > 0.05].mean() > 0.85
    assert not run(radius=0.999 * distance).success.any()


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_targets_are_reached(loss):
    w, b, images, labels = random_problem(np.random.default_rng(4))
    targets = (labels + 2) % 5
    c = classifier(w, b)
    result = attack.apgd(c, images, labels, 0.4, steps=30, loss=loss, targets=targets)
    assert result.success.mean() > 0.9
    assert (np.asarray(c(result.images)).argmax(1) == targets)[result.success].all()


def three_ways(params, images):
    """Class 1 is the likelier other class, but out of reach; class 2 is within it."""
    u, v = images[:, 0], images[:, 1]
    return jnp.stack([0 * u, -0.1 + 0.1 * u, -1 + 10 * (v - 0.5)], 1)


def test_targeted_goes_on_to_the_next_class():
    images, labels = jnp.full((4, 2), 0.5), jnp.zeros(4, int)
    run = partial(attack.apgd_targeted, Classifier(three_ways, ()), images, labels, 0.2, steps=10)
    result = run()
    assert result.success.all()
    assert (result.gradients == 20).all()
    alone = run(classes=1)
    assert (alone.gradients == 10).all()
    reached = run(targets=jnp.array([2, 2, 1, 1]))
    assert reached.success.tolist() == [True, True, False, False]


def test_bad_arguments_are_named():
    w, b, images, labels = random_problem(np.random.default_rng(8), batch=4)
    for method, wrong, message in (
        (attack.apgd, {"norm": 3}, "norm must be 1 or 2 or inf"),
        (attack.apgd, {"steps": 0}, "steps must be at least 1"),
        (attack.apgd, {"large_radius": True}, "large_radius is for norm 1, not inf"),
        (attack.apgd_targeted, {"norm": 1, "steps": 2, "large_radius": True}, "steps must be at least 3"),
        (attack.apgd_targeted, {"classes": 0}, "classes must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            method(classifier(w, b), images, labels, 0.1, **wrong)
