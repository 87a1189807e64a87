"""Steps to linearized boundaries: of linear classifiers, where they are exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, nearest, random_problem

from mnist_jax import geometry
from mnist_jax.attack.engine import boundary
from mnist_jax.attack.engine.problem import Problem


def some_problem(seed=0, **options):
    w, b, images, labels = random_problem(np.random.default_rng(seed), **({"batch": 16} | options))
    return w, b, Problem(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), None)


def exact(w, b, given, p):
    """The distances `[B]`, and which of them are clearly more than a success has to exceed the boundary by."""
    distance = nearest(w, b, np.asarray(given.images, float), np.asarray(given.labels), p)
    return distance, np.isfinite(distance) & (distance > 0.1 * np.median(distance))


@jax.jit
def margins(classifier, given):
    return boundary.margins(classifier, given, 3)


def test_margins_to_the_likeliest_classes():
    w, b, given = some_problem()
    labels, rows = np.asarray(given.labels), np.arange(16)
    logits, classes, values, slopes = margins(classifier(w, b), given)
    others = np.array(logits)
    others[rows, labels] = -np.inf
    np.testing.assert_array_equal(classes, others.argsort(1)[:, :-4:-1].T)
    np.testing.assert_allclose(values, logits[rows, labels][None] - others[rows[None], classes], atol=1e-5)
    for k in range(3):
        wanted = (w[:, labels] - w[:, classes[k]]).T
        np.testing.assert_allclose(slopes[k].reshape(16, -1), wanted, rtol=1e-5, atol=1e-5)


def test_margins_of_targets_are_theirs_alone():
    w, b, given = some_problem()
    targets = (given.labels + 1) % 5
    logits, classes, values, slopes = margins(classifier(w, b), given._replace(targets=targets))
    likeliest = np.asarray(logits).argmax(1)
    np.testing.assert_array_equal(classes, targets[None])
    rows = np.arange(16)
    np.testing.assert_allclose(values, (logits[rows, likeliest] - logits[rows, targets])[None], atol=1e-5)
    np.testing.assert_allclose(slopes[0].reshape(16, -1), (w[:, likeliest] - w[:, targets]).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_a_step_is_to_the_nearest_point_of_the_boundary_wherever_it_is_made(p):
    w, b, given = some_problem(1, classes=2)
    distance, clear = exact(w, b, given, p)
    run = jax.jit(partial(boundary.step, classifier(w, b), given, norm=p))
    somewhere = jnp.asarray(np.random.default_rng(2).uniform(size=given.images.shape), jnp.float32) - given.images
    for r in (jnp.zeros_like(given.images), somewhere):
        logits, step = run(r)
        np.testing.assert_allclose(logits, classifier(w, b)(given.images + r), atol=1e-4)
        np.testing.assert_allclose(geometry.norm(step, p)[clear], distance[clear], rtol=2e-3)


def test_the_line_is_cut_where_it_crosses_the_boundary():
    w, b, given = some_problem(3, classes=2)
    c, (distance, clear) = classifier(w, b), exact(w, b, given, 2)
    step = jax.jit(partial(boundary.step, c, given, norm=2))(jnp.zeros_like(given.images))[1]
    one, nothing = jnp.ones(16), jnp.zeros(16)
    line = jax.jit(partial(boundary.line, c, given, evaluations=10))
    share = line(step, nothing, 2 * one)
    cut = given.per_image(share) * step
    assert given.adversarial(c(given.images + cut))[clear].all()
    lengths = np.asarray(geometry.norm(cut, 2))
    assert (lengths[clear] >= distance[clear] * (1 - 1e-4)).all()
    assert (lengths[clear] <= distance[clear] * 1.004).all()
    np.testing.assert_array_equal(line(0 * step, nothing, 3 * one), 3)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_approach_finds_the_nearest_of_the_boundaries(p):
    w, b, given = some_problem(4)
    c, (distance, clear) = classifier(w, b), exact(w, b, given, p)
    logits, classes, tries, gradients, forwards = jax.jit(partial(boundary.approach, c, given, norm=p))()
    nearest = jax.vmap(partial(geometry.norm, p=p))(tries).argmin(0)
    r = boundary.pick(tries, nearest[None])[0]
    np.testing.assert_allclose(logits, c(given.images), atol=1e-5)
    assert given.adversarial(c(jnp.clip(given.images + r, 0, 1)))[clear].all()
    lengths = np.asarray(geometry.norm(r, p))
    assert (lengths[clear] >= distance[clear] * (1 - 1e-4)).all()
    assert (lengths[clear] <= distance[clear] * 1.03).all()  # by the last of the evaluations along the line
    assert (np.sort(classes[:-1], 0) == np.sort([np.delete(np.arange(5), label) for label in given.labels], 1).T).all()
    assert len(classes) == len(tries) == 5
    assert gradients == 4 + boundary.STEPS * 5
    assert forwards == boundary.LINE * 5


def test_the_last_to_approach_is_the_nearest_by_the_1_norm():
    w, b, given = some_problem(4, free=True)
    c, (distance, clear) = classifier(w, b), exact(w, b, given, 1)
    tries = jax.jit(partial(boundary.approach, c, given, norm=np.inf))()[2]
    lengths = np.asarray(geometry.norm(tries[-1], 1))
    assert (lengths[clear] >= distance[clear] * (1 - 1e-4)).all()
    assert (lengths[clear] <= distance[clear] * 1.03).all()


def to_the_boundary(seed=1):
    """A problem of two classes whose boundary can be reached, and the nearest points of it."""
    w, b, given = some_problem(seed, classes=2, free=True)
    c = classifier(w, b)
    return c, given, boundary.step(c, given, jnp.zeros_like(given.images), 2)[1]


@pytest.mark.parametrize("part", [0.9, 0.995, 1.05])
def test_a_crossing_is_found_from_either_side(part):
    c, given, step = to_the_boundary()
    share, found = boundary.crossing(c, given, part * step, 6)
    assert found.all()
    np.testing.assert_allclose(part * share, 1, atol=1e-4)
    assert given.adversarial(c(given.images + given.per_image(share) * part * step)).all()


def test_a_crossing_far_away_is_not_found():
    c, given, step = to_the_boundary()
    assert not boundary.crossing(c, given, 0.5 * step, 6)[1].any()
    nearer = boundary.crossing(c, given, 2 * step, 6)  # it is crossed long before
    assert nearer[1].all()
    np.testing.assert_allclose(nearer[0], boundary.NEAR, rtol=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, np.inf])
def test_a_run_ends_at_the_nearest_point_wherever_it_begins(p):
    w, b, given = some_problem(2, classes=2)
    distance, clear = exact(w, b, given, p)
    start = 0.3 * jax.random.normal(jax.random.key(0), given.images.shape)
    start = jnp.clip(given.images + start, 0, 1) - given.images
    best, _ = jax.jit(boundary.descend, static_argnums=3)(classifier(w, b), given, start, p)
    assert clear.sum() > 8
    np.testing.assert_allclose(best.value[clear], distance[clear], rtol=3e-3)
    assert (best.value[clear] >= distance[clear] * (1 - 1e-5)).all()
    assert given.adversarial(classifier(w, b)(given.images + best.r))[clear].all()


def test_a_run_is_kept_on_its_way_to_a_class():
    w, b, given = some_problem(3, free=True)
    c, start = classifier(w, b), jnp.zeros_like(given.images)
    run = jax.jit(lambda others: boundary.descend(c, given, start, 2, others)[1])
    for shift in (1, 2):
        others = (given.labels + shift) % 5
        logits = np.asarray(c(given.images))
        own, its = (np.take_along_axis(logits, np.asarray(a)[:, None], 1)[:, 0] for a in (given.labels, others))
        # The distance to the plane on which two logits are the same.
        exact = (own - its) / np.linalg.norm(w[:, given.labels] - w[:, others], axis=0)
        there = (exact > 0.01) & (exact < 0.5)  # where the box does not bind
        assert there.sum() > 3
        end = run(others)
        inside = there & np.asarray(
            ((given.images + end > 0.01) & (given.images + end < 0.99)).reshape(len(there), -1).all(1)
        )
        assert inside.sum() > 3
        np.testing.assert_allclose(np.asarray(geometry.norm(end, 2))[inside], exact[inside], rtol=1e-2)
    free = run(jnp.full_like(given.labels, -1))
    np.testing.assert_allclose(free, jax.jit(boundary.descend, static_argnums=3)(c, given, start, 2)[1], atol=1e-4)


@pytest.mark.parametrize("p", [2, np.inf])
def test_the_path_ends_beyond_the_boundary_of_two_classes(p):
    w, b, given = some_problem(1, classes=2, free=True)
    c, (distance, clear) = classifier(w, b), exact(w, b, given, p)
    r = jax.jit(partial(boundary.path, c, given, norm=p))(jnp.asarray(distance, jnp.float32))
    assert given.adversarial(c(given.images + r))[clear].all()
    assert (geometry.norm(r, p) <= boundary.PAST * distance * (1 + 1e-4)).all()
