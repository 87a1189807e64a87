"""A random search for nearer adversarial images, which changes square windows of the perturbation.

It asks for logits only, so that it also works where gradients mislead (masked gradients).
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax import geometry
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.problem import CAREFUL, Problem

MOST = 240  # queries in a part of the search at most; trials of 60 to 240 on a network with masked gradients
NUMBERS = 5  # random integers for a query
SIDES = (1, 2, 3, 4, 5)  # of windows, in pixels, one drawn for each query; 1 to 3 and 1 to 7 came within 0.5 % of it
BEGIN = 0.002  # the first relative reduction of the distance; 0.005 was no better on a network with masked gradients
LARGEST, LEAST = 0.02, 1e-4  # limits of the relative reduction; chosen, not tuned, as the next two lines
SUCCEEDED, FAILED = 2.0, 0.7  # factors of the reduction after a success, and after PATIENCE failures in a row
PATIENCE = 10  # queries
AMOUNT = 0.3  # p-norm of the largest change for p < inf, in radii; the smallest is a tenth of it


class Walk(NamedTuple):
    """The state of the random search of every image, `[B, ...]`, between two parts of it."""

    r: jax.Array  # perturbations of lower norm than the best, not yet adversarial
    distance: jax.Array  # of the best when the part ended
    reduction: jax.Array  # relative, of the distance

    @classmethod
    def none(cls, images: jax.Array) -> "Walk":
        """Before the first part."""
        nothing = jnp.zeros(len(images), images.dtype)
        return cls(jnp.zeros_like(images), nothing, nothing + BEGIN)


def search(classifier, given: Problem, keys, best: Best, walk: Walk, queries, norm: float) -> tuple[Best, Walk]:
    """The best and the walk after another part of the search, of `queries [B]` evaluations, at most `MOST`, with
    `keys [B]`.

    A query evaluates a perturbation whose norm is that of the best, less a relative reduction: the last perturbation
    with one window changed at random (as in Andriushchenko et al. 2020), kept where the objective falls. Where it is
    adversarial it is the best, and the next perturbation has to be shorter again. It starts at the best, or goes on
    where it was if nothing else has improved the best since.
    """
    plane = plane_of(given.images.shape[1:])
    # All at once: in the loop they would take longer to compile, and to draw, than the evaluations.
    bits = jax.vmap(lambda key: jax.random.bits(key, (MOST, NUMBERS)))(keys)

    def ask(i, state):
        r, value, best, reduction, fresh, failures = state
        active = i < queries
        radius = best.value * (1 - reduction)
        changed = jax.vmap(partial(_changed, norm=norm))(bits[:, i], r.reshape(-1, *plane), radius).reshape(r.shape)
        new = _shortened(given, given.where(fresh, r, changed), radius, norm)
        logits = classifier(given.at(new))
        objective, size = given.objective(logits), geometry.norm(new, norm)
        adversarial = active & given.adversarial(logits, CAREFUL) & (size < best.value)
        kept = active & (fresh | (objective < value) | adversarial)
        failures = jnp.where(kept, 0, failures + 1)
        tired = failures >= PATIENCE
        factor = jnp.where(adversarial, SUCCEEDED, jnp.where(tired, FAILED, 1))
        return (
            given.where(kept, new, r),
            jnp.where(kept, objective, value),
            best.keep(given, new, size, adversarial),
            jnp.where(active, jnp.clip(reduction * factor, LEAST, LARGEST), reduction),
            jnp.where(active, adversarial, fresh),
            jnp.where(tired, 0, failures),
        )

    start = given.where(walk.distance == best.value, walk.r, best.r)
    fresh = jnp.ones(len(queries), bool)
    state = (start, jnp.full_like(best.value, jnp.inf), best, walk.reduction, fresh, 0 * queries)
    r, _, best, reduction, _, _ = jax.lax.fori_loop(0, queries.max(), ask, state)
    moved = queries > 0
    return best, Walk(
        given.where(moved, r, walk.r),
        jnp.where(moved, best.value, walk.distance),
        jnp.where(moved, reduction, walk.reduction),
    )


def plane_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of an image as height, width and channels."""
    height, width = (*shape, 1)[:2]
    return height, width, math.prod(shape[2:])


def _changed(bits: jax.Array, r: jax.Array, radius: jax.Array, norm: float) -> jax.Array:
    """The perturbation of one image `[H, W, C]` with one window changed as the random numbers `[NUMBERS]` say.

    For p = inf the window is set to plus or minus the radius in each channel, else such a value is added to it.
    """
    limits = jnp.array(r.shape[:2], bits.dtype)
    sizes = jnp.minimum(jnp.array(SIDES, bits.dtype)[bits[0] % len(SIDES)], limits)
    corner = bits[1:3] % (limits - sizes + 1)
    rows, columns = (
        (jnp.arange(length, dtype=bits.dtype) >= first) & (jnp.arange(length, dtype=bits.dtype) < first + size)
        for length, first, size in zip(r.shape[:2], corner, sizes, strict=True)
    )
    window = (rows[:, None] & columns[None])[..., None]
    places = jnp.arange(r.shape[2], dtype=bits.dtype) % jnp.iinfo(bits.dtype).bits
    signs = 2 * (bits[3] >> places & 1).astype(r.dtype)[None, None] - 1
    if norm == geometry.INF:
        return jnp.where(window, radius * signs, r)
    share = AMOUNT * 10 ** -(bits[4].astype(r.dtype) / float(jnp.iinfo(bits.dtype).max))
    pixels = (jnp.prod(sizes) * r.shape[2]).astype(r.dtype)
    return r + jnp.where(window, share * radius * pixels ** (-1 / norm) * signs, 0)


def _shortened(given: Problem, r: jax.Array, radius: jax.Array, norm: float) -> jax.Array:
    """The perturbations inside the box and of norm at most `radius [B]`: clipped for p = inf, else scaled, which is
    cheaper than a projection."""
    if norm == geometry.INF:
        limit = given.per_image(radius)
        return given.inside(jnp.clip(r, -limit, limit))
    r = given.inside(r)
    size = geometry.norm(r, norm)
    return r * given.per_image(jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1))
