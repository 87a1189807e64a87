"""Domains, the sub-problems of branch and bound, and the compiled programs that bound functions over many of them.

A domain is the part of the region around an image in which some ramps (ReLUs, maxima, absolute values: operations
`base + max(d, 0)`) have a given sign of their difference d. Every program has a fixed number of lanes, each with a
domain of its own, on the last axis of all arrays.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.planes import Planes, Ramps
from mnist_jax.certify.relaxations import Interval, Ramp, steepness
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import program

# Adam's first step lengths for slopes, for multipliers (in units of the largest coefficient of the ramp's result), and
# for the logarithm of the lead's weight; they fall to a tenth of it. Chosen, not tuned.
SLOPE, MULTIPLIER, WEIGHT = 0.3, 0.1, 0.5
# The same for planes. On 64 bounds of the second layer of experiments/questions.py's network `dense2`, of tilts of 0.1,
# 0.3 and 1, and levels of 0.03, 0.1 and 0.3, these were best after 12 and after 25 steps.
LEVEL, TILT = 0.1, 0.3
SOONER = 0.5  # both of Adam's decay rates, as small as in `alpha_crown` because there are few steps


class Domain(NamedTuple):
    """Part of the region around an image, in which the lead of the label over one other class is to be bounded.

    The lead is the label's logit minus the other class's: a linear function of the logits that is positive while the
    label is ahead of that class.

    Attributes:
      bound: a lower bound of the lead in the domain; where `narrowed`, its sign is all that it says.
      image, other: the image's place among the images, and the other class.
      boxes: `[*shape]` each, bounds of the arguments of the nonlinear operations, in the order of the equations.
      signs: `[*shape]` int8 for each ramp: the sign that its difference has in the domain, 0 where it is not fixed.
      narrowed: whether `boxes` hold only for those images of the domain whose lead is not positive.
      gain: by how much the split that made the domain raised the bound, as the mean of both halves; 0 for a domain
        that no split made.
    """

    bound: float
    image: int
    other: int
    boxes: tuple[Interval, ...]
    signs: tuple[np.ndarray, ...]
    narrowed: bool = False
    gain: float = 0.0


class Target(NamedTuple):
    """The functions that the lanes bound from below: `sign * (entry of a ramp's argument) + weight * lead`.

    Where the lead is not positive, such a function is at most `sign * entry`, so that a lower bound of it bounds the
    entry there.

    Attributes:
      ramp: `[N]`, the number of the ramp.
      entry: `[N]`, the entry's place in the ramp's flattened result.
      sign: `[N]`, 1 or -1; 0 for the lead alone, whose weight is then 1.
      weight: `[N]`, at least 0, where the optimization of the lead's weight starts.
    """

    ramp: Any
    entry: Any
    sign: Any
    weight: Any


class Bounded(NamedTuple):
    """Bounds of the targets, one for every lane, and what was found beside them.

    Attributes:
      bound: `[N]`, a lower bound of the target in the domain, inf where the domain is empty.
      candidates: `[N, *shape]`, images of the region at which the bound is nearly attained.
      fooled: `[N]`, whether these images are adversarial.
      scores: `[R, N]`, for each entry of all ramps the most by which its linear relaxation may lower the bound; 0 where
        its sign is known.
    """

    bound: Any
    candidates: Any
    fooled: Any
    scores: Any


def platform_for(classifier: Classifier, shape: tuple[int, ...], dtype: Any) -> str:
    """The name of the platform in use, as `program.read` takes it."""
    usual, here = program.read(classifier, shape, dtype, driver.OTHERS), jax.default_backend()
    return here if here in usual.platforms else driver.OTHERS


@partial(jax.jit, static_argnums=(0, 1))
def root(platform: str, norm: float, classifier: Classifier, images, labels, radius):
    """Bounds of an image's whole region by CROWN.

    Returns:
      lower bounds of the leads `[C, 1]`; for each nonlinear operation, in the order of the equations, a dictionary of
      its equation's place and the bounds of its argument; arrays of the shapes of the ramps, by that place; and whether
      planes above the first ramps may give better bounds of a ramp's argument.
    """
    bounds, kept = _walk(platform, norm, classifier, images, radius), []

    def tighten(walk: Bounds, place: int, *given: Any) -> Interval:
        better = linear.tighten(Bounds.back, walk, place, *given)
        kept.append({place: better})
        return better

    bounds.forwards(tighten)
    leads, _ = linear.leads(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
    ramps = _ramps(bounds)
    sizes = {place: ramp.d.low for place, ramp in ramps.items()}
    if bounds.first_ramps() is None:
        return leads, kept, sizes, dict.fromkeys(ramps, False)
    above = {place: any(bounds.values[n].nonlinear for n in bounds.nodes[place].arguments) for place in ramps}
    return leads, kept, sizes, above


@partial(jax.jit, static_argnums=(0, 1))
def bounded(
    platform: str,
    norm: float,
    classifier: Classifier,
    images: jax.Array,
    labels: jax.Array,
    radius: jax.Array,
    others: jax.Array,
    boxes: list[Interval],
    signs: dict[int, jax.Array],
    target: Target,
    multipliers: dict[int, jax.Array],
    steps: jax.Array,
) -> Bounded:
    """Bounds each target over its domain, with slopes, multipliers and lead's weight optimized by Adam.

    The multipliers are those of the fixed signs (beta-CROWN, see `Bounds.taken_back`); the bound holds for any of at
    least 0. With a weight of the lead above 0, the bound of an entry holds for images whose lead is not positive, the
    only ones that a proof has to exclude (Kotha et al., "Provably bounding neural network preimages", 2023, section
    3.1, has multipliers for constraints on the output in the same way).

    Args:
      platform, norm, classifier: as in `root`.
      images, labels, radius, others: `[N, *shape]` and `[N]`, of each lane.
      boxes, signs: as in `Domain`, with the lanes last; signs by the place of the ramp's equation.
      target: the functions to bound.
      multipliers: by the place of the ramp's equation, `[*shape, N]`, at least 0, where their optimization starts.
      steps: the number of Adam's steps.
    """
    bounds, asked = _again(platform, norm, classifier, images, radius, boxes, signs)
    objective, end = _objective(bounds, asked, labels, others, target), len(bounds.program.equations)
    ramps, coefficients = _ramps(bounds), {}

    first = bounds.first_ramps()

    def bound(free):
        slopes, less, log_weight, planes = free

        def subtracted(place: int, a: jax.Array) -> jax.Array | None:
            if place not in less:  # not a ramp
                return None
            coefficients[place] = a
            return signs[place] * less[place]

        def above(place: int) -> tuple[Ramps, Planes] | None:
            return None if first is None or place != first[0] else (first[1], planes)

        weight = jnp.where(target.sign == 0, 1, target.weight * jnp.exp(log_weight))
        return bounds.back(end, *objective(weight), slopes.get, multipliers=subtracted, above=above)

    slopes = {place: steepness(ramp.d, "adaptive") for place, ramp in ramps.items()}
    chords = None if first is None else first[1].chords(ramps[first[0]].d)
    begin = (slopes, multipliers, jnp.zeros_like(target.weight), chords)
    bound(begin)  # fills `coefficients`
    none = {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()}
    scales = {
        place: jnp.abs(a).max(tuple(range(a.ndim - 1)), keepdims=True) for place, a in (none | coefficients).items()
    }
    best, free, mean = _optimized(bound, begin, steps, scales)
    coefficients.clear()
    last, where = bound(free)
    empty = sum((ramp.d.low > ramp.d.high).any(tuple(range(ramp.d.low.ndim - 1))) for ramp in ramps.values())
    best = jnp.maximum(best, last)  # NaN in either is kept, and then proves nothing
    best = jnp.where(jnp.isfinite(best), best, -jnp.inf)
    best = jnp.where(empty > 0, jnp.where(jnp.isfinite(bounds.underflow), jnp.inf, -jnp.inf), best)
    tried = [bounds.region.at(d) for d in (where, mean)]
    fooled, also = (driver.misclassified(classifier, candidates, labels) for candidates in tried)
    candidates = jnp.where(fooled.reshape(-1, *[1] * (images.ndim - 1)), *tried)
    scores = [
        _score(ramp, (none | coefficients)[place], free[0][place]).reshape(-1, len(labels))
        for place, ramp in ramps.items()
    ]
    return Bounded(best, candidates, fooled | also, jnp.concatenate(scores))


@partial(jax.jit, static_argnums=(0, 1))
def pieces(platform: str, norm: float, classifier: Classifier, images, labels, radius, others, boxes, signs, target):
    """Linear functions of the image below the targets, over their domains.

    Where the signs of all ramps are known, these are the targets themselves, up to rounding.

    Returns:
      coefficients `[N, *shape]`, values at the lanes' images `[N]`, and the signs `[R, N]` of the ramps' differences, 0
      where unknown.
    """
    bounds, asked = _again(platform, norm, classifier, images, radius, boxes, signs)
    weight = jnp.where(target.sign == 0, 1, target.weight)
    functions = _objective(bounds, asked, labels, others, target)(weight)
    a, constant = bounds.taken_back(len(bounds.program.equations), *functions)
    shift = bounds.region.images - bounds.region.center
    at = constant + (a * shift).sum(tuple(range(a.ndim - 1)))
    return jnp.moveaxis(a[0], -1, 0), at, _signs_now(bounds)


@partial(jax.jit, static_argnums=(0, 1))
def signs_at(platform: str, norm: float, classifier: Classifier, images) -> jax.Array:
    """The signs `[R, N]` of the ramps' differences at images `[N, *shape]`, the network's activation patterns."""
    bounds = _walk(platform, norm, classifier, images, jnp.zeros(len(images), images.dtype))
    bounds.forwards(lambda walk, place, factors, interval, wanted: interval)
    signs = [jnp.where(ramp.argument >= ramp.base, 1, -1) for ramp in _ramps(bounds).values()]
    return jnp.concatenate([s.reshape(-1, len(images)) for s in signs]).astype(jnp.int8)


def _walk(platform: str, norm: float, classifier: Classifier, images: jax.Array, radius: jax.Array) -> Bounds:
    computation = program.read(classifier, images.shape[1:], images.dtype, platform)
    return linear.walk(classifier, images, radius, norm, computation)


def _again(platform, norm, classifier, images, radius, boxes, signs) -> tuple[Bounds, dict[int, dict[int, float]]]:
    """The forward pass with known bounds of all arguments; and for each nonlinear operation, by its equation's place,
    the factors of the values that its argument is a sum of."""
    bounds = _walk(platform, norm, classifier, images, radius)
    bounds.splits, kept, asked = signs, iter(boxes), {}

    def known(walk: Bounds, place: int, factors: dict[int, float], interval: Interval, wanted: jax.Array) -> Interval:
        asked[place] = factors
        return interval.within(next(kept))

    bounds.forwards(known)
    return bounds, asked


def _ramps(bounds: Bounds) -> dict[int, Ramp]:
    return {place: node.ramp for place, node in bounds.nodes.items() if node.ramp is not None}


def _signs_now(bounds: Bounds) -> jax.Array:
    ramps = _ramps(bounds).values()
    signs = [jnp.where(ramp.d.low >= 0, 1, jnp.where(ramp.d.high <= 0, -1, 0)) for ramp in ramps]
    return jnp.concatenate([s.reshape(-1, s.shape[-1]) for s in signs]).astype(jnp.int8)


def _objective(bounds: Bounds, asked: dict[int, dict[int, float]], labels, others, target: Target):
    """A function of the lead's weight that returns the targets as `Bounds.back` takes them: functions and constant."""
    number = bounds.program.logits
    center, off = bounds.combined({number: 1.0})
    classes = bounds.program.shapes[number].shape[1]
    lead = sum(
        sign * jax.nn.one_hot(which, classes, axis=0, dtype=center.dtype)[None]
        for sign, which in ((1, labels), (-1, others))
    )
    of_lead = (lead * center - jnp.abs(lead) * off).sum((0, 1))
    functions: dict[int, jax.Array] = {}
    constant = jnp.zeros_like(of_lead)
    for n, (place, ramp) in enumerate(_ramps(bounds).items()):
        center, off = bounds.combined(asked[place])
        sign = jnp.where(target.ramp == n, target.sign, 0).astype(center.dtype)
        size = ramp.d.low[..., 0].size
        one = (jax.nn.one_hot(target.entry, size, axis=0, dtype=center.dtype) * sign[None]).reshape(center.shape)
        constant = constant + (one * center - jnp.abs(one) * off).reshape(-1, len(sign)).sum(0)
        for value, factor in asked[place].items():
            functions[value] = functions.get(value, 0) + factor * one

    def weighted(weight: jax.Array) -> tuple[dict[int, jax.Array], jax.Array]:
        return functions | {number: weight[None, None] * lead}, constant + weight * of_lead

    return weighted


