"""Stationary points of the distance to a point v, for a given p-norm and inside the box: what projections need.

All projections solve one equation in one unknown. By symmetry let `a = |v|`, and let `c >= 0` be the room that the box
leaves in the direction of v. The point closest to v with `norm(s) = radius` minimizes the Lagrangian
`(s - a)^2 / 2 + mu s^p / p` over 0 <= s <= c, separately for each pixel: its stationary point has

    s + mu s^(p - 1) = a,    clipped at c,

with mu >= 0 where v is outside of the ball (its projection onto the ball, a convex problem) and mu < 0 where v is
inside (its projection onto the sphere, not convex). It remains to find mu. Given the set of pixels that are clipped,
p = 1 and p = 2 have mu in closed form; so the iteration is over that set, and finite (compare Michelot, "A finite
algorithm for finding the projection of a point onto the canonical simplex of R^n", 1986). For every other p it is
Newton's method. The iterations are not differentiated, only the formula or Newton step that ends them; by the implicit
function theorem that is the derivative of the solution.

All functions take rows `[B, D]`: a = |v|, and the room in the direction of v.
"""

import jax.numpy as jnp
from jax import lax

from mnist_jax.geometry.norms import INF, dual, norm
from mnist_jax.geometry.rows import power, sum_of_rows


def solve(a, room, radius, p, wanted):
    """Stationary points 0 <= s <= room `[B, D]` of p-norm `radius` (or the largest that the room allows).

    Only rows where `wanted [B]` are meaningful. For p other than 1 and 2 the norm of min(a, room) must be above radius.
    """
    a = jnp.where(wanted[:, None], a, 1 / a.shape[1])  # in other rows, values for which the iteration ends at once
    room = jnp.where(wanted[:, None], room, 1)
    radius = jnp.where(wanted & (radius > 0), radius, 0.5)
    return {1: _shift, 2: stretch}.get(p, _shrink)(a, room, radius, p)


def fixed_point(step, *start, limit=100):
    """Repeats `step` on arrays `[B]` until nothing changes, or `limit` times."""

    def changes(state):
        count, before, now = state
        return (count < limit) & (before != now).any()

    def body(state):
        count, _, now = state
        return count + 1, now, jnp.stack(step(*now))

    now = jnp.stack(start)
    return lax.while_loop(changes, body, (0, now + 1, now))[2]


def bracketed(low, high, guess):
    """`guess` where it is strictly between `low` and `high`, else their mean."""
    return jnp.where((guess > low) & (guess < high), guess, (low + high) / 2)


def stretch(a, room, radius, p):
    """`s = min(t a, room)` with the t for which its p-norm is `radius`; for p = 2 the stationary point."""
    if p == INF:
        largest = jnp.where(room >= radius[:, None], a, 0).max(1, keepdims=True)  # of pixels with room for the radius
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
    # Pixels that are clipped at too small a t are clipped at the solution, too, so that t never exceeds it.
    (t,) = fixed_point(lambda t: (jnp.maximum(t, given_set(t, *fixed)[1]),), jnp.zeros_like(radius))
    clipped, t = given_set(t, a, limit, powers(a, limit))
    s = units * t[:, None] * a
    return jnp.where(clipped | (s > room), room, s)


def _shift(a, room, radius, p):
    """The stationary point for p = 1: s = a - mu, clipped to [0, room]."""
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
    # Where mu is large, a - mu is a small difference of large numbers. So it is found once, and then once more relative
    # to the pixel a that is nearest to it, which loses no digits.
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
    """The solution s >= 0 of s + mu s^(p-1) = a, for mu > 0 and p > 1, by Newton's method."""
    if p < 2:  # the same equation, in the unknown s^(p-1), for the dual exponent, which is above 2: so it is convex
        return power(_stationary(a / mu, 1 / mu, dual(p)), dual(p) - 1)
    # At or above the solution, by less than a factor of 2: from there Newton's method only decreases.
    s = jnp.minimum(a, power(a / mu, 1 / (p - 1)))

    def step(_, s):
        pull = mu * power(s, p - 2)
        return jnp.maximum(s - (s + pull * s - a) / (1 + (p - 1) * pull), 0)

    return lax.fori_loop(0, 6, step, s)


def _shrink(a, room, radius, p):
    """The stationary point for p > 1 and mu > 0, by a bracketed Newton's method on the logarithm of mu."""
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

    highest = jnp.log(norm(fixed, dual(p)))  # an upper bound of log mu: there the norm is at most the radius
    log_mu = fixed_point(step, highest - 40, highest, highest)[2]
    mu, s = jnp.exp(log_mu), at(log_mu)[0]
    # The last step is one of Newton's method in all unknowns, s and mu: its derivative is that of the solution.
    free = (s > 0) & (s < limit)
    slope = jnp.where(free, power(s, p - 1), 0)
    bend = 1 + mu[:, None] * (p - 1) * jnp.where(free, power(s, p - 2), 0)
    missed = jnp.where(free, s + mu[:, None] * slope - a, 0)
    excess = sum_of_rows(slope * s) + sum_of_rows(power(jnp.where(s < limit, 0, room), p)) - 1
    stiffness = sum_of_rows(slope**2 / bend)
    change = (excess / p - sum_of_rows(slope * missed / bend)) / jnp.where(stiffness > 0, stiffness, 1)
    newton = jnp.where(free, s - (missed + slope * change[:, None]) / bend, 0)
    # `newton` is in units of the radius; the derivative with respect to the radius comes in by `units`.
    return jnp.where(s < limit, jnp.clip(units * newton, 0, whole), whole)
