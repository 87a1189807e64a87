"""Bounds by backward propagation: of the arguments of nonlinear operations, of the leads and of the margin.

The lead of the label over another class is the label's logit minus that class's logit: a linear function of the logits
that is positive while the label is ahead of that class. The margin is the least lead.
"""

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

LANES = 128  # linear functions that are propagated backwards together; chosen by hand


def walk(
    classifier: Classifier,
    images: jax.Array,
    radius: jax.Array,
    norm: float,
    computation: Program,
    *,
    rounded: bool = True,
) -> Bounds:
    """A `Bounds` of a classifier's computation over a ball around each image, in which only the image is bounded yet.

    `rounded` says whether its bounds allow for rounding errors, as in `Bounds`.
    """
    constants = Constants(computation, jax.tree.leaves(classifier.params))
    bounds = Bounds(computation, constants, Region.around(images, radius), norm, rounded)
    bounds.begin()
    return bounds


# A method that bounds linear functions from below, with the arguments and results of `Bounds.back`: the bounds, the
# index of an equation, coefficients and constants.
Method = Callable[[Bounds, int, dict[int, jax.Array], jax.Array], tuple[jax.Array, jax.Array]]


def tighten(
    method: Method, bounds: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array
) -> Interval:
    """Tighter bounds of a linear combination of values, by backward propagation of the entries that are wanted.

    Values that are affine in the image have the same coefficients for all images, and are propagated once. Others are
    propagated for one image after another, as each image wants other entries. Entries with a small receptive field, as
    in convolutions, are propagated in blocks, and only through their receptive field.

    Args:
      method: bounds linear functions from below.
      place: index of the equation that uses the combination; its values are computed by earlier equations.
      factors: the factor of each value in the combination, by the number of the value.
      interval: the bounds known so far, `[*shape, B]`.
      wanted: which entries to bound, `[*shape, B]`: those for which tighter bounds are of use.
    """
    shape, batch = interval.low.shape[:-1], interval.low.shape[-1]
    size = interval.low[..., 0].size
    center, off = (x.reshape(size, batch) for x in bounds.combined(factors))
    wanted = wanted.reshape(size, batch)
    view = window.view(bounds.program, place, list(factors), LANES // 2)
    groups = _entries if view is None else partial(_blocks, window.blocks(shape, view.block))

    def seen(bounds: Bounds, entries: jax.Array) -> tuple[Bounds, int, dict[int, jax.Array]]:
        """The bounds that entries `[L]` need, the index to begin at, and functions: each entry, then minus each."""
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
        """The interval with better bounds of the entries that are wanted `[size]`, which `least` bounds in groups."""
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
            return jnp.split(method(part, end, functions, at)[0], 2)

        new = better(wanted[:, i], least, Interval(found.low[:, i], found.high[:, i]))
        return Interval(found.low.at[:, i].set(new.low), found.high.at[:, i].set(new.high))

    flat = Interval(*(z.reshape(size, batch) for z in interval))
    if any(bounds.values[n].nonlinear for n in factors):
        found = jax.lax.fori_loop(0, batch, of_one, flat)
    else:
        found = better(wanted.any(1), of_all, flat)
    return Interval(*(z.reshape(*shape, batch) for z in found))


def _entries(wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All entries in groups `[K, L]`, those wanted `[size]` first, and how many of the groups have a wanted one."""
    together = min(LANES // 2, len(wanted))
    order = jnp.argsort(~wanted)
    order = jnp.concatenate([order, jnp.repeat(order[-1:], -len(wanted) % together)])
    return order.reshape(-1, together), -(-wanted.sum() // together)


def _blocks(entries: np.ndarray, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The blocks with entries `[K, L]`, those with a wanted entry first, and how many of these there are."""
    some = wanted[entries].any(1)
    return jnp.asarray(entries)[jnp.argsort(~some)], some.sum()


def leads(bounds: Bounds, labels: jax.Array, methods: Sequence[Method]) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the label's lead over each class `[C, B]`, inf for the label itself.

    They are the best of those by interval arithmetic and by each of `methods`. With them come differences to
    the images `[C, 1, *shape, B]` at which the bound by the first of the methods is nearly attained.
    """
    number, end = bounds.program.logits, len(bounds.program.equations)
    (center, off), classes = bounds.combined({number: 1.0}), bounds.program.shapes[number].shape[1]
    label = jax.nn.one_hot(labels, classes, axis=0, dtype=center.dtype)[None]

    def lead(other: jax.Array) -> tuple[jax.Array, jax.Array]:
        function = label - jax.nn.one_hot(other, classes, dtype=center.dtype)[None, :, None]
        at = (function * center - jnp.abs(function) * off).sum((0, 1))
        found = [bounds.back(end, {number: function}, at, whole=False)]
        found += [method(bounds, end, {number: function}, at) for method in methods]
        least = reduce(jnp.maximum, [bound for bound, _ in found])  # NaN stays
        return jnp.where(other == labels, jnp.inf, least), found[min(1, len(methods))][1]

    return jax.lax.map(lead, jnp.arange(classes))


def margin(bounds: Bounds, labels: jax.Array, methods: Sequence[Method]) -> tuple[jax.Array, jax.Array]:
    """Lower bounds of the margin `[B]`, the least of `leads`, and the images `[B, *shape]` that belong to these."""
    return least_of(bounds, *leads(bounds, labels, methods))


def least_of(bounds: Bounds, least: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least of the bounds that `leads` gives, `[B]`, and the images `[B, *shape]` that belong to these."""
    worst = least.argmin(0)
    d = jax.vmap(lambda d, c: d[c], (-1, 0), -1)(where, worst)
    return least.min(0), bounds.region.at(d)


def with_slopes(
    rule: str, bounds: Bounds, place: int, functions: dict[int, jax.Array], constant: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lower bounds as by `Bounds.back`, where `relaxations.steepness` chooses the slopes of lower lines by `rule`."""

    def slope(place: int) -> jax.Array | None:
        ramp = bounds.nodes[place].ramp
        return None if ramp is None else steepness(ramp.d, rule)

    return bounds.back(place, functions, constant, slope)
