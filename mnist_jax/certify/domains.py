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
from jax import lax

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds, stored
from mnist_jax.certify.maxima import Maxima, Slopes
from mnist_jax.certify.planes import Planes, Ramps
from mnist_jax.certify.relaxations import Interval, Ramp, steepness
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import program

# Adam's first step lengths for slopes, for multipliers (in units of the largest coefficient of the ramp's result), and
# for the logarithm of the lead's weight; they fall to a tenth of it. Chosen, not tuned.
SLOPE, MULTIPLIER, WEIGHT = 0.3, 0.1, 0.5
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
      gain: by how much the split that made the domain raised the bound, as the mean of both halves when they were
        compared with others; if it did not, the gain of the split before; 0 for a domain that no split made.
      eased: by how much the last round of narrowing, of this domain or of one that it is a part of, raised the bound;
        inf before the first.
      start: a `Start` of one lane for bounds of functions over the domain; None for CROWN's slopes and chords.
    """

    bound: float
    image: int
    other: int
    boxes: tuple[Interval, ...]
    signs: tuple[np.ndarray, ...]
    narrowed: bool = False
    gain: float = 0.0
    eased: float = np.inf
    start: Any = None


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


class Start(NamedTuple):
    """Where the optimization of bounds starts, with the lanes last.

    Attributes:
      given: `[N]`, whether slopes and planes are given; else they start at those that CROWN uses, and at the chords.
      slopes, multipliers: `[*shape, N]` by the place of the ramp's equation, as in `Free`; multipliers always count.
      planes: as in `Free`.
    """

    given: Any
    slopes: dict[int, Any]
    multipliers: dict[int, Any]
    planes: Any


class Bounded(NamedTuple):
    """Bounds of the targets, one for every lane, and what was found beside them.

    Attributes:
      bound: `[N]`, a lower bound of the target in the domain, inf where the domain is empty.
      candidates: `[N, *shape]`, images of the region at which the bound is nearly attained.
      fooled: `[N]`, whether these images are adversarial.
      scores: `[R, N]`, for each entry of all ramps the most by which its linear relaxation may lower the bound; 0 where
        its sign is known.
      start: the variables after the last step, from which the optimization of a similar bound may start.
    """

    bound: Any
    candidates: Any
    fooled: Any
    scores: Any
    start: Any


class Free(NamedTuple):
    """The variables over which bounds are optimized.

    Attributes:
      slopes, multipliers: of the lower lines and of the fixed signs, `[*shape, N]` by the place of the ramp's equation.
      log_weight: the logarithm of the lead's weight, in units of the one that was given, `[N]`.
      planes: above the first ramps, or None where there are no planes.
    """

    slopes: dict[int, jax.Array]
    multipliers: dict[int, jax.Array]
    log_weight: jax.Array
    planes: Planes | Slopes | None


def platform_for(classifier: Classifier, shape: tuple[int, ...], dtype: Any) -> str:
    """The name of the platform whose branches of the classifier are run, as `program.read` takes it.

    A compiled program finds it, since JAX's backends have other names than the branches: "gpu" runs those of "cuda".
    """
    names = sorted(program.read(classifier, shape, dtype, driver.OTHERS).platforms)
    if not names:
        return driver.OTHERS
    branches = {name: partial(jnp.int32, n) for n, name in enumerate(names)}
    taken = jax.jit(lambda: lax.platform_dependent(default=partial(jnp.int32, len(names)), **branches))()
    return [*names, driver.OTHERS][int(taken)]


class Root(NamedTuple):
    """CROWN's bounds of an image's whole region.

    Attributes:
      result: what they prove, of one image.
      leads: `[1, C]`, lower bounds of the leads, inf for the label itself.
      boxes: for each nonlinear operation, in the order of the equations, a dictionary of its equation's place and the
        bounds of its argument, `[1, *shape]`.
      ramps: an array `[1, *shape]` like each ramp's result, by the place of its equation.
      deeper: `[1]`, for each ramp whether planes above the first ramps may give better bounds of its argument.
      narrowed: `[1]`, for each ramp whether bounds of its argument are to be narrowed.
      start: where the optimization of bounds starts by itself.
    """

    result: driver.CertifyResult
    leads: Any
    boxes: list[dict[int, Interval]]
    ramps: dict[int, Any]
    deeper: dict[int, Any]
    narrowed: dict[int, Any]
    start: Start


@partial(jax.jit, static_argnums=(0, 1))
def root(platform: str, norm: float, classifier: Classifier, images, labels, radius) -> Root:
    """Bounds of the whole region of an image `[1, *shape]` by CROWN, as `crown` computes them."""
    bounds, kept = _walk(platform, norm, classifier, images, radius), []

    def tighten(walk: Bounds, place: int, *given: Any) -> Interval:
        better = linear.tighten(Bounds.back, walk, place, *given)
        kept.append({place: better})
        return better

    bounds.forwards(tighten)
    leads, where = linear.leads(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
    result = driver.judged(classifier, images, labels, *linear.least_of(bounds, leads, where))
    ramps, first = _ramps(bounds), bounds.first_ramps()
    planar = first is not None
    none = {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()}
    over = None if first is None else jax.tree.map(jnp.zeros_like, _chords(first[1], ramps[first[0]]))
    start = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), Start(jnp.zeros(1, bool), none, none, over))
    deeper = {place: planar and not bounds.functions(place) for place in ramps}
    sizes = {place: ramp.d.low for place, ramp in ramps.items()}
    # Narrowing finds few signs of a max-pool's differences, and takes longer than to divide by those that matter.
    narrowed = {place: deeper[place] or first is None or not isinstance(first[1], Maxima) for place in ramps}
    leads, boxes, sizes = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (leads, kept, sizes))
    deeper, narrowed = jax.tree.map(lambda yes: jnp.full(1, yes), (deeper, narrowed))
    return Root(result, leads, boxes, sizes, deeper, narrowed, start)


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
    start: Start,
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
      start: where the optimization starts.
      steps: the number of Adam's steps.
    """
    bounds, asked = _again(platform, norm, classifier, images, radius, boxes, signs)
    objective, end = _objective(bounds, asked, labels, others, target), len(bounds.program.equations)
    ramps = _ramps(bounds)
    none = {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()}

    first = bounds.first_ramps()

    def bound(free: Free) -> tuple[jax.Array, tuple[jax.Array, dict[int, jax.Array]]]:
        coefficients = dict(none)

        def subtracted(place: int, a: jax.Array) -> jax.Array | None:
            if place not in ramps:
                return None
            coefficients[place] = a
            return signs[place] * free.multipliers[place]

        def above(place: int) -> tuple[Ramps | Maxima, Planes | Slopes] | None:
            return (first[1], free.planes) if first and place == first[0] and free.planes is not None else None

        weight = jnp.where(target.sign == 0, 1, target.weight * jnp.exp(free.log_weight))
        more: dict[str, Any] = {"multipliers": subtracted, "above": above}
        functions, constant = objective(weight)
        least, where = bounds.back(end, functions, constant, free.slopes.get, **more)
        return least, (where, coefficients)

    slopes = {place: steepness(ramp.d, "adaptive") for place, ramp in ramps.items()}
    chords = None if first is None else _chords(first[1], ramps[first[0]])
    slopes, chords = jax.tree.map(
        lambda given, usual: jnp.where(start.given, given, usual), (start.slopes, start.planes), (slopes, chords)
    )
    begin = Free(slopes, start.multipliers, jnp.zeros_like(target.weight), chords)
    best, free, mean, (where, coefficients) = _optimized(bound, begin, steps, (jnp.zeros_like(bounds.region.low), none))
    empty = sum((ramp.d.low > ramp.d.high).any(tuple(range(ramp.d.low.ndim - 1))) for ramp in ramps.values())
    best = jnp.where(jnp.isfinite(best), best, -jnp.inf)
    best = jnp.where(empty > 0, jnp.where(jnp.isfinite(bounds.underflow), jnp.inf, -jnp.inf), best)
    tried = jnp.concatenate([bounds.region.at(d) for d in (where, mean)])
    fooled = driver.misclassified(classifier, tried, jnp.concatenate([labels, labels])).reshape(2, -1)
    candidates = jnp.where(fooled[0].reshape(-1, *[1] * (images.ndim - 1)), *jnp.split(tried, 2))
    if first is not None:  # the planes are above the whole tree of ramps
        for place in bounds.tree(first[0])[1:]:
            coefficients[place] = coefficients[place] + jnp.minimum(coefficients[first[0]], 0)
    scores = [
        _score(ramp, coefficients[place], free.slopes[place]).reshape(-1, len(labels)) for place, ramp in ramps.items()
    ]
    last = Start(jnp.ones_like(start.given), free.slopes, free.multipliers, free.planes)
    return Bounded(best, candidates, fooled.any(0), jnp.concatenate(scores), last)


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


