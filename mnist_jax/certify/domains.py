"""Domains, the parts of a region that branch and bound works on, and the programs that bound functions over many."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.relaxations import Interval, Ramp, steepness
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import program

# Adam's step lengths for slopes, multipliers and the logarithm of the lead's weight; they fall to a tenth of it.
SLOPE, MULTIPLIER, WEIGHT = 0.3, 0.1, 0.5
SOONER = 0.5  # Adam's decay rates: there are few steps, as in `alpha_crown`


class Domain(NamedTuple):
    """Part of the region around an image, where the lead of the label over one other class is to be bounded.

    Attributes:
      bound: a lower bound of the lead there, or of 0 and the lead where `narrowed`.
      image, other: their numbers.
      boxes: `[*shape]` each, bounds of what the nonlinear steps are functions of, in the order of the walk.
      signs: `[*shape]` int8 for each step with a ramp; the domain is where these steps' differences have these signs,
        0 for any.
      narrowed: whether `boxes` need to hold only where the lead is not positive.
      gain: by how much the split that made the domain raised the bound, mean of its two halves; 0 for a whole
        region.
    """

    bound: float
    image: int
    other: int
    boxes: tuple[Interval, ...]
    signs: tuple[np.ndarray, ...]
    narrowed: bool = False
    gain: float = 0.0


class Target(NamedTuple):
    """What is bounded from below in every lane, `[N]` each: `sign * (entry of the argument of a ramp) + weight * lead`.

    Attributes:
      ramp: the number of the ramp.
      entry: in its flattened result.
      sign: 1 or -1, or 0 for the lead alone, whose weight is then 1.
      weight: of the lead, to begin with. Where the lead is not positive, what is bounded is at most the entry.
    """

    ramp: Any
    entry: Any
    sign: Any
    weight: Any


class Bounded(NamedTuple):
    """What is found for every lane.

    Attributes:
      bound: `[N]`, of the target, inf where the domain is empty.
      candidates: `[N, *shape]`, images at which the bound is nearly attained.
      fooled: `[N]`, whether they are adversarial.
      scores: `[R, N]`, for each entry of each ramp how much its lines cost at most; 0 where it has one sign.
    """

    bound: Any
    candidates: Any
    fooled: Any
    scores: Any


def platform_for(classifier: Classifier, shape: tuple[int, ...], dtype: Any) -> str:
    """The platform here, as `program.read` is told it."""
    usual, here = program.read(classifier, shape, dtype, driver.OTHERS), jax.default_backend()
    return here if here in usual.platforms else driver.OTHERS


@partial(jax.jit, static_argnums=(0, 1))
def root(platform: str, norm: float, classifier: Classifier, images, labels, radius):
    """CROWN: leads `[C, 1]`; by the place of their equation, in the order of the walk, the bounds of what steps are
    functions of; and arrays of the shapes of the ramps, by the place of their equation."""
    bounds, kept = _walk(platform, norm, classifier, images, radius), []

    def tighten(walk: Bounds, place: int, *given: Any) -> Interval:
        better = linear.tighten(Bounds.back, walk, place, *given)
        kept.append({place: better})
        return better

    bounds.forwards(tighten)
    leads, _ = linear.leads(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
    return leads, kept, {place: ramp.d.low for place, ramp in _ramps(bounds).items()}


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
    """Bounds of the targets, each over its domain: with the best slopes, multipliers and weights that Adam finds.

    The multipliers are those of what is supposed of signs (see `Bounds.taken_back`). A weight of the lead makes of the
    bound one that holds where the lead is not positive, the only images that matter (Kotha et al., "Provably bounding
    neural network preimages", 2023, section 3.1: there, too, constraints on the output have multipliers).
    """
    bounds, asked = _again(platform, norm, classifier, images, radius, boxes, signs)
    objective, end = _objective(bounds, asked, labels, others, target), len(bounds.program.equations)
    ramps, coefficients = _ramps(bounds), {}

    def bound(free):
        slopes, less, log_weight = free

        def subtracted(place: int, a: jax.Array) -> jax.Array | None:
            if place not in less:  # not a ramp
                return None
            coefficients[place] = a
            return signs[place] * less[place]

        weight = jnp.where(target.sign == 0, 1, target.weight * jnp.exp(log_weight))
        return bounds.back(end, *objective(weight), slopes.get, multipliers=subtracted)

    slopes = {place: steepness(ramp.d, "adaptive") for place, ramp in ramps.items()}
    begin = (slopes, multipliers, jnp.zeros_like(target.weight))
    bound(begin)  # for the coefficients
    none = {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()}
    scales = {
        place: jnp.abs(a).max(tuple(range(a.ndim - 1)), keepdims=True) for place, a in (none | coefficients).items()
    }
    best, free, mean = _optimized(bound, begin, steps, scales)
    coefficients.clear()
    last, where = bound(free)
    empty = sum((ramp.d.low > ramp.d.high).any(tuple(range(ramp.d.low.ndim - 1))) for ramp in ramps.values())
    best = jnp.maximum(best, last)  # NaN stays
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
    """Linear functions below the targets over their domains, the targets themselves (but for rounding) where all steps
    have one sign: coefficients `[N, *shape]`, what they are at the images `[N]`; and the signs `[R, N]` of the ramps.
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
    """The signs `[R, N]` of the differences of the ramps at images."""
    bounds = _walk(platform, norm, classifier, images, jnp.zeros(len(images), images.dtype))
    bounds.forwards(lambda walk, place, factors, interval, wanted: interval)
    signs = [jnp.where(ramp.argument >= ramp.base, 1, -1) for ramp in _ramps(bounds).values()]
    return jnp.concatenate([s.reshape(-1, len(images)) for s in signs]).astype(jnp.int8)


def _walk(platform: str, norm: float, classifier: Classifier, images: jax.Array, radius: jax.Array) -> Bounds:
    computation = program.read(classifier, images.shape[1:], images.dtype, platform)
    return linear.walk(classifier, images, radius, norm, computation)


def _again(platform, norm, classifier, images, radius, boxes, signs) -> tuple[Bounds, dict[int, dict[int, float]]]:
    """The walk with known bounds, and by places of equations what the last step there was a function of."""
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
    """The functions and the constant that `Bounds.back` takes, by the weight of the lead."""
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
    """The best bounds that were met; slopes in [0, 1] and multipliers of at least 0 after the last step; and the mean
    of where the later bounds were attained, each step's counting as much as its number. `scales` are the sizes of the
    multipliers of each step: of the coefficients that they are added to.

    Where a bound is attained jumps from corner to corner of the region; the mean tends to where the least value is, as
    multipliers tend to the best ones (Shor, "Minimization methods for non-differentiable functions", 1985).
    """
    rule = optax.scale_by_adam(b1=SOONER, b2=SOONER)

    def total(free):
        least, where = bound(free)
        return -least.sum(), (least, where)

    def step(number, state):
        free, memory, best, mean = state
        gradient, (least, where) = jax.grad(total, has_aux=True)(free)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        (along, across, heavier), memory = rule.update(gradient, memory)
        directions = along, jax.tree.map(jnp.multiply, across, scales), heavier
        shrunk = 0.1 ** (number / steps)
        slopes, multipliers, weight = (
            jax.tree.map(lambda f, d, length=length: f - (length * shrunk * d).astype(f.dtype), *pair)
            for length, *pair in zip((SLOPE, MULTIPLIER, WEIGHT), free, directions, strict=True)
        )
        slopes = jax.tree.map(lambda s: jnp.clip(s, 0, 1), slopes)
        multipliers = jax.tree.map(lambda m: jnp.maximum(m, 0), multipliers)
        mean = mean + (where - mean) * (2 / (number + 2))
        return (slopes, multipliers, weight), memory, jnp.maximum(best, least), mean

    least, where = jax.eval_shape(bound, begin)
    lowest = jnp.full(least.shape, -jnp.inf, least.dtype)
    start = (begin, rule.init(begin), lowest, jnp.zeros(where.shape, where.dtype))
    free, _, best, mean = jax.lax.fori_loop(0, steps, step, start)
    return best, free, mean


def _score(ramp: Ramp, a: jax.Array, slope: jax.Array) -> jax.Array:
    """How much the lines of a step cost the bound at most, and so what dividing it may gain; 0 where it has one sign.

    The gap of the chord, where the coefficient is negative, else that of the line below (compare Bunel et al., "Branch
    and bound for piecewise linear neural network verification", 2020, section 5.2).
    """
    low, high = jnp.minimum(ramp.d.low, 0), jnp.maximum(ramp.d.high, 0)
    undecided = (ramp.d.low < 0) & (ramp.d.high > 0)
    chord = -low * high / jnp.where(undecided, high - low, 1)
    below = jnp.maximum((1 - slope) * high, -slope * low)
    return jnp.where(undecided, jnp.maximum(-a, 0) * chord + jnp.maximum(a, 0) * jnp.minimum(below, chord), 0)