def _optimized(bound, begin, steps, scales):
    """Maximizes bounds by Adam over slopes in [0, 1], multipliers of at least 0, the lead's weight, and planes.

    The point at which a bound is attained jumps from corner to corner of the region. The mean of these points tends to
    the minimizer of the relaxed problem as the multipliers tend to the best ones (Shor, "Minimization methods for
    non-differentiable functions", 1985).

    Args:
      bound: a function of the variables that returns bounds `[N]` and points where they are attained.
      begin: the variables at the start: slopes, multipliers, logarithm of the weight, planes or None.
      steps: the number of steps.
      scales: for the multipliers of each ramp the unit of their step length.

    Returns:
      the best bounds of all steps; the variables after the last step; and the mean of the points, that of the n-th step
      weighted by n.
    """
    rule = optax.scale_by_adam(b1=SOONER, b2=SOONER)

    def total(free):
        least, where = bound(free)
        return -least.sum(), (least, where)

    def step(number, state):
        free, memory, best, mean = state
        gradient, (least, where) = jax.grad(total, has_aux=True)(free)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        (along, across, heavier, over), memory = rule.update(gradient, memory)
        over = over if over is None else Planes(LEVEL * over.level, TILT * over.tilt)
        directions = along, jax.tree.map(jnp.multiply, across, scales), heavier, over
        shrunk = 0.1 ** (number / steps)
        slopes, multipliers, weight, planes = (
            jax.tree.map(lambda f, d, length=length: f - (length * shrunk * d).astype(f.dtype), *pair)
            for length, *pair in zip((SLOPE, MULTIPLIER, WEIGHT, 1.0), free, directions, strict=True)
        )
        slopes = jax.tree.map(lambda s: jnp.clip(s, 0, 1), slopes)
        multipliers = jax.tree.map(lambda m: jnp.maximum(m, 0), multipliers)
        mean = mean + (where - mean) * (2 / (number + 2))
        return (slopes, multipliers, weight, planes), memory, jnp.maximum(best, least), mean

    least, where = jax.eval_shape(bound, begin)
    lowest = jnp.full(least.shape, -jnp.inf, least.dtype)
    start = (begin, rule.init(begin), lowest, jnp.zeros(where.shape, where.dtype))
    free, _, best, mean = jax.lax.fori_loop(0, steps, step, start)
    return best, free, mean


def _score(ramp: Ramp, a: jax.Array, slope: jax.Array) -> jax.Array:
    """The most by which the linear relaxation of each entry of a ramp may lower the bound, so what a split may gain.

    It is the coefficient times the largest gap between the ramp and its chord where the coefficient is negative, else
    between the ramp and its lower line (compare Bunel et al., "Branch and bound for piecewise linear neural network
    verification", 2020, section 5.2); 0 where the sign is known.
    """
    low, high = jnp.minimum(ramp.d.low, 0), jnp.maximum(ramp.d.high, 0)
    undecided = (ramp.d.low < 0) & (ramp.d.high > 0)
    chord = -low * high / jnp.where(undecided, high - low, 1)
    below = jnp.maximum((1 - slope) * high, -slope * low)
    return jnp.where(undecided, jnp.maximum(-a, 0) * chord + jnp.maximum(a, 0) * jnp.minimum(below, chord), 0)
