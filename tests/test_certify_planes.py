"""Planes above ramps against the ramps themselves, against plain arithmetic, and against chords."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from test_certify import SHAPE, relu_network, weights

from mnist_jax import Classifier
from mnist_jax.certify import driver, linear
from mnist_jax.certify.planes import Planes, Ramps, summed
from mnist_jax.certify.relaxations import Interval
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import program


def ramps_and_planes(rng, ramps, pixels, lanes):
    weights, width = rng.normal(size=(ramps, pixels)), rng.uniform(size=(pixels, lanes))
    reach = np.abs(weights) @ width
    middle = reach * rng.uniform(-1, 1, reach.shape)
    level, tilt = rng.uniform(-1, 2, reach.shape), rng.normal(size=width.shape)
    given = (jnp.asarray(part, jnp.float32) for part in (weights, width, middle - reach, middle + reach, level, tilt))
    weights, width, low, high, level, tilt = given
    return Ramps.of(weights, width, Interval(low, high)), Planes(level, tilt), middle


def test_no_ramp_is_above_its_plane_at_a_corner_of_the_box():
    """Both are convex or linear, so that the corners suffice; and somewhere it is lower than the chord."""
    ramps, planes, middle = ramps_and_planes(np.random.default_rng(0), 5, 6, 3)
    better = 0
    for lane, ramp in itertools.product(range(3), range(5)):
        (shares := np.zeros((5, 3), np.float32))[ramp, lane] = 1
        coefficients, sums = (np.asarray(part, float) for part in summed(ramps, planes, jnp.asarray(shares)))
        reach, d0, s = float(ramps.reach[ramp, lane]), middle[ramp, lane], sums[ramp, lane]
        corners = np.array(list(itertools.product([-1, 1], repeat=6))) * np.asarray(ramps.width)[:, lane]
        plane = corners @ coefficients[:, lane] + max(s, d0 + reach - s)
        d = d0 + corners @ np.asarray(ramps.weights, float)[ramp]
        chord = (d0 + reach) / (2 * reach) * (d - d0 + reach)
        assert (plane >= np.maximum(d, 0) - 1e-5).all()
        better += bool((plane < chord - 1e-3).any())
    assert better > 10


def test_sums_and_their_derivatives_are_those_of_plain_arithmetic():
    rng = np.random.default_rng(1)
    ramps, planes, _ = ramps_and_planes(rng, 5, 6, 3)
    ramps = ramps._replace(order=jnp.array([3, 1, 4, 0, 2]), used=jnp.int32(3))
    used = jnp.array([0, 1, 0, 1, 1], jnp.float32)[:, None]
    shares, across, over = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((5, 3), (6, 3), (5, 3)))

    def plain(ramps, planes, shares):
        sign = jnp.sign(ramps.weights)[:, :, None]
        slopes = used[:, None] * jnp.clip(planes.level[:, None] + sign * planes.tilt[None], 0, 1)
        weighted = ramps.weights[:, :, None] * slopes
        return (weighted * shares[:, None]).sum(0), (jnp.abs(weighted) * ramps.width[None]).sum(1)

    def total(of, planes, shares):
        coefficients, sums = of(ramps, planes, shares)
        return (coefficients * across).sum() + (sums * over).sum()

    ours, theirs = (jax.value_and_grad(total, (1, 2))(of, planes, shares) for of in (summed, plain))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_any_planes_give_a_bound_of_the_network():
    rng = np.random.default_rng(2)
    params = weights(rng, 5, 4, 3)
    classifier = Classifier(relu_network, params)
    image, radius = jnp.asarray(rng.uniform(size=(1, *SHAPE)), jnp.float32), jnp.full(1, 0.3)
    computation = program.read(classifier, SHAPE, jnp.float32, driver.OTHERS)
    corners = jnp.clip(image + 0.3 * rng.choice([-1, 1], (4000, *SHAPE)).astype(np.float32), 0, 1)
    logits = classifier(corners)

    @jax.jit
    def bounded(level, tilt):
        walk = linear.walk(classifier, image, radius, INF, computation)
        walk.forwards(lambda walk, place, factors, interval, wanted: interval)
        place, ramps = walk.first_ramps()
        function = jnp.array([1.0, -1.0, 0.0])[None, :, None]
        center, off = walk.combined({computation.logits: 1.0})
        constant = (function * center - jnp.abs(function) * off).sum((0, 1))
        end, given = len(computation.equations), {computation.logits: function}
        planes = {place: (ramps, Planes(level[:, None], tilt[:, None]))}
        return walk.back(end, given, constant, above=planes.get)[0][0], walk.back(end, given, constant)[0][0]

    least, better = float((logits[:, 0] - logits[:, 1]).min()), 0
    for _ in range(60):
        level, tilt = rng.uniform(-0.5, 1.5, 5), rng.normal(size=np.prod(SHAPE))
        by_planes, by_chords = map(float, bounded(*(jnp.asarray(x, jnp.float32) for x in (level, tilt))))
        assert by_planes <= least + 1e-5
        better += by_planes > by_chords
    assert better > 0
