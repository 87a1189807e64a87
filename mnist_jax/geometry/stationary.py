"""Stationary points of the distance to a point, under a bound on the p-norm and inside the box.

All projections solve one equation in one unknown. By symmetry let `a = |v|`, and let `c >= 0` be the room that the box
leaves in the direction of v. The point closest to v with `norm(s) = radius` minimizes the Lagrangian
`(s - a)^2 / 2 + mu s^p / p` over 0 <= s <= c, a pixel at a time: its stationary point has

    s + mu s^(p - 1) = a,    clipped at c,

with mu >= 0 where v is too far out (the projection onto a ball, convex) and mu < 0 where v is too far in (onto the
sphere from inside, not convex). What is left is to find mu. Once it is known which pixels are clipped, p = 1 and p = 2
give it in closed form, so there the search is for that set, and ends (compare Michelot, "A finite algorithm for finding
the projection of a point onto the canonical simplex of R^n", 1986). Every other p takes Newton's method. The searches
are not differentiated; the formula or Newton step that ends them is, which is the implicit function theorem.

Everything here is about rows `[B, D]` of absolute values: a = |v|, and the room in the direction of v.
"""

import jax.numpy as jnp
from jax import lax

from mnist_jax.geometry.norms import INF, dual, norm
from mnist_jax.geometry.rows import power, sum_of_rows


def solve(a, room, radius, p, wanted):
    """Stationary points 0 <= s <= room of that norm (or of the largest that the room allows), in the wanted rows.

    For p other than 1 and 2 the norm of min(a, room) must be the larger one.
    """
    a = jnp.where(wanted[:, None], a, 1 / a.shape[1])  # elsewhere a row that is found at once
    room = jnp.where(wanted[:, None], room, 1)
    radius = jnp.where(wanted & (radius > 0), radius, 0.5)
    return {1: _shift, 2: stretch}.get(p, _shrink)(a, room, radius, p)


def fixed_point(step, *start, limit=100):
    """Repeats `step` on arrays `[B]` until nothing changes."""

    def changes(state):
        count, before, now = state
        return (count < limit) & (before != now).any()

    def body(state):
        count, _, now = state
        return count + 1, now, jnp.stack(step(*now))

    now = jnp.stack(start)
    return lax.while_loop(changes, body, (0, now + 1, now))[2]


def bracketed(low, high, guess):
    """The guess where it is strictly inside the bracket, else the middle."""
    return jnp.where((guess > low) & (guess < high), guess, (low + high) / 2)


def stretch(a, room, radius, p):
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
        return (a**2, limit**2) if p == 2 else (power(a, p), power(limit, p))

    def given_set(t, a, limit, powers):
        clipped = t[:, None] * a > limit
        left = 1 - sum_of_rows(jnp.where(clipped, powers[1], 0))
        free = sum_of_rows(jnp.where(clipped, 0, powers[0]))
        solvable = (left > 0) & (free > 0)
        share = jnp.where(solvable, left, 1) / jnp.where(solvable, free, 1)
        return clipped, jnp.where(solvable, jnp.sqrt(share) if p == 2 else share ** (1 / p), t)

    fixed = tuple(map(lax.stop_gradient, (a, limit)))
    fixed = (*fixed, powers(*fixed))
    # The set that is clipped at too small a t is a part of the right one, so t never grows too large.
    (t,) = fixed_point(lambda t: (jnp.maximum(t, given_set(t, *fixed)[1]),), jnp.zeros_like(radius))
    clipped, t = given_set(t, a, limit, powers(a, limit))
    s = units * t[:, None] * a
    return jnp.where(clipped | (s > room), room, s)


def _shift(a, room, radius, p):
    """p = 1: s = a - mu, clipped to [0, room]."""
    del p

    def given_set(mu, a, room, radius):
        s = a - mu[:, None]
        clipped, free = s >= room, (s > 0) & (s < room)
        count = sum_of_rows(free.astype(a.dtype))
        root = sum_of_rows(jnp.where(free, a, 0)) + sum_of_rows(jnp.where(clipped, room, 0)) - radius
        return clipped, free, jnp.where(count > 0, root / jnp.maximum(count, 1), INF)

    def search(a, room, radius, mu):
        lowest, highest = (a - room).min(1), a.max(1)

        def step(low, high, mu):
            excess = sum_of_rows(jnp.clip(a - mu[:, None], 0, room)) - radius
            newton = given_set(mu, a, room, radius)[2]
            found = full | (newton == mu) | (jnp.abs(excess) <= 4 * jnp.finfo(mu.dtype).eps * radius)
            low, high = jnp.where(excess > 0, mu, low), jnp.where(excess < 0, mu, high)
            return low, high, jnp.where(found, mu, bracketed(low, high, newton))

        return fixed_point(step, lowest, highest, jnp.where(full, lowest, jnp.clip(mu, lowest, highest)))[2]

    fixed, *given = map(lax.stop_gradient, (a, room, radius))
    full = sum_of_rows(given[0]) <= given[1]
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
        return power(_stationary(a / mu, 1 / mu, dual(p)), dual(p) - 1)
    s = jnp.minimum(a, power(a / mu, 1 / (p - 1)))  # too large, by less than a factor of 2, so Newton only falls

    def step(_, s):
        pull = mu * power(s, p - 2)
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
        steep = jnp.where(s < limit, mu * power(s, 2 * p - 2) / (1 + mu * (p - 1) * power(s, p - 2)), 0)
        return (
            s,
            jnp.log(jnp.maximum(norm(s, p), 1e-30)),
            sum_of_rows(steep) / jnp.maximum(sum_of_rows(power(s, p)), 1e-30),
        )

    def step(low, high, log_mu):
        _, excess, slope = at(log_mu)
        found = (jnp.abs(excess) < 1e-6) | (high - low < 1e-6)
        low, high = jnp.where(excess > 0, log_mu, low), jnp.where(excess < 0, log_mu, high)
        newton = jnp.where(slope > 0, log_mu + excess / jnp.where(slope > 0, slope, 1), INF)
        return low, high, jnp.where(found, log_mu, bracketed(low, high, newton))

    highest = jnp.log(norm(fixed, dual(p)))  # there even without the box the norm is at most the radius
    log_mu = fixed_point(step, highest - 40, highest, highest)[2]
    mu, s = jnp.exp(log_mu), at(log_mu)[0]
    # The last step is one of Newton's method in all unknowns: it has the derivative of the solution.
    free = (s > 0) & (s < limit)
    slope = jnp.where(free, power(s, p - 1), 0)
    bend = 1 + mu[:, None] * (p - 1) * jnp.where(free, power(s, p - 2), 0)
    missed = jnp.where(free, s + mu[:, None] * slope - a, 0)
    excess = sum_of_rows(slope * s) + sum_of_rows(power(jnp.where(s < limit, 0, room), p)) - 1
    stiffness = sum_of_rows(slope**2 / bend)
    change = (excess / p - sum_of_rows(slope * missed / bend)) / jnp.where(stiffness > 0, stiffness, 1)
    newton = jnp.where(free, s - (missed + slope * change[:, None]) / bend, 0)
    # Lengths are in units of the radius, whose own derivative is in `units`.
    return jnp.where(s < limit, jnp.clip(units * newton, 0, whole), whole)
