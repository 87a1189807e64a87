"""Chunks: the same as everything at once, in order, whatever thread works on them and whatever the caller has set."""

import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import classifier, random_problem

from mnist_jax import attack, chunks, unstable
from mnist_jax.chunks import chunk_size, fill, in_chunks

IMAGES = np.random.default_rng(0).uniform(size=(75, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(chunks.device, "cores", lambda: 2)


@jax.jit
def program(factor, images, rest):
    labels, _ = rest
    return {"scaled": factor * images, "labels": labels + 1}


@pytest.mark.parametrize("size", [None, 8, 75, 128])
def test_the_same_as_all_at_once_in_order(size):
    labels = np.arange(75)
    got = in_chunks(program, (IMAGES, (labels, None)), 2.0, size=size)
    np.testing.assert_array_equal(got["scaled"], 2 * IMAGES, strict=True)
    np.testing.assert_array_equal(got["labels"], labels + 1)


def test_all_chunks_have_one_shape():
    shapes = []

    def watched(images):
        shapes.append(images.shape)
        return images

    in_chunks(watched, (IMAGES,))
    assert shapes == [(32, 4)] * 3
    np.testing.assert_array_equal(fill(IMAGES[:3], 5), IMAGES[[0, 1, 2, 2, 2]])


def test_the_size_is_a_power_of_two_and_limited():
    assert [chunk_size(count) for count in (1, 2, 3, 5, 16, 17, 32, 33, 10_000)] == [1, 2, 4, 8, 16, 32, 32, 32, 32]


def test_on_a_device_everything_stays_there(monkeypatch):
    """The CPU stands for one: what a program gets and gives is never NumPy's."""
    w, b, images, labels = random_problem(np.random.default_rng(0), batch=75)
    run = partial(attack.nearest, classifier(w, b), images, labels, effort=100)
    on_host = run()
    monkeypatch.setattr(chunks, "_on_host", lambda: False)
    state = chunks.until_done(halve, (images,), State(images, np.arange(75)), at_once=1, most=9)
    assert isinstance(state.x, jax.Array)
    np.testing.assert_allclose(state.x, images / 2.0 ** (np.arange(75) % 7)[:, None, None, None], rtol=1e-6)
    on_device = run()
    np.testing.assert_array_equal(on_device.success, on_host.success)
    np.testing.assert_allclose(on_device.distance, on_host.distance, rtol=1e-5)


class State(NamedTuple):
    x: jax.Array
    left: jax.Array

    @property
    def done(self):
        return self.left % 7 == 0


def halve(arrays, state, rounds):
    assert rounds == 1
    assert all(isinstance(array, jax.Array) for array in (*arrays, *state))
    left = state.left % 7
    x = state.x / jnp.where(left > 0, 2, 1)[:, None, None, None]
    return State(x, jnp.maximum(left - 1, 0))


def test_the_caller_sets_the_size_of_a_chunk():
    shapes = []

    def watched(images):
        shapes.append(len(images))
        assert chunk_size(100) == 10  # in other threads, too
        return images

    with attack.at_once(10):
        np.testing.assert_array_equal(in_chunks(watched, (IMAGES,)), IMAGES)
        assert chunk_size(3) == 4
    assert shapes == [10] * 8
    assert chunk_size(100) == 32
    for wrong in (0, -1, 2.5, True, None, "many"):
        with pytest.raises(ValueError, match="images must be a whole number of at least 1"), attack.at_once(wrong):
            pass


def test_two_chunks_run_at_the_same_time():
    both = threading.Barrier(2)

    def waiting(numbers):
        if numbers[0] > 0:  # the first chunk is alone
            both.wait(timeout=60)
        return numbers

    np.testing.assert_array_equal(in_chunks(waiting, (np.arange(12),), size=4), np.arange(12))


def test_what_the_caller_has_set_holds_in_every_chunk():
    seen = []

    def watched(images):
        seen.append({name: unstable.setting(name) for name in chunks.SETTINGS})
        return jnp.asarray(images) * 1.0

    wanted = {
        "jax_enable_x64": not unstable.setting("jax_enable_x64"),
        "jax_default_matmul_precision": "float32",
        "jax_numpy_rank_promotion": "warn",
        "jax_debug_nans": True,
    }
    with ExitStack() as stack:
        for name, value in wanted.items():
            stack.enter_context(chunks.SETTINGS[name](value))
        got = in_chunks(watched, (IMAGES.astype(float),), size=16)
    assert got.dtype == np.float64
    assert len(seen) == 5
    assert all(settings.items() >= wanted.items() for settings in seen)


def test_keys_are_cut_like_other_arrays():
    keys = jax.random.split(jax.random.key(0), 13)
    draw = jax.jit(jax.vmap(jax.random.normal))
    np.testing.assert_array_equal(in_chunks(draw, (keys,), size=4), draw(keys))


def test_no_images_give_empty_results():
    got = in_chunks(program, (IMAGES[:0], (np.arange(0), None)), 2.0)
    assert (got["scaled"].shape, got["scaled"].dtype, got["labels"].shape) == ((0, 4), np.float32, (0,))


def test_under_a_transformation_all_is_done_at_once():
    shapes = []

    @jax.jit
    def inside(images):
        return in_chunks(lambda images: shapes.append(images.shape) or 2 * images, (images,), size=8)

    np.testing.assert_array_equal(inside(IMAGES), 2 * IMAGES)
    assert shapes == [(75, 4)]


def test_an_error_in_a_thread_reaches_the_caller():
    def failing(numbers):
        if numbers[0] == 8:
            raise ZeroDivisionError
        return numbers

    with pytest.raises(ZeroDivisionError):
        in_chunks(failing, (np.arange(12),), size=4)


ON_EIGHT_DEVICES = """
import jax, numpy as np
from mnist_jax import attack, data, load_classifier
assert len(jax.local_devices()) == 8
split = data.load().val
images, labels = np.asarray(data.normalize(split.images[:21])), split.labels[:21]
runs = (lambda c: attack.nearest(c, images, labels, effort=60), lambda c: attack.apgd(c, images, labels, 0.1, steps=10))
together = [run(load_classifier("MLP-original")) for run in runs]
with jax.default_device(jax.local_devices()[0]):
    alone = [run(load_classifier("MLP-original")) for run in runs]
for a, b in zip(together, alone):
    np.testing.assert_array_equal(a.success, b.success)
    assert a.success.any()
    np.testing.assert_allclose(a.distance, b.distance, rtol=1e-4)
"""


def test_eight_devices_share_the_images():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", ON_EIGHT_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
