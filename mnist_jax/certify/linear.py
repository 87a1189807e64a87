"""Linear functions taken back to the image: bounds of the steps on the way, and of the margin."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.constants import Constants
from mnist_jax.certify.region import Region
from mnist_jax.certify.relaxations import Interval, steepness
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import window
from mnist_jax.jaxprs.program import Program

LANES = 128  # linear functions that go back together


def walk(
    classifier: Classifier,
    images: jax.Array,
    radius: jax.Array,
    norm: float,
    computation: Program,
    *,
    rounded: bool = True,
) -> Bounds:
    """A walk that is about to begin."""
    constants = Constants(computation, jax.tree.leaves(classifier.params))
    bounds = Bounds(computation, constants, Region.around(images, radius), norm, rounded)
    bounds.begin()
    return bounds


# A way to bound linear functions: as `Bounds.back` with the walk, the place of an equation, functions and constants.
Way = Callable[[Bounds, int, dict[int, jax.Array], jax.Array], tuple[jax.Array, jax.Array]]


def tighten(
    way: Way, bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array
) -> Interval:
    """Bounds of the entries where they are wanted: for an image at a time, as other images want others.

    What is affine in the image is the same function for all of them, and taken back once. Entries that see little, as
    in convolutions, go back in blocks, and only through what these see.
    """
    shape, batch = interval.low.shape[:-1], interval.low.shape[-1]
    size = interval.low[..., 0].size
    center, off = (x.reshape(size, batch) for x in bounds.combined(factors))
    wanted = wanted.reshape(size, batch)
    view = window.view(bounds.program, place, list(factors), LANES // 2)
    groups = _entries if view is None else partial(_blocks, window.blocks(shape, view.block))

    def seen(bounds: Bounds, entries: jax.Array) -> tuple[Bounds, int, dict[int, jax.Array]]:
        """The walk for these entries, up to a place, and functions that are 1 in one of them, and then -1."""
        if view is None:
            one = jax.nn.one_hot(entries, size, axis=0, dtype=center.dtype).reshape(*shape, -1)
            part, end, numbers = bounds, place, {n: n for n in factors}
        else:
            one = jnp.eye(len(entries), dtype=center.dtype).reshape(*view.block, -1)
            part = bounds.within(view, jnp.stack(jnp.unravel_index(entries[0], shape)))
            end, numbers = len(view.program.equations), view.targets
        both = jnp.concatenate([one, -one], -1)
        return part, end, {numbers[n]: f * both for n, f in factors.items()}

    def better(wanted: jax.Array, least: Callable, found: Interval) -> Interval:
        """Goes through the entries that are wanted `[size]`; `least` is given some at a time."""
        entries, count = groups(wanted)

        def some(k: Any, found: Interval) -> Interval:
            low, high = least(entries[k])
            return Interval(
                found.low.at[entries[k]].set(jnp.maximum(found.low[entries[k]], low)),
                found.high.at[entries[k]].set(jnp.minimum(found.high[entries[k]], -high)),
            )

        return jax.lax.fori_loop(0, count, some, found)

    def of_all(entries: jax.Array) -> list[jax.Array]:
        part, end, functions = seen(bounds, entries)
        a = part.affine_back(end, functions)
        least = jnp.split(part.region.least_of_all(a, bounds.p), 2)
        return [part.total(s * center[entries], off[entries], x) for s, x in zip((1, -1), least, strict=True)]

    def of_one(i: Any, found: Interval) -> Interval:
        whole, own, own_off = bounds.of(i), center[:, i], off[:, i]

        def least(entries: jax.Array) -> list[jax.Array]:
            part, end, functions = seen(whole, entries)
            at = jnp.concatenate([own[entries], -own[entries]]) - jnp.concatenate([own_off[entries]] * 2)
            return jnp.split(way(part, end, functions, at)[0], 2)

        new = better(wanted[:, i], least, Interval(found.low[:, i], found.high[:, i]))
        return Interval(found.low.at[:, i].set(new.low), found.high.at[:, i].set(new.high))

    flat = Interval(*(z.reshape(size, batch) for z in interval))
    if any(bounds.values[n].bent for n in factors):
        found = jax.lax.fori_loop(0, batch, of_one, flat)
    else:
        found = better(wanted.any(1), of_all, flat)
    return Interval(*(z.reshape(*shape, batch) for z in found))


def _entries(wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Entries `[K, L]`, so many at a time, of which as many rows as are told have all that are wanted `[size]`."""
    together = min(LANES // 2, len(wanted))
    order = jnp.argsort(~wanted)
    order = jnp.concatenate([order, jnp.repeat(order[-1:], -len(wanted) % together)])
    return order.reshape(-1, together), -(-wanted.sum() // together)


def _blocks(entries: np.ndarray, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As `_entries`, of blocks with these entries `[K, L]`."""
    some = wanted[entries].any(1)
    return jnp.asarray(entries)[jnp.argsort(~some)], some.sum()


def leads(bounds: Bounds, labels: jax.Array, ways: Sequence[Way]) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the label's logit less each of the others `[C, B]`, inf for the label itself.

    They are the best by any of the ways or by intervals; where the first of them is nearly attained comes with it,
    differences to the images `[C, 1, *shape, B]`.
    """
    number, end = bounds.program.logits, len(bounds.program.equations)
    (center, off), classes = bounds.combined({number: 1.0}), bounds.program.shapes[number].shape[1]
    label = jax.nn.one_hot(labels, classes, axis=0, dtype=center.dtype)[None]

    def lead(other: jax.Array) -> tuple[jax.Array, jax.Array]:
        function = label - jax.nn.one_hot(other, classes, dtype=center.dtype)[None, :, None]
        at = (function * center - jnp.abs(function) * off).sum((0, 1))
        found = [bounds.back(end, {number: function}, at, whole=False)]
        found += [way(bounds, end, {number: function}, at) for way in ways]
        least = reduce(jnp.maximum, [bound for bound, _ in found])  # NaN stays
        return jnp.where(other == labels, jnp.inf, least), found[min(1, len(ways))][1]

    return jax.lax.map(lead, jnp.arange(classes))


def margin(bounds: Bounds, labels: jax.Array, ways: Sequence[Way]) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the margin `[B]`, the best of `leads`, and candidates by the first of the ways."""
    least, where = leads(bounds, labels, ways)
    worst = least.argmin(0)
    d = jax.vmap(lambda d, c: d[c], (-1, 0), -1)(where, worst)
    return least.min(0), bounds.region.at(d)


def with_slopes(
    rule: str, bounds: Bounds, place: int, functions: dict[int, jax.Array], constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Bounds with slopes below by a rule of `relaxations.steepness`."""

    def slope(place: int) -> jax.Array | None:
        ramp = bounds.nodes[place].ramp
        return None if ramp is None else steepness(ramp.d, rule)

    return bounds.back(place, functions, constant, slope)
