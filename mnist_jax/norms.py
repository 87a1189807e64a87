"""Geometry: norms, dual directions and projections for every p in [1, inf], batched.

The first axis of every array is the batch; the rest, whatever its shape, is one vector. `radius` is a number or one for
each image, `[B]`. A perturbation `r` of images `x` is inside the box where `x + r` is in [0, 1].

All projections solve one equation in one unknown. By symmetry let `a = |v|`, and let `c >= 0` be the room that the box
leaves in the direction of v. The point closest to v with `norm(s) = radius` minimizes the Lagrangian
`(s - a)^2 / 2 + mu s^p / p` over 0 <= s <= c, a pixel at a time: its stationary point has

    s + mu s^(p - 1) = a,    clipped at c,

with mu >= 0 where v is too far out (the projection onto a ball, convex) and mu < 0 where v is too far in (onto the
sphere from inside, not convex). What is left is to find mu. Once it is known which pixels are clipped, p = 1 and p = 2
give it in closed form, so there the search is for that set, and ends (compare Michelot, "A finite algorithm for finding
the projection of a point onto the canonical simplex of R^n", 1986). Every other p takes Newton's method. The searches
are not differentiated; the formula or Newton step that ends them is, which is the implicit function theorem.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

INF = float("inf")


def check(p: float, allowed: tuple[float, ...] | None = None) -> float:
    """`p` as a float. Raises `ValueError` unless it is one of those allowed, or, where none are named, in [1, inf]."""
    p = float(p)
    if allowed is None and not p >= 1:
        raise ValueError(f"norm must be a number in [1, inf], not {p:g}")
    if allowed is not None and p not in allowed:
        raise ValueError(f"norm must be {' or '.join(f'{q:g}' for q in allowed)}, not {p:g}")
    return p


def dual(p: float) -> float:
    """The exponent of the dual norm: `1 / p + 1 / dual(p) = 1`."""
    return INF if p == 1 else 1.0 if p == INF else p / (p - 1)


def norm(x: jax.Array, p: float) -> jax.Array:
    """The p-norm of every image: `[B, *shape]` to `[B]`. Its gradient at zero is zero.

    For p = 0, which is no norm, the number of entries that are not zero.
    """
    rows = _rows(x)
    if p == 0:
        return _sum((rows != 0).astype(x.dtype))
    a = rows * jnp.sign(rows)  # jnp.abs has the derivative 1 at zero
    if p == INF:
        return a.max(1, initial=0)
    if p == 1:
        return a.sum(1)
    # Scaled by the largest, no power overflows, and none that matters underflows.
    largest = lax.stop_gradient(a.max(1, initial=0))
    scale = jnp.where(largest > 0, largest, 1)
    total = _sum((a / scale[:, None]) ** (2 if p == 2 else p))
    return scale * jnp.where(total > 0, jnp.where(total > 0, total, 1) ** (1 / p), 0)


def dual_direction(g: jax.Array, p: float) -> jax.Array:
    """The direction of norm 1 in which a function of gradient `g [B, *shape]` grows fastest; zero where `g` is zero.

    It attains the dual norm: `<g, dual_direction(g, p)> = norm(g, dual(p))`. For p = 1 it is one pixel, the first of
    the largest.
    """
    rows = _rows(g)
    if p == INF:
        return jnp.sign(g)
    if p == 1:
        a = jnp.abs(rows)
        first = jax.nn.one_hot(a.argmax(1), a.shape[1], dtype=g.dtype)
        return (first * jnp.sign(rows)).reshape(g.shape)
    largest = jnp.abs(rows).max(1, keepdims=True, initial=0)
    scaled = rows / jnp.where(largest > 0, largest, 1)
    power = scaled if p == 2 else jnp.sign(scaled) * jnp.abs(scaled) ** (dual(p) - 1)
    length = norm(power, p)[:, None]
    return (power / jnp.where(length > 0, length, 1)).reshape(g.shape)


def sparse_direction(g: jax.Array, count: ArrayLike) -> jax.Array:
    """The direction of 1-norm 1 that moves the `count` largest entries of `g [B, *shape]` by the same amount.

    `count` is a number or `[B]`, rounded up, and at least 1. All entries that equal the last of them move too, but none
    where `g` is zero.
    """
    rows = _rows(g)
    a = jnp.abs(rows)
    rank = jnp.clip(jnp.ceil(_radii(count, rows)), 1, a.shape[1]).astype(int)
    least = jnp.take_along_axis(jnp.sort(a, 1), a.shape[1] - rank[:, None], 1)
    signs = jnp.where(a >= least, jnp.sign(rows), 0)
    return (signs / jnp.maximum(_sum(jnp.abs(signs)), 1)[:, None]).reshape(g.shape)


def random_in_ball(keys: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """Perturbations like `images [B, *shape]`, uniform in the ball of p-norm `radius`, from a key for each image.

    For p < inf after Barthe et al., "A probabilistic approach to the geometry of the l_p^n-ball", 2005.
    """
    shape, dtype = images.shape[1:], images.dtype

    def one(key):
        if p == INF:
            return jax.random.uniform(key, shape, dtype, -1, 1)
        directions, depth = jax.random.split(key)
        if p == 1:
            v = jax.random.laplace(directions, shape, dtype)
        elif p == 2:
            v = jax.random.normal(directions, shape, dtype) / math.sqrt(2)
        else:
            v = jax.random.generalized_normal(directions, p, shape, dtype)
        return v / ((jnp.abs(v) ** p).sum() + jax.random.exponential(depth, (), dtype)) ** (1 / p)

    unit = jax.vmap(one)(keys)
    return _radii(radius, _rows(images)).reshape(-1, *[1] * len(shape)) * unit


def largest(images: jax.Array, p: float) -> jax.Array:
    """The largest p-norm `[B]` that a perturbation of these images can have inside the box."""
    return norm(jnp.maximum(images, 1 - images), p)


def along_sphere(g: jax.Array, r: jax.Array, images: jax.Array, p: float) -> jax.Array:
    """The part of a gradient `g` that a small step on the sphere through `r`, inside the box, can follow.

    It is zero at a minimum over the sphere, but for pixels that the box stops. All arrays are `[B, *shape]`.
    """
    if p == INF:
        return g
    rows, gradient = _rows(r), _rows(g)
    a = jnp.abs(rows)
    scaled = a / jnp.maximum(a.max(1, keepdims=True), jnp.finfo(a.dtype).tiny)
    normal = jnp.sign(rows) * (scaled if p == 2 else scaled ** (p - 1))
    moved = _rows(images) + rows
    free = jnp.where((moved > 0) & (moved < 1), normal, 0)
    multiplier = (_sum(gradient * free) / jnp.maximum(_sum(free**2), jnp.finfo(a.dtype).tiny))[:, None]
    along = gradient - multiplier * normal
    if p == 1:  # at zero the norm has every normal of at most 1
        enters = jnp.sign(gradient) * jnp.maximum(jnp.abs(gradient) - jnp.abs(multiplier), 0)
        along = jnp.where(rows == 0, enters, along)
    return along.reshape(g.shape)


def project_ball(v: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """The point closest to `v [B, *shape]`, in Euclidean distance, of p-norm at most `radius`.

    For p = 0, of at most `radius` entries that are not zero.
    """
    rows = _rows(v)
    radius = _radii(radius, rows)
    if p == 2:  # without the box there is nothing to search for
        size = norm(rows, 2)
        outside = size > radius
        share = jnp.where(outside, radius / jnp.where(outside, size, 1), 1)
        return (share[:, None] * rows).reshape(v.shape)
    a = jnp.abs(rows)
    return (jnp.sign(rows) * _inside(a, a + 1, radius, p)).reshape(v.shape)


def proximal(v: jax.Array, weight: ArrayLike, p: float) -> jax.Array:
    """The minimum over r of `weight norm_p(r) + norm_2(r - v)^2 / 2`. `weight` is a number or `[B]`.

    It is what is left of `v` after its projection onto the ball of the dual norm (Moreau, "Proximité et dualité dans un
    espace hilbertien", 1965).
    """
    return v - project_ball(v, weight, dual(p))


def project(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """The perturbation closest to `v`, of p-norm at most `radius`, inside the box. All arrays are `[B, *shape]`.

    For p = 0, of at most `radius` entries that are not zero: those that bring it closest.
    """
    rows, x = _rows(v), _rows(images)
    room = jnp.where(rows > 0, 1 - x, x)
    return (jnp.sign(rows) * _inside(jnp.abs(rows), room, _radii(radius, rows), p)).reshape(v.shape)


def scale_to_sphere(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """A perturbation of p-norm exactly `radius`: `t v`, clipped to the box. All arrays are `[B, *shape]`.

    Cheaper than `project_sphere`, and for p = 2 the same. Where no t is large enough, the point is beyond the clipped
    v, on the line to the farthest corner of the box.
    """
    rows, x = _rows(v), _rows(images)
    radius = jnp.minimum(_radii(radius, rows), largest(x, p))
    positive = jnp.where(rows == 0, x <= 0.5, rows > 0)
    near, far = jnp.where(positive, 1 - x, x), jnp.where(positive, x, 1 - x)
    s = _stretch(jnp.abs(rows), near, jnp.where(radius > 0, radius, 1), p)
    short = norm(s, p) < radius * (1 - 1e-6)
    s = jnp.where(short[:, None], _walk(s, jnp.where(far > near, -far, near), radius, p, short), s)
    return jnp.where(positive, s, -s).reshape(v.shape) * jnp.where(radius > 0, 1, 0).reshape(-1, *[1] * (v.ndim - 1))


def project_sphere(v: jax.Array, images: jax.Array, radius: ArrayLike, p: float) -> jax.Array:
    """A perturbation near `v`, of p-norm exactly `radius`, inside the box. All arrays are `[B, *shape]`.

    That set is not convex. The result is the closest point where a minimum of the Lagrangian attains the radius, and
    always for p = inf. Where the minimum jumps over the radius, it is a point on the line between the two sides of the
    jump, and its derivative is zero, as it is from inside the sphere for p other than 1, 2 and inf. A radius above
    `largest(images, p)`, which no perturbation has, counts as that: for p < inf, it gives the farthest corner.
    """
    rows, x = _rows(v), _rows(images)
    radius = jnp.minimum(_radii(radius, rows), largest(x, p))
    positive = jnp.where(rows == 0, x <= 0.5, rows > 0)
    if p == 1:  # what cannot move in v's direction goes straight on in the other, as if v were a negative amount of it
        positive ^= jnp.where(positive, x == 1, x == 0)
    near, far = jnp.where(positive, 1 - x, x), jnp.where(positive, x, 1 - x)
    on_sphere = _lifted if p == INF else _on_sphere
    s = on_sphere(jnp.where(positive, rows, -rows), near, far, radius, p)
    return (jnp.where(positive, s, -s)).reshape(v.shape)


def nearest_on_plane(g: jax.Array, fall: ArrayLike, images: jax.Array, p: float) -> jax.Array:
    """The perturbation of least p-norm, inside the box, along which a linear function of gradient `g` falls by `fall`.

    Arrays are `[B, *shape]`, `fall` is `[B]` or a number. Where the box allows no such fall, the result is the corner
    where the function is lowest; where `fall` is not positive, it is zero.
    """
    rows, x = _rows(g), _rows(images)
    a, room, fall = jnp.abs(rows), jnp.where(rows < 0, 1 - x, x), _radii(fall, rows)
    a = a / jnp.maximum(a.max(1, keepdims=True), jnp.finfo(a.dtype).tiny)
    fall = jnp.maximum(fall / jnp.maximum(jnp.abs(rows).max(1), jnp.finfo(a.dtype).tiny), 0)
    s = _fill(a, room, fall) if p == 1 else _spread(a, room, fall, dual(p))
    return (-jnp.sign(rows) * s).reshape(g.shape)


def shorten_on_plane(
    v: jax.Array, g: jax.Array, fall: ArrayLike, reach: ArrayLike, images: jax.Array, p: float
) -> jax.Array:
    """The perturbation of least p-norm, p 1, 2 or inf, inside the box, at most `reach` from `v` in Euclidean distance,
    at which a linear function of gradient `g` is lower than at `v` by `fall` (of any sign).

    Arrays are `[B, *shape]`, `fall` and `reach` `[B]` or numbers. Where no perturbation that near falls (or rises) as
    much, the result is the one that does so the most.

    Stationary points of the Lagrangian are v - nu g, shrunk (for p = 2 by a factor, for p = 1 all pixels by the same
    amount, for p = inf by a limit) and clipped to the box. For every shrinkage nu is what puts them on the plane, one
    monotone equation; and the more they are shrunk, the farther they are from v.
    """
    rows, x = _rows(v), _rows(images)
    fall, reach = _radii(fall, rows), _radii(reach, rows)
    unit = jnp.maximum(jnp.abs(_rows(g)).max(1), jnp.finfo(x.dtype).tiny)
    a = _rows(g) / unit[:, None]
    level = _sum(a * rows) - fall / unit
    top = jnp.abs(rows).max(1, keepdims=True)

    def meet(share, nu):
        s, nu = _meet(rows, a, level, lambda s: jnp.clip(_shrink_by(s, share[:, None], top, p), -x, 1 - x), nu)
        return s, nu, allowed(s)

    def allowed(s):
        return (norm(s - rows, 2) <= reach) & (jnp.abs(_sum(a * s) - level) <= 1e-5 * (jnp.abs(level) + 1))

    def halve(_, state):
        low, high, nu, best = state
        share = (low + high) / 2
        s, nu, good = meet(share, nu)
        return jnp.where(good, share, low), jnp.where(good, high, share), nu, jnp.where(good[:, None], s, best)

    nothing = jnp.zeros_like(reach)
    straight, nu, _ = meet(nothing, nothing)  # to the plane, or as far as the box allows
    forward = jnp.where((fall < 0)[:, None], a, -a).reshape(v.shape)
    part = rows + _rows(scale_to_sphere(forward, jnp.clip(images + v, 0, 1), reach, 2))
    s = jnp.where((norm(straight - rows, 2) <= reach)[:, None], straight, part)
    s = lax.fori_loop(0, 20, halve, (nothing, nothing + 0.999, nu, s))[3]
    # Where the reach does not matter, it is the point nearest to zero.
    towards = jnp.where((level > 0)[:, None], -a, a).reshape(v.shape)
    least = _rows(nearest_on_plane(towards, jnp.abs(level), images, p))
    return jnp.where(allowed(least)[:, None], least, s).reshape(v.shape)


# Below, rows [B, D] of absolute values: a = |v|, and the room in the direction of v (near: the same; far: opposite).


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _radii(radius: ArrayLike, rows: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(radius, rows.dtype), rows.shape[:1])


def _sum(x: jax.Array) -> jax.Array:
    """The sum of every row. In two stages: XLA's CPU backend would add up a long row a number at a time."""
    width = 16 if x.shape[1] % 16 == 0 else 1
    return x.reshape(len(x), x.shape[1] // width, width).sum(1).sum(1)


def _power(s: jax.Array, exponent: float) -> jax.Array:
    """`s ** exponent` of s >= 0, with a derivative that is zero at s = 0."""
    return jnp.where(s > 0, jnp.where(s > 0, s, 1) ** exponent, 0)


def _inside(a, room, radius, p):
    """The point closest to a with 0 <= s <= room and of norm at most radius."""
    s = jnp.minimum(a, room)
    if p == INF:
        return jnp.minimum(s, radius[:, None])
    if p == 0:
        # An entry at s instead of at 0 is closer by a^2 - (a - s)^2. Ranks, no threshold: two may be worth the same.
        best_first = jnp.argsort(-s * (2 * a - s), 1)
        return jnp.where(jnp.argsort(best_first, 1) < radius[:, None], s, 0)
    outside = norm(s, p) > radius
    s = jnp.where(outside[:, None], _solve(a, room, radius, p, outside), s)
    return jnp.where(radius[:, None] > 0, s, 0)


def _on_sphere(a, near, far, radius, p):
    """`project_sphere` for p < inf. The result is negative where a pixel goes to the far side."""
    clipped = jnp.clip(a, 0, near)
    size = norm(clipped, p)
    if p in (1, 2):
        s = _solve(a, near, radius, p, radius > 0)
        jumps = (size < radius) & (norm(s, p) < radius * (1 - 1e-6))
        if p == 1:
            # The far side of a pixel is the better one where -mu exceeds this; `corner` for all of it. (For p = 2 that
            # is so only where no pixel has room left on the near side.)
            ahead, mean = far - near, jnp.sqrt(near * jnp.maximum(a, 0))
            corner = jnp.where(ahead > 0, 0.5 + a / jnp.where(ahead > 0, ahead, 1), INF)
            limit = jnp.where(2 * mean < ahead, near + 2 * mean + a, corner).min(1)
            jumps |= (size < radius) & (jnp.where(s < near, s - a, 0).max(1) > limit)
    else:
        outside, jumps = size > radius, size < radius
        s = jnp.where(outside[:, None], _solve(a, near, radius, p, outside), clipped)
    s = jnp.where(jumps[:, None], _grow(a, near, far, radius, p, jumps), s)
    return jnp.where(radius[:, None] > 0, s, 0)


def _solve(a, room, radius, p, wanted):
    """Stationary points 0 <= s <= room of that norm (or of the largest that the room allows), in the wanted rows.

    For p other than 1 and 2 the norm of min(a, room) must be the larger one.
    """
    a = jnp.where(wanted[:, None], a, 1 / a.shape[1])  # elsewhere a row that is found at once
    room = jnp.where(wanted[:, None], room, 1)
    radius = jnp.where(wanted & (radius > 0), radius, 0.5)
    return {1: _shift, 2: _stretch}.get(p, _shrink)(a, room, radius, p)


def _search(step, *start, limit=100):
    """Repeats `step` on arrays `[B]` until nothing changes."""

    def changes(state):
        count, before, now = state
        return (count < limit) & (before != now).any()

    def body(state):
        count, _, now = state
        return count + 1, now, jnp.stack(step(*now))

    now = jnp.stack(start)
    return lax.while_loop(changes, body, (0, now + 1, now))[2]


def _bracketed(low, high, guess):
    """The guess where it is strictly inside the bracket, else the middle."""
    return jnp.where((guess > low) & (guess < high), guess, (low + high) / 2)


def _stretch(a, room, radius, p):
    """s = min(t a, room); for p = 2 the stationary points, with t = 1 / (1 + mu)."""
    if p == INF:
        largest = jnp.where(room >= radius[:, None], a, 0).max(1, keepdims=True)  # of those that can get there
        share = jnp.minimum(a / jnp.where(largest > 0, largest, 1), 1)
        return jnp.minimum(jnp.where(largest > 0, share * radius[:, None], a), room)
    a = a / lax.stop_gradient(jnp.maximum(a.max(1, keepdims=True), jnp.finfo(a.dtype).tiny))
    # In units of the radius, so that no power overflows.
    units = radius[:, None]
    limit = jnp.minimum(room / units, 2)

    def powers(a, limit):
        return (a**2, limit**2) if p == 2 else (_power(a, p), _power(limit, p))

    def given_set(t, a, limit, powers):
        clipped = t[:, None] * a > limit
        left = 1 - _sum(jnp.where(clipped, powers[1], 0))
        free = _sum(jnp.where(clipped, 0, powers[0]))
        solvable = (left > 0) & (free > 0)
        share = jnp.where(solvable, left, 1) / jnp.where(solvable, free, 1)
        return clipped, jnp.where(solvable, jnp.sqrt(share) if p == 2 else share ** (1 / p), t)

    fixed = tuple(map(lax.stop_gradient, (a, limit)))
    fixed = (*fixed, powers(*fixed))
    # The set that is clipped at too small a t is a part of the right one, so t never grows too large.
    (t,) = _search(lambda t: (jnp.maximum(t, given_set(t, *fixed)[1]),), jnp.zeros_like(radius))
    clipped, t = given_set(t, a, limit, powers(a, limit))
    s = units * t[:, None] * a
    return jnp.where(clipped | (s > room), room, s)


def _shift(a, room, radius, p):
    """p = 1: s = a - mu, clipped to [0, room]."""
    del p

    def given_set(mu, a, room, radius):
        s = a - mu[:, None]
        clipped, free = s >= room, (s > 0) & (s < room)
        count = _sum(free.astype(a.dtype))
        root = _sum(jnp.where(free, a, 0)) + _sum(jnp.where(clipped, room, 0)) - radius
        return clipped, free, jnp.where(count > 0, root / jnp.maximum(count, 1), INF)

    def search(a, room, radius, mu):
        lowest, highest = (a - room).min(1), a.max(1)

        def step(low, high, mu):
            excess = _sum(jnp.clip(a - mu[:, None], 0, room)) - radius
            newton = given_set(mu, a, room, radius)[2]
            found = full | (newton == mu) | (jnp.abs(excess) <= 4 * jnp.finfo(mu.dtype).eps * radius)
            low, high = jnp.where(excess > 0, mu, low), jnp.where(excess < 0, mu, high)
            return low, high, jnp.where(found, mu, _bracketed(low, high, newton))

        return _search(step, lowest, highest, jnp.where(full, lowest, jnp.clip(mu, lowest, highest)))[2]

    fixed, *given = map(lax.stop_gradient, (a, room, radius))
    full = _sum(given[0]) <= given[1]
    mu, origin = jnp.zeros_like(radius), jnp.zeros_like(radius)
    # Small differences of large numbers would be rounded, so mu is found twice, then as the difference from a pixel.
    for _ in range(2):
        nearest = jnp.abs(fixed - origin[:, None] - mu[:, None]).argmin(1)
        moved = jnp.take_along_axis(fixed, nearest[:, None], 1)[:, 0]
        mu, origin = mu - (moved - origin), moved
        mu = search(fixed - origin[:, None], *given, mu)
    a = a - origin[:, None]
    clipped, free, root = given_set(mu, a, room, radius)
    s = a - jnp.where(full | ~free.any(1), mu, root)[:, None]
    return jnp.where(clipped | (free & (s > room)), room, jnp.where(free & (s > 0), s, 0))


def _stationary(a, mu, p):
    """s >= 0 with s + mu s^(p-1) = a, for mu > 0 and p > 1."""
    if p < 2:  # the same equation for s^(p-1), which makes it convex
        return _power(_stationary(a / mu, 1 / mu, dual(p)), dual(p) - 1)
    s = jnp.minimum(a, _power(a / mu, 1 / (p - 1)))  # too large, by less than a factor of 2, so Newton only falls

    def step(_, s):
        pull = mu * _power(s, p - 2)
        return jnp.maximum(s - (s + pull * s - a) / (1 + (p - 1) * pull), 0)

    return lax.fori_loop(0, 6, step, s)


def _shrink(a, room, radius, p):
    """p > 1: the stationary point for mu > 0, which is searched on a logarithmic scale."""
    units, whole = radius[:, None], room
    a, room = a / units, room / units
    fixed, limit = lax.stop_gradient(a), lax.stop_gradient(room)

    def at(log_mu):
        mu = jnp.exp(log_mu)[:, None]
        s = jnp.minimum(_stationary(fixed, mu, p), limit)
        steep = jnp.where(s < limit, mu * _power(s, 2 * p - 2) / (1 + mu * (p - 1) * _power(s, p - 2)), 0)
        return s, jnp.log(jnp.maximum(norm(s, p), 1e-30)), _sum(steep) / jnp.maximum(_sum(_power(s, p)), 1e-30)

    def step(low, high, log_mu):
        _, excess, slope = at(log_mu)
        found = (jnp.abs(excess) < 1e-6) | (high - low < 1e-6)
        low, high = jnp.where(excess > 0, log_mu, low), jnp.where(excess < 0, log_mu, high)
        newton = jnp.where(slope > 0, log_mu + excess / jnp.where(slope > 0, slope, 1), INF)
        return low, high, jnp.where(found, log_mu, _bracketed(low, high, newton))

    highest = jnp.log(norm(fixed, dual(p)))  # there even without the box the norm is at most the radius
    log_mu = _search(step, highest - 40, highest, highest)[2]
    mu, s = jnp.exp(log_mu), at(log_mu)[0]
    # The last step is one of Newton's method in all unknowns: it has the derivative of the solution.
    free = (s > 0) & (s < limit)
    slope = jnp.where(free, _power(s, p - 1), 0)
    bend = 1 + mu[:, None] * (p - 1) * jnp.where(free, _power(s, p - 2), 0)
    missed = jnp.where(free, s + mu[:, None] * slope - a, 0)
    excess = _sum(slope * s) + _sum(_power(jnp.where(s < limit, 0, room), p)) - 1
    stiffness = _sum(slope**2 / bend)
    change = (excess / p - _sum(slope * missed / bend)) / jnp.where(stiffness > 0, stiffness, 1)
    newton = jnp.where(free, s - (missed + slope * change[:, None]) / bend, 0)
    # Lengths are in units of the radius, whose own derivative is in `units`.
    return jnp.where(s < limit, jnp.clip(units * newton, 0, whole), whole)


def _grow(a, near, far, radius, p, wanted):
    """The minimum of (s - a)^2 / 2 - nu |s|^p / p over -far <= s <= near, with nu such that its norm is the radius."""
    a, near, far, radius = map(lax.stop_gradient, (a, near, far, radius))

    def minimum(nu):
        points = [_near_minimum(a, near, nu, p), near, -far]
        if p < 2:  # on the far side there is another minimum before the corner
            points.append(-_near_minimum(-a, far, nu, p))
        values = [s * (s / 2 - a) - nu * _power(jnp.abs(s), p) / p for s in points]
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
    """The point of that norm between one of a smaller and one of a larger norm."""
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
    """The stationary point s >= a, or `near` where there is none below it: s - nu s^(p-1) = a."""
    low = jnp.clip(a, 0, near)
    if p == 1:
        return jnp.clip(a + nu, low, near)
    if p == 2:
        return jnp.where(nu < 1, jnp.minimum(a / jnp.where(nu < 1, 1 - nu, 1), near), near)

    # Newton's method, from the side on which the left-hand side, convex or concave, lets it only approach.
    def step(_, s):
        pull = nu * _power(s, p - 2)
        slope = 1 - (p - 1) * pull
        s = jnp.where(slope > 0, s - (s - pull * s - a) / jnp.where(slope > 0, slope, 1), near)
        return jnp.clip(s, low, near)

    return lax.fori_loop(0, 20, step, near if p < 2 else low)


def _lifted(a, near, far, radius, p):
    """p = inf: clipped at the radius, and where no pixel gets there, the one moved for which it costs the least."""
    del p
    limit = radius[:, None]
    s = jnp.minimum(jnp.minimum(a, near), limit)
    # What it adds to the squared distance. No difference of squares: they could overflow.
    ahead = jnp.where(near >= limit, (limit - s) * (limit + s - 2 * a), INF)
    back = jnp.where(far >= limit, (limit + s) * (limit - s + 2 * a), INF)
    best = jax.nn.one_hot(jnp.minimum(ahead, back).argmin(1), a.shape[1], dtype=bool)
    lifted = jnp.where(best, jnp.where(ahead <= back, limit, -limit), s)
    return jnp.where(s.max(1, keepdims=True) < limit, lifted, s)


def _fill(a, room, fall):
    """p = 1: the pixels of the largest gradient go as far as they can, and the last of them as far as is needed.

    `a` is at most 1. The last pixel's is found by bisection, to the last bit: sorting takes twenty times as long.
    """
    worth = a * room

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        too_much = _sum(jnp.where(a > middle[:, None], worth, 0)) > fall
        return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

    ends = jnp.zeros_like(fall), jnp.ones_like(fall)
    low, high = lax.fori_loop(0, jnp.finfo(a.dtype).nmant + 2, halve, ends)
    whole = a > high[:, None]
    last = (a > low[:, None]) & ~whole
    left = fall - _sum(jnp.where(whole, worth, 0))
    share = jnp.clip(left / jnp.maximum(_sum(jnp.where(last, worth, 0)), jnp.finfo(a.dtype).tiny), 0, 1)
    return room * jnp.where(whole, 1, jnp.where(last, share[:, None], 0))


def _spread(a, room, fall, q):
    """p > 1: s = min(t a^(q - 1), room), with t such that a s = fall."""
    weight = jnp.where(a > 0, 1, 0) if q == 1 else a if q == 2 else _power(a, q - 1)

    def given_set(t):
        clipped = t[:, None] * weight > room
        left = fall - _sum(jnp.where(clipped, a * room, 0))
        free = _sum(jnp.where(clipped, 0, a * weight))
        return jnp.where((left > 0) & (free > 0), left / jnp.where(free > 0, free, 1), t)

    # As in _stretch: the set only grows. Where the box allows no such fall, all pixels are clipped in the end.
    t = _search(lambda t: (jnp.maximum(t, given_set(t)),), jnp.zeros_like(fall))[0]
    possible = _sum(a * room) > fall
    return jnp.where(possible[:, None], jnp.minimum(t[:, None] * weight, room), jnp.where(a > 0, room, 0))


def _shrink_by(s, share, top, p):
    """Entries of any sign, shrunk by a share in [0, 1)."""
    if p == 2:
        return (1 - share) * s
    if p == INF:
        return jnp.clip(s, (share - 1) * top, (1 - share) * top)
    return jnp.sign(s) * jnp.maximum(jnp.abs(s) - share / (1 - share), 0)


def _meet(rows, a, level, shape, nu):
    """`shape(rows - nu a)` of product `level` with `a`, or as near to it as that can be; and nu, from a guess."""
    close = 4 * jnp.finfo(a.dtype).eps * (_sum(jnp.abs(a)) + jnp.abs(level))

    def step(low, high, nu):
        s, slope = jax.jvp(shape, (rows - nu[:, None] * a,), (a,))
        excess, slope = _sum(a * s) - level, _sum(a * slope)
        found = (jnp.abs(excess) <= close) | (high - low <= 1e-6 * jnp.abs(nu))
        low, high = jnp.where(excess > 0, nu, low), jnp.where(excess < 0, nu, high)
        newton = jnp.where(slope > 0, nu + excess / jnp.where(slope > 0, slope, 1), INF)
        return low, high, jnp.where(found, nu, _bracketed(low, high, newton))

    nu = _search(step, nu - 1e4, nu + 1e4, nu)[2]
    return shape(rows - nu[:, None] * a), nu