def _optimized(bound, begin: Free, steps: jax.Array, none):
    """Maximizes bounds by Adam over slopes in [0, 1], multipliers of at least 0, the lead's weight, and planes.

    The point at which a bound is attained jumps from corner to corner of the region. The mean of these points tends to
    the minimizer of the relaxed problem as the multipliers tend to the best ones (Shor, "Minimization methods for
    non-differentiable functions", 1985).

    Args:
      bound: a function of the variables that returns bounds `[N]`; with them, points where they are attained and the
        coefficients of the ramps' results, `[*shape, N]` each. It is called in one place only: each further one would
        be compiled by itself.
      begin: the variables at the start.
      steps: the number of steps.
      none: zeros, shaped like these points and coefficients.

    Returns:
      the best bounds, NaN where one was NaN; the variables after the last step; the mean of the points, that of the
      n-th round weighted by n; and points and coefficients at these variables.
    """
    rule = optax.scale_by_adam(b1=SOONER, b2=SOONER)

    def total(free: Free):
        least, seen = bound(free)
        return -least.sum(), (least, seen)

    def step(number, state):
        """A round: bounds at the variables, and a step from there; the last round has a step of length 0."""
        free, memory, scales, best, mean, _ = state
        gradient, (least, seen) = jax.grad(total, has_aux=True)(free)
        where, coefficients = seen
        # The unit of the multipliers' steps is the ramp's largest coefficient at the start.
        scales = jax.tree.map(lambda s, a: jnp.where(number == 0, _largest(a), s), scales, coefficients)
        gradient = stored(jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient))
        directions, memory = rule.update(gradient, memory)
        directions = directions._replace(multipliers=jax.tree.map(jnp.multiply, directions.multipliers, scales))
        shrunk = jnp.where(number < steps, 0.1 ** (number / steps), 0)
        planes = None if free.planes is None else free.planes.moved(directions.planes, shrunk)
        slopes, multipliers, weight = (
            jax.tree.map(lambda f, d, length=length: f - (length * shrunk * d).astype(f.dtype), *pair)
            for length, *pair in zip((SLOPE, MULTIPLIER, WEIGHT), free[:3], directions[:3], strict=True)
        )
        slopes = jax.tree.map(lambda s: jnp.clip(s, 0, 1), slopes)
        multipliers = jax.tree.map(lambda m: jnp.maximum(m, 0), multipliers)
        mean = mean + (where - mean) * (2 / (number + 2))
        return Free(slopes, multipliers, weight, planes), memory, scales, jnp.maximum(best, least), mean, seen

    lowest = jnp.full(begin.log_weight.shape, -jnp.inf, begin.log_weight.dtype)
    scales = jax.tree.map(lambda a: jnp.zeros((*[1] * (a.ndim - 1), a.shape[-1]), a.dtype), none[1])
    start = (begin, rule.init(begin), scales, lowest, none[0], none)
    free, _, _, best, mean, last = jax.lax.fori_loop(0, steps + 1, step, start)
    return best, free, mean, last


def _chords(ramps: Ramps | Maxima, ramp: Ramp) -> Planes | Slopes:
    """The planes with the slopes of the chords."""
    return ramps.chords() if isinstance(ramps, Maxima) else ramps.chords(ramp.d)


def _largest(a: jax.Array) -> jax.Array:
    """The largest absolute value in each lane, `[1, ..., 1, N]`."""
    return jnp.abs(a).max(tuple(range(a.ndim - 1)), keepdims=True)


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
