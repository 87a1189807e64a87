"""The nearest point, inside the box, of a hyperplane on which a linear function has a given value."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from mnist_jax.geometry.norms import INF, dual, norm
from mnist_jax.geometry.rows import power, radii_of, rows_of, sum_of_rows
from mnist_jax.geometry.sphere import scale_to_sphere_in_box
from mnist_jax.geometry.stationary import bracketed, fixed_point


def nearest_on_plane_in_box(g: jax.Array, fall: ArrayLike, images: jax.Array, p: float) -> jax.Array:
    """The perturbation of least p-norm, inside the box, along which a linear function of gradient `g` falls by `fall`.

    `g` and `images` are `[B, *shape]`, `fall` is a number or `[B]`. Where the function cannot fall that much in the
    box, the result is the corner at which it is least; where `fall` is not positive, it is zero.
    """
    rows, x = rows_of(g), rows_of(images)
    a, room, fall = jnp.abs(rows), jnp.where(rows < 0, 1 - x, x), radii_of(fall, rows)
    a = a / jnp.maximum(a.max(1, keepdims=True), jnp.finfo(a.dtype).tiny)
    fall = jnp.maximum(fall / jnp.maximum(jnp.abs(rows).max(1), jnp.finfo(a.dtype).tiny), 0)
    s = _fill(a, room, fall) if p == 1 else _spread(a, room, fall, dual(p))
    return (-jnp.sign(rows) * s).reshape(g.shape)


def shorten_on_plane_in_box(
    v: jax.Array, g: jax.Array, fall: ArrayLike, reach: ArrayLike, images: jax.Array, p: float
) -> jax.Array:
    """The perturbation of least p-norm near `v`, in the box, at which a linear function is lower than at `v` by `fall`.

    Near means at most `reach` from `v` in Euclidean distance; the function has the gradient `g`. p is 1, 2 or inf. `v`,
    `g` and `images` are `[B, *shape]`; `fall`, of any sign, and `reach` are numbers or `[B]`. Where no perturbation
    within reach falls (or rises) by that much, the result is the one that does so the most.

    Stationary points of the Lagrangian are v - nu g, shrunk (for p = 2 by a factor, for p = 1 all pixels by the same
    amount, for p = inf by clipping at a limit) and clipped to the box. For each amount of shrinkage, nu is the solution
    of one monotone equation, that the point is on the plane; more shrinkage makes points farther from v. So the
    shrinkage is bisected.
    """
    rows, x = rows_of(v), rows_of(images)
    fall, reach = radii_of(fall, rows), radii_of(reach, rows)
    unit = jnp.maximum(jnp.abs(rows_of(g)).max(1), jnp.finfo(x.dtype).tiny)
    a = rows_of(g) / unit[:, None]
    level = sum_of_rows(a * rows) - fall / unit
    top = jnp.abs(rows).max(1, keepdims=True)

    def meet(share, nu):
        s, nu = _meet(rows, a, level, lambda s: jnp.clip(_shrink_by(s, share[:, None], top, p), -x, 1 - x), nu)
        return s, nu, allowed(s)

    def allowed(s):
        return (norm(s - rows, 2) <= reach) & (jnp.abs(sum_of_rows(a * s) - level) <= 1e-5 * (jnp.abs(level) + 1))

    def halve(_, state):
        low, high, nu, best = state
        share = (low + high) / 2
        s, nu, good = meet(share, nu)
        return jnp.where(good, share, low), jnp.where(good, high, share), nu, jnp.where(good[:, None], s, best)

    nothing = jnp.zeros_like(reach)
    straight, nu, _ = meet(nothing, nothing)  # not shrunk: the projection of v onto the plane, as far as the box allows
    forward = jnp.where((fall < 0)[:, None], a, -a).reshape(v.shape)
    part = rows + rows_of(scale_to_sphere_in_box(forward, jnp.clip(images + v, 0, 1), reach, 2))
    s = jnp.where((norm(straight - rows, 2) <= reach)[:, None], straight, part)
    s = lax.fori_loop(0, 20, halve, (nothing, nothing + 0.999, nu, s))[3]
    # Where the point of the plane that is nearest to zero is within reach, it is the result.
    towards = jnp.where((level > 0)[:, None], -a, a).reshape(v.shape)
    least = rows_of(nearest_on_plane_in_box(towards, jnp.abs(level), images, p))
    return jnp.where(allowed(least)[:, None], least, s).reshape(v.shape)


def _fill(a, room, fall):
    """p = 1: the pixels of the largest gradients move as far as the box allows, the last of them only as far as needed.

    `a [B, D]` are absolute gradients, at most 1. The gradient of the last pixel is found by bisection down to adjacent
    floating-point numbers: sorting the pixels takes twenty times as long.
    """
    worth = a * room

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        too_much = sum_of_rows(jnp.where(a > middle[:, None], worth, 0)) > fall
        return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

    ends = jnp.zeros_like(fall), jnp.ones_like(fall)
    low, high = lax.fori_loop(0, jnp.finfo(a.dtype).nmant + 2, halve, ends)
    whole = a > high[:, None]
    last = (a > low[:, None]) & ~whole
    left = fall - sum_of_rows(jnp.where(whole, worth, 0))
    share = jnp.clip(left / jnp.maximum(sum_of_rows(jnp.where(last, worth, 0)), jnp.finfo(a.dtype).tiny), 0, 1)
    return room * jnp.where(whole, 1, jnp.where(last, share[:, None], 0))


def _spread(a, room, fall, q):
    """p > 1: s = min(t a^(q - 1), room), with t such that <a, s> = fall, and q the exponent of the dual norm."""
    weight = jnp.where(a > 0, 1, 0) if q == 1 else a if q == 2 else power(a, q - 1)

    def given_set(t):
        clipped = t[:, None] * weight > room
        left = fall - sum_of_rows(jnp.where(clipped, a * room, 0))
        free = sum_of_rows(jnp.where(clipped, 0, a * weight))
        return jnp.where((left > 0) & (free > 0), left / jnp.where(free > 0, free, 1), t)

    # As in `stationary.stretch`, the set of clipped pixels only grows. Where the box allows no such fall, all pixels
    # are clipped in the end.
    t = fixed_point(lambda t: (jnp.maximum(t, given_set(t)),), jnp.zeros_like(fall))[0]
    possible = sum_of_rows(a * room) > fall
    return jnp.where(possible[:, None], jnp.minimum(t[:, None] * weight, room), jnp.where(a > 0, room, 0))


def _shrink_by(s, share, top, p):
    """Entries `s` of any sign, shrunk as for this p (see `shorten_on_plane_in_box`) by a share in [0, 1).

    `top [B, 1]` is the largest absolute entry, for p = inf.
    """
    if p == 2:
        return (1 - share) * s
    if p == INF:
        return jnp.clip(s, (share - 1) * top, (1 - share) * top)
    return jnp.sign(s) * jnp.maximum(jnp.abs(s) - share / (1 - share), 0)


def _meet(rows, a, level, shape, nu):
    """`s = shape(rows - nu a)`, with nu `[B]` such that <a, s> is `level`, or as near as possible; and this nu.

    `nu` is the first guess of a bracketed Newton's method.
    """
    close = 4 * jnp.finfo(a.dtype).eps * (sum_of_rows(jnp.abs(a)) + jnp.abs(level))

    def step(low, high, nu):
        s, slope = jax.jvp(shape, (rows - nu[:, None] * a,), (a,))
        excess, slope = sum_of_rows(a * s) - level, sum_of_rows(a * slope)
        found = (jnp.abs(excess) <= close) | (high - low <= 1e-6 * jnp.abs(nu))
        low, high = jnp.where(excess > 0, nu, low), jnp.where(excess < 0, nu, high)
        newton = jnp.where(slope > 0, nu + excess / jnp.where(slope > 0, slope, 1), INF)
        return low, high, jnp.where(found, nu, bracketed(low, high, newton))

    nu = fixed_point(step, nu - 1e4, nu + 1e4, nu)[2]
    return shape(rows - nu[:, None] * a), nu
