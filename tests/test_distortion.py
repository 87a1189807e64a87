"""Distortions, measured on images whose resampling is known exactly.

Linear interpolation is exact on an image that is linear in the coordinates: there it shows where every pixel came from.
"""

import math
from functools import partial

import jax
import numpy as np
import pytest

from mnist_jax.distortion import REACH, Distortion, _resample

SIZE = 31
MIDDLE = slice(9, 22)  # no displacement that is tried here reaches the edge from within
EVERYTHING = Distortion(rotation=30, scaling=0.3, shear=0.3, translation=5, elastic=2)


@partial(jax.jit, static_argnums=0)
def run(distortion, key, images):
    return distortion(key, images)


def distort(distortion, images, seed=0):
    return np.asarray(run(distortion, jax.random.key(seed), images))


def sources(distortion, count, seed=0):
    """Where the pixels in the middle came from, `[count, 13, 13, 2]`: row and column, from the centre."""
    coordinates = np.mgrid[:SIZE, :SIZE].transpose(1, 2, 0).astype(np.float32)
    images = np.broadcast_to(coordinates, (count, SIZE, SIZE, 2))
    return distort(distortion, images, seed)[:, MIDDLE, MIDDLE] - (SIZE - 1) / 2


def linear_maps(distortion, count):
    """The matrices `[count, 2, 2]` that `sources` amount to, by (row, column), and the shifts `[count, 2]`."""
    places = np.mgrid[MIDDLE, MIDDLE].reshape(2, -1).T - (SIZE - 1) / 2
    design = np.column_stack([places, np.ones(len(places))])
    got = sources(distortion, count).reshape(count, -1, 2)
    solutions = np.stack([np.linalg.lstsq(design, one, rcond=None)[0].T for one in got])
    np.testing.assert_allclose(got, (solutions @ design.T).transpose(0, 2, 1), atol=1e-3)  # they are linear
    return solutions[:, :, :2], solutions[:, :, 2]


def assert_uniform(draws, bound):
    """The numbers look drawn from U(-bound, bound)."""
    assert np.abs(draws).max() <= bound * 1.001
    assert np.abs(draws).max() > 0.9 * bound
    assert abs(draws.mean()) < 4 * bound / math.sqrt(3 * len(draws))
    assert abs((draws**2).mean() * 3 / bound**2 - 1) < 4 * math.sqrt(0.8 / len(draws))


def assert_unrelated(*draws):
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(len(draws[0]))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


# Resampling


@pytest.mark.parametrize("axis", [0, 1])
def test_whole_displacements_are_shifts(axis):
    x = noise(6, 9, 2, 3)
    resample = jax.jit(_resample, static_argnames="axis")
    for shift in (*range(-REACH, REACH + 1), -9, 100):
        got = resample(x, np.full((6, 9, 1, 3), shift, np.float32), axis=axis)
        clipped = max(-REACH, min(REACH, shift))
        size = x.shape[axis]
        expected = np.zeros_like(x)
        for i in range(max(0, -clipped), min(size, size - clipped)):
            place, source = [slice(None)] * 4, [slice(None)] * 4
            place[axis], source[axis] = i, i + clipped
            expected[tuple(place)] = x[tuple(source)]
        np.testing.assert_array_equal(got, expected)


def test_half_a_pixel_is_the_mean_of_two():
    x = np.random.default_rng(0).integers(0, 100, (5, 4, 1, 1)).astype(np.float32)
    got = np.asarray(_resample(x, np.full((5, 4, 1, 1), 0.5, np.float32), axis=0))
    np.testing.assert_array_equal(got[:-1], (x[:-1] + x[1:]) / 2)
    np.testing.assert_array_equal(got[-1], x[-1] / 2)


def test_every_pixel_of_every_image_has_its_own_displacement():
    x, displacement = noise(4, 11, 2, 3), 14 * noise(4, 11, 1, 3, seed=1) - 7
    got = jax.jit(partial(_resample, axis=1))(x, displacement)
    columns = np.arange(-8.0, 19)
    padded = np.pad(x, [(0, 0), (8, 8), (0, 0), (0, 0)])
    for row, channel, image in np.ndindex(4, 2, 3):
        wanted = np.arange(11) + displacement[row, :, 0, image]
        expected = np.interp(wanted, columns, padded[row, :, channel, image])
        np.testing.assert_allclose(got[row, :, channel, image], expected, atol=1e-5)


# Each distortion


def test_no_distortion_is_the_identity():
    images = noise(3, 28, 28, 1)
    np.testing.assert_array_equal(distort(Distortion(), images), images, strict=True)


def test_translation():
    maps, shifts = linear_maps(Distortion(translation=2.5), 400)
    np.testing.assert_allclose(maps, np.broadcast_to(np.eye(2), maps.shape), atol=1e-4)
    for direction in shifts.T:
        assert_uniform(direction, 2.5)
    assert_unrelated(*shifts.T)


def test_scaling():
    maps, shifts = linear_maps(Distortion(scaling=0.2), 400)
    np.testing.assert_allclose(maps[:, [0, 1], [1, 0]], 0, atol=1e-4)
    np.testing.assert_allclose(shifts, 0, atol=1e-4)
    tall, wide = maps[:, 0, 0] - 1, maps[:, 1, 1] - 1
    assert_uniform(tall, 0.2)
    assert_uniform(wide, 0.2)
    assert_unrelated(tall, wide)


