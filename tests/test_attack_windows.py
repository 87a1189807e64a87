"""The random search by windows: nearer than where it starts, by logits alone, each image for itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import apply, classifier, nearest, random_problem

from mnist_jax import Classifier, attack, geometry
from mnist_jax.attack.engine import windows
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.problem import Problem


def begun(p, batch=16):
    """A linear classifier, a problem, adversarial corners of the box as the best, and the exact distances."""
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=batch, classes=2)
    given = Problem(jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), None)
    away = (w[:, 1 - labels] - w[:, labels]).T.reshape(images.shape)
    corner = jnp.where(jnp.asarray(away) > 0, 1.0, 0.0) - given.images
    best = Best.none(given.images).keep(given, corner, geometry.norm(corner, p))
    return classifier(w, b), given, best, nearest(w, b, images, labels, p)


@partial(jax.jit, static_argnames="p")
def search(c, given, best, walk, queries, p):
    keys = jax.vmap(lambda i: jax.random.key(0))(jnp.arange(len(queries)))
    return windows.search(c, given, keys, best, walk, queries, p)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_it_comes_nearer_and_what_it_finds_is_adversarial(p):
    c, given, best, exact = begun(p)
    walk = windows.Walk.none(given.images)
    queries = jnp.full(16, 300).at[3].set(0)
    found, walk = search(c, given, best, walk, queries, p)
    assert (found.value <= best.value).all()
    assert found.value[3] == best.value[3]
    adversarial = np.asarray(given.adversarial(c(given.at(found.r))))
    assert adversarial.all()
    np.testing.assert_allclose(geometry.norm(found.r, p), found.value, rtol=1e-5)
    assert np.abs(np.asarray(given.inside(found.r) - found.r)).max() <= 1e-6
    clear = np.isfinite(exact) & (exact > 0.05) & (np.arange(16) != 3)
    assert clear.sum() > 8
    assert (np.asarray(found.value)[clear] >= exact[clear] * (1 - 1e-4)).all()
    gain = np.log(np.asarray(best.value) / np.asarray(found.value))[clear]
    assert np.median(gain) > 0.3 * np.median(np.log(np.asarray(best.value)[clear] / exact[clear]))
    # A second part goes on; and an image alone gets the same.
    further, _ = search(c, given, found, walk, queries, p)
    assert (further.value <= found.value).all()
    assert (further.value < found.value).any()
    alone = search(c, *jax.tree.map(lambda a: a[5:6], (given, best, windows.Walk.none(given.images), queries)), p=p)[0]
    np.testing.assert_allclose(alone.value, found.value[5:6], rtol=1e-4)


def test_from_stripes_it_comes_nearer_or_gives_up():
    c, given, far, exact = begun(np.inf)
    # For half of the images the best is so near that nothing at its distance comes close to being adversarial.
    near = np.arange(16) < 8
    best = far._replace(value=jnp.where(near, jnp.asarray(0.3 * exact, jnp.float32), far.value))
    walk = windows.Walk.none(given.images).again(jnp.ones(16, bool))
    assert walk.striped.all()
    found, asked = best, []
    for part in range(2):
        found, walk = search(c, given, found, walk, jnp.full(16, windows.MOST), np.inf)
        asked.append(np.asarray(walk.asked))
        assert (np.asarray(found.value) >= exact * (1 - 1e-4))[~near].all(), part
    assert np.asarray(given.adversarial(c(given.at(found.r)))).all()
    np.testing.assert_allclose(geometry.norm(found.r, np.inf)[~near], found.value[~near], rtol=1e-5)
    clear = np.isfinite(exact) & (exact > 0.05)
    assert (clear & near).sum() > 4
    assert (np.asarray(found.value) == best.value)[clear & near].all()
    assert not np.asarray(walk.striped)[clear & near].any()  # given up
    assert not np.asarray(walk.again(jnp.ones(16, bool)).striped)[clear & near].any()  # for good
    assert (clear & ~near).sum() >= 4
    assert (np.asarray(found.value) < 0.8 * best.value)[clear & ~near].mean() > 0.7
    assert np.isin(asked[-1][np.asarray(walk.striped)], [2 * windows.MOST]).all()


def misleading(params, images):
    """The logits of one linear function with the gradients of another."""
    shown, followed = apply(params["shown"], images), apply(params["followed"], images)
    return jax.lax.stop_gradient(shown - followed) + followed


@pytest.mark.parametrize("p", [2, np.inf])
def test_nearest_searches_at_random_where_gradients_mislead(p):
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=32)
    noise = np.random.default_rng(1).normal(size=w.shape)
    shown = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    c = Classifier(misleading, {"shown": shown, "followed": shown | {"w": jnp.asarray(w + 2 * noise, jnp.float32)}})
    exact = nearest(w, b, images, labels, p)
    # Less effort makes the same gradient runs, and no random search.
    fast, standard = (attack.nearest(c, images, labels, norm=p, effort=effort) for effort in (100, 350))
    assert (standard.distance <= fast.distance * (1 + 1e-5)).all()
    clear = np.isfinite(exact) & (exact > 0.02) & np.isfinite(np.asarray(fast.distance))
    assert clear.sum() > 16
    assert (standard.forwards[clear] > 300).mean() > 0.5
    before, after = (np.median(np.asarray(result.distance)[clear] / exact[clear]) for result in (fast, standard))
    assert after - 1 < 0.5 * (before - 1), (before, after)
    striped = standard.forwards > windows.LENGTH
    if p == np.inf:
        assert striped.mean() > 0.5
        assert after < 1.02
    # The documented budget: a gradient takes as long as three evaluations, and a search from stripes begins with 120.
    runs = 6 * 15 + 7 * 5  # evaluations along lines, which the budget does not count
    besides = np.where(striped, windows.LENGTH - 120, 0)
    assert (standard.gradients + (standard.forwards - runs - besides) / 3 <= 350 + 1).all()
