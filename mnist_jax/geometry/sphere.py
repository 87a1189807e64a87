"""Perturbations on a sphere in a p-norm, inside the box: projections onto it, and gradients along it."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from mnist_jax.geometry.norms import INF, largest, norm
from mnist_jax.geometry.rows import power, radii_of, rows_of, sum_of_rows
from mnist_jax.geometry.stationary import solve, stretch


def scale_to_sphere_in_box(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """Scales `v` so that, clipped to the box, it has the p-norm `radius` exactly. `v` and `images` are `[B, *shape]`.

    Cheaper than `project_sphere_in_box`, and for p = 2 the same. Where no factor is large enough, the result is on
    the line from the clipped `v` to the farthest corner of the box.
    """
    rows, x = rows_of(v), rows_of(images)
    radius = jnp.minimum(radii_of(radius, rows), largest(x, p))
    positive = jnp.where(rows == 0, x <= 0.5, rows > 0)
    near, far = jnp.where(positive, 1 - x, x), jnp.where(positive, x, 1 - x)
    s = stretch(jnp.abs(rows), near, jnp.where(radius > 0, radius, 1), p)
    short = norm(s, p) < radius * (1 - 1e-6)
    s = jnp.where(short[:, None], _walk(s, jnp.where(far > near, -far, near), radius, p, short), s)
    return jnp.where(positive, s, -s).reshape(v.shape) * jnp.where(radius > 0, 1, 0).reshape(-1, *[1] * (v.ndim - 1))


def project_sphere_in_box(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """A perturbation near `v`, of p-norm exactly `radius`, inside the box. `v` and `images` are `[B, *shape]`.

    The set of these is not convex. The result is the closest of them in Euclidean distance for p = inf, and for other p
    wherever a minimizer of the Lagrangian has the norm `radius`. Where the norm of the minimizer jumps over `radius` as
    the multiplier changes, the result is a point on the line between the minimizers on the two sides of the jump. Its
    derivative is then zero, as it is for v inside the sphere where p is not 1, 2 or inf. A radius above
    `largest(images, p)`, which no perturbation has, is lowered to that; for p < inf this gives the farthest corner.
    """
    rows, x = rows_of(v), rows_of(images)
    radius = jnp.minimum(radii_of(radius, rows), largest(x, p))
    positive = jnp.where(rows == 0, x <= 0.5, rows > 0)
    if p == 1:  # a pixel that cannot move in v's direction counts as one of the other direction, with a negative v
        positive ^= jnp.where(positive, x == 1, x == 0)
    near, far = jnp.where(positive, 1 - x, x), jnp.where(positive, x, 1 - x)
    on_sphere = _lifted if p == INF else _on_sphere
    s = on_sphere(jnp.where(positive, rows, -rows), near, far, radius, p)
    return (jnp.where(positive, s, -s)).reshape(v.shape)


def along_sphere(g: jax.Array, r: jax.Array, images: jax.Array, p: float) -> jax.Array:
    """The component of a gradient `g` that is tangential to the sphere through `r`. All arrays are `[B, *shape]`.

    It is zero at a minimum over the sphere, except in pixels that the box stops. For p = inf it is `g` itself.
    """
    if p == INF:
        return g
    rows, gradient = rows_of(r), rows_of(g)
    a = jnp.abs(rows)
    scaled = a / jnp.maximum(a.max(1, keepdims=True), jnp.finfo(a.dtype).tiny)
    normal = jnp.sign(rows) * (scaled if p == 2 else scaled ** (p - 1))
    moved = rows_of(images) + rows
    free = jnp.where((moved > 0) & (moved < 1), normal, 0)
    multiplier = (sum_of_rows(gradient * free) / jnp.maximum(sum_of_rows(free**2), jnp.finfo(a.dtype).tiny))[:, None]
    along = gradient - multiplier * normal
    if p == 1:  # in a pixel of zero, the subdifferential of the norm is [-1, 1]
        enters = jnp.sign(gradient) * jnp.maximum(jnp.abs(gradient) - jnp.abs(multiplier), 0)
        along = jnp.where(rows == 0, enters, along)
    return along.reshape(g.shape)


def _on_sphere(a, near, far, radius, p):
    """`project_sphere_in_box` for p < inf, of rows `a [B, D]` in their own direction.

    `near` and `far` are the room that the box leaves in that direction and in the opposite one; a result is negative
    where a pixel moves to the far side.
    """
    clipped = jnp.clip(a, 0, near)
    size = norm(clipped, p)
    if p in (1, 2):
        s = solve(a, near, radius, p, radius > 0)
        jumps = (size < radius) & (norm(s, p) < radius * (1 - 1e-6))
        if p == 1:
            # The far side of a pixel has the lower Lagrangian where -mu exceeds `limit`; `corner` is the limit for
            # moving there all the way. (For p = 2 this happens only where no pixel has room left on the near side.)
            ahead, mean = far - near, jnp.sqrt(near * jnp.maximum(a, 0))
            corner = jnp.where(ahead > 0, 0.5 + a / jnp.where(ahead > 0, ahead, 1), INF)
            limit = jnp.where(2 * mean < ahead, near + 2 * mean + a, corner).min(1)
            jumps |= (size < radius) & (jnp.where(s < near, s - a, 0).max(1) > limit)
    else:
        outside, jumps = size > radius, size < radius
        s = jnp.where(outside[:, None], solve(a, near, radius, p, outside), clipped)
    s = jnp.where(jumps[:, None], _grow(a, near, far, radius, p, jumps), s)
    return jnp.where(radius[:, None] > 0, s, 0)


def _grow(a, near, far, radius, p, wanted):
    """The minimizer of (s - a)^2 / 2 - nu |s|^p / p over -far <= s <= near, with nu such that its norm is the radius.

    nu is bisected on a logarithmic scale. Where the norm jumps over the radius, see `project_sphere_in_box`.
    """
    a, near, far, radius = map(lax.stop_gradient, (a, near, far, radius))

    def minimum(nu):
        points = [_near_minimum(a, near, nu, p), near, -far]
        if p < 2:  # on the far side, too, there can be a minimum inside of the interval
            points.append(-_near_minimum(-a, far, nu, p))
        values = [s * (s / 2 - a) - nu * power(jnp.abs(s), p) / p for s in points]
        return jnp.take_along_axis(jnp.stack(points), jnp.stack(values).argmin(0)[None], 0)[0]

    def halve(state):
        count, low, high, below, above = state
        middle = (low + high) / 2
        s = minimum(jnp.exp2(middle)[:, None])
        over = norm(s, p) > radius
        low, high = jnp.where(over, low, middle), jnp.where(over, middle, high)
        return count + 1, low, high, jnp.where(over[:, None], below, s), jnp.where(over[:, None], s, above)

    low, high = jnp.full_like(radius, -30), jnp.full_like(radius, 100)
    state = (0, low, high, jnp.clip(a, 0, near), jnp.where(far > near, -far, near))
    below, above = lax.while_loop(lambda state: (state[0] < 40) & wanted.any(), halve, state)[3:]
    return _walk(below, above, radius, p, wanted)


def _walk(below, above, radius, p, wanted):
    """The point of p-norm `radius` on the line from `below`, of a smaller norm, to `above`, of a larger one."""
    below, above, radius = map(lax.stop_gradient, (below, above, radius))

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        over = norm(below + middle[:, None] * (above - below), p) > radius
        return jnp.where(over, low, middle), jnp.where(over, middle, high)

    ends = (jnp.zeros_like(radius), jnp.ones_like(radius))
    share = lax.cond(wanted.any(), lambda: lax.fori_loop(0, 30, halve, ends)[1], lambda: ends[1])
    return below + share[:, None] * (above - below)


def _near_minimum(a, near, nu, p):
    """The stationary point s >= a with s - nu s^(p-1) = a, or `near` where there is none below `near`."""
    low = jnp.clip(a, 0, near)
    if p == 1:
        return jnp.clip(a + nu, low, near)
    if p == 2:
        return jnp.where(nu < 1, jnp.minimum(a / jnp.where(nu < 1, 1 - nu, 1), near), near)

    # Newton's method, from the side on which it converges monotonically: the left-hand side is convex or concave.
    def step(_, s):
        pull = nu * power(s, p - 2)
        slope = 1 - (p - 1) * pull
        s = jnp.where(slope > 0, s - (s - pull * s - a) / jnp.where(slope > 0, slope, 1), near)
        return jnp.clip(s, low, near)

    return lax.fori_loop(0, 20, step, near if p < 2 else low)


def _lifted(a, near, far, radius, p):
    """`project_sphere_in_box` for p = inf: clips at the radius; where no pixel then is at the radius, moves one there.

    It is the pixel, and the side, for which this adds least to the squared distance.
    """
    del p
    limit = radius[:, None]
    s = jnp.minimum(jnp.minimum(a, near), limit)
    # What moving a pixel adds to the squared distance, written as a product: differences of squares could overflow.
    ahead = jnp.where(near >= limit, (limit - s) * (limit + s - 2 * a), INF)
    back = jnp.where(far >= limit, (limit + s) * (limit - s + 2 * a), INF)
    best = jax.nn.one_hot(jnp.minimum(ahead, back).argmin(1), a.shape[1], dtype=bool)
    lifted = jnp.where(best, jnp.where(ahead <= back, limit, -limit), s)
    return jnp.where(s.max(1, keepdims=True) < limit, lifted, s)