def test_shear():
    maps, shifts = linear_maps(Distortion(shear=0.3), 400)
    np.testing.assert_allclose(maps[:, [0, 0, 1], [0, 1, 1]], np.broadcast_to([1, 0, 1], (400, 3)), atol=1e-4)
    np.testing.assert_allclose(shifts, 0, atol=1e-4)
    assert_uniform(maps[:, 1, 0], 0.3)


def test_rotation():
    maps, shifts = linear_maps(Distortion(rotation=15), 400)
    np.testing.assert_allclose(shifts, 0, atol=1e-4)
    np.testing.assert_allclose(maps @ maps.transpose(0, 2, 1), np.broadcast_to(np.eye(2), maps.shape), atol=2e-3)
    assert (np.linalg.det(maps) > 0).all()
    assert_uniform(np.degrees(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])), 15)


def test_all_of_the_affine_draws_are_apart():
    maps, shifts = linear_maps(Distortion(scaling=0.1, shear=0.1, translation=1), 400)
    assert_unrelated(maps[:, 0, 0], maps[:, 1, 1], maps[:, 1, 0], *shifts.T)


def test_elastic_displacements():
    distortion, count = Distortion(elastic=0.8, smoothness=3), 400
    places = np.mgrid[MIDDLE, MIDDLE].transpose(1, 2, 0) - (SIZE - 1) / 2
    moves = sources(distortion, count) - places
    assert np.abs(moves.mean(0)).max() < 5 * 0.8 / math.sqrt(count)
    # The standard deviation is the same at every pixel, and that of an estimate from n draws is 1 / sqrt(2 n).
    np.testing.assert_allclose(moves.std(0), 0.8, rtol=5 / math.sqrt(2 * count))
    # White noise under a Gaussian of deviation s correlates as exp(-d^2 / 4 s^2).
    for distance in (1, 3, 6):
        along = np.mean(moves[:, :, distance:, 0] * moves[:, :, :-distance, 0]) / 0.8**2
        assert along == pytest.approx(math.exp(-(distance**2) / 36), abs=0.06)
    assert_unrelated(moves[:, 6, 6, 0], moves[:, 6, 6, 1])


def test_elastic_displacements_are_as_large_at_the_edges():
    field = Distortion(elastic=1.5)._elastic_field(jax.random.key(0), 500, 28, 20)
    assert field.shape == (2, 28, 20, 500)
    np.testing.assert_allclose(np.asarray(field).std(-1), 1.5, rtol=5 / math.sqrt(1000))


# All of them together


def test_strength_multiplies_displacements():
    coordinates = np.mgrid[:SIZE, :SIZE].transpose(1, 2, 0).astype(np.float32)
    images = np.broadcast_to(coordinates, (4, SIZE, SIZE, 2))
    shift = jax.jit(Distortion(translation=4))
    whole, quarter, none = (
        np.asarray(shift(jax.random.key(0), images, strength) - images)[:, MIDDLE, MIDDLE]
        for strength in (1.0, 0.25, 0.0)
    )
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(quarter, whole / 4, atol=1e-4)
    np.testing.assert_array_equal(none, 0)


def test_values_stay_in_their_range():
    got = distort(EVERYTHING, (noise(8, 28, 28, 1) > 0.5).astype(np.float32))
    assert got.min() == 0
    assert 0.9 < got.max() <= 1
    black = np.zeros((8, 28, 28, 1), np.float32)
    np.testing.assert_array_equal(distort(EVERYTHING, black), black, strict=True)


def test_what_comes_in_is_black_and_the_middle_of_a_white_image_stays_white():
    got = distort(EVERYTHING, np.ones((8, 28, 28, 1), np.float32))
    np.testing.assert_array_equal(got[:, 13:15, 13:15], 1)
    assert (got.min(axis=(1, 2, 3)) == 0).all()


def test_every_image_has_its_own_draw():
    got = distort(EVERYTHING, np.broadcast_to(noise(1, 28, 28, 1), (8, 28, 28, 1)))
    assert len(np.unique(got.reshape(8, -1), axis=0)) == 8


def test_an_image_does_not_depend_on_the_others():
    images = noise(8, 28, 28, 1)
    others = noise(8, 28, 28, 1, seed=1)
    others[3] = images[3]
    np.testing.assert_array_equal(distort(EVERYTHING, images)[3], distort(EVERYTHING, others)[3])


def test_draws_are_those_of_the_key():
    images = noise(8, 28, 28, 1)
    first = distort(EVERYTHING, images)
    np.testing.assert_array_equal(distort(EVERYTHING, images), first)
    other = distort(EVERYTHING, images, seed=1)
    assert (np.abs(other - first).max(axis=(1, 2, 3)) > 0.1).all()


def test_channels_move_together_in_images_of_any_shape():
    images = np.repeat(noise(2, 12, 20, 1), 3, axis=-1)
    got = distort(EVERYTHING, images)
    assert (got.shape, got.dtype) == (images.shape, np.float32)
    assert (got != images).any()
    np.testing.assert_array_equal(got[..., 1:], got[..., :1].repeat(2, axis=-1))


def test_images_keep_their_type_in_double_precision():
    with jax.enable_x64(True):
        images = np.ones((2, SIZE, SIZE, 1), np.float32)
        assert EVERYTHING(jax.random.key(0), images, 0.5).dtype == np.float32
