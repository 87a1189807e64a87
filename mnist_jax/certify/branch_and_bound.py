"""Branch and bound: what linear bounds leave open is divided by the signs of its steps, until it is settled."""

import heapq
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.certify import driver, linear
from mnist_jax.certify.bounds import Bounds
from mnist_jax.certify.crown import crown
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.relaxations import Interval, Ramp, steepness
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.geometry import INF
from mnist_jax.jaxprs import program

WIDTH = 64  # domains that are bounded together
STEPS = 12  # of the optimizer, for the slopes and multipliers of a domain
LAST_STEPS = 400  # for one that can't be divided any more: its multipliers are the solution of a linear program
SLOPE, MULTIPLIER = 0.3, 0.1  # steps of Adam on either; they fall to a tenth of it
SOONER = 0.5  # of Adam's memory of gradients: there are few steps, as in `alpha_crown`
MOST = 100_000  # domains that wait for one image, at most: then it stays open

Place = tuple[int, int]  # of a split: the equation's, and the entry's in its flattened result


class Domain(NamedTuple):
    """Part of the region around an image, of the images for which steps have certain signs.

    Attributes:
      bound: a lower bound of the label's lead over `other` there.
      turn: a number that no other domain has, by which equal bounds are told apart.
      image, other: by their numbers.
      splits: the steps' signs, each with its place.
      whole: whether every step has one sign there, so that it can't be divided.
    """

    bound: float
    turn: int
    image: int
    other: int
    splits: tuple[tuple[Place, int], ...] = ()
    whole: bool = False


def branch_and_bound(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
    seconds: float = 60.0,
    domains: int | None = None,
) -> CertifyResult:
    """Certifies by linear bounds over parts of the region, which it divides where they do not suffice.

    What `crown` certifies, or finds an adversarial image of, is done. For each other class that is left, the domain
    with the least bound is divided by the sign of one ReLU (or maximum, or absolute value) into two, and these are
    bounded with the best slopes and multipliers that Adam finds (Wang et al., "Beta-CROWN", 2021): in a domain the
    step is linear, and that it has this sign is used by its multiplier. Bounds of the steps before the logits are those
    of `crown` for the whole region, and what the signs make of them. A domain with a positive bound is settled; the
    image is certified when no domain is left. The images at which bounds are nearly attained are tried, and settle the
    image if they are adversarial.

    Args:
      classifier, images, labels, radius, norm: as in `crown`.
      seconds: for each image, at most, without compiling; what is left is open. Where `domains` is given it is not
        looked at.
      domains: that are bounded for each image, at most; with it, and only with it, the result is always the same.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    if domains is not None:
        arguments.counts(domains=domains)
    norm = geometry.check_norm(norm, driver.NORMS)
    if classifier.bounds != UNIT:
        how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains}
        return driver.in_units(branch_and_bound, classifier, images, labels, radius, **how)
    x, classes, radii = driver.checked(classifier, images, labels, radius)
    first = crown(classifier, x, classes, radii, norm=norm)
    open_ = np.flatnonzero(~np.asarray(first.certified | first.fooled))
    if not len(open_):
        return first
    certified, fooled, margin, shown = (np.array(part) for part in first)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        given = [np.asarray(part)[open_] for part in (x, classes, radii)]
        search = Search(classifier, norm, *given)
        if not search.ramps:  # there is nothing to divide
            return first
        search.run(seconds, domains)
    for place, state in zip(open_, search.states, strict=True):
        certified[place] = not state.fooled and not state.waiting and not state.given_up
        fooled[place] = state.fooled
        margin[place] = max(margin[place], state.least()) if not state.fooled else margin[place]
        if state.found is not None:
            shown[place] = state.found
    return CertifyResult(*map(jnp.asarray, (certified & (margin > 0), fooled, margin, shown)))


@dataclass
class State:
    """What is known of an image: its domains that wait, the least bound of those that are settled, and what it took."""

    waiting: list[Domain] = field(default_factory=list)
    settled: float = np.inf
    given_up: bool = False
    found: np.ndarray | None = None  # an adversarial image
    seconds: float = 0.0
    taken: int = 0  # domains

    @property
    def fooled(self) -> bool:
        return self.found is not None

    def least(self) -> float:
        return min([self.settled, *(domain.bound for domain in self.waiting[:1])])


class Search:
    """The search of some images, whose domains are bounded together."""

    def __init__(self, classifier: Classifier, norm: float, images: Any, labels: Any, radii: Any) -> None:
        self.classifier, self.norm = classifier, norm
        self.images, self.labels, self.radii = images, labels, radii
        usual = program.read(classifier, images.shape[1:], images.dtype, driver.OTHERS)
        here = jax.default_backend()
        self.platform = here if here in usual.platforms else driver.OTHERS
        self.turns = itertools.count()
        self.boxes: list[list[Interval]] = []  # of each image, of what steps are functions of, in the walk's order
        self.ramps: dict[int, tuple[int, ...]] = {}  # shapes of the steps that may be divided, by their places
        self.states = [self._begin(i) for i in range(len(images))]

    def _begin(self, i: int) -> State:
        """What CROWN says of an image: the bounds that all its domains share, and a domain for each class it leaves."""
        one = (self.images[[i]], self.labels[[i]], self.radii[[i]])
        leads, boxes, sizes = _root(self.platform, self.norm, self.classifier, *one)
        self.boxes.append(boxes)
        self.ramps = {place: size.shape[:-1] for place, size in sizes.items()}
        bounds = np.nan_to_num(np.asarray(leads, float)[:, 0], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        left = np.flatnonzero(~(bounds > 0)).tolist()
        waiting = [Domain(float(bounds[other]), next(self.turns), i, other) for other in left]
        heapq.heapify(waiting)
        return State(waiting, settled=bounds[bounds > 0].min(initial=np.inf))

    def run(self, seconds: float, domains: int | None) -> None:
        first = [domain for state in self.states for domain in state.waiting[:1]]
        if not first:  # settled by CROWN of one image at a time, which rounds otherwise
            return
        self._bound(first[:WIDTH])  # compiles, and is not counted
        while batch := list(itertools.islice(self._next(seconds, domains), WIDTH)):
            began = time.monotonic()
            bounds, candidates, fooled, splits = self._bound(batch)
            took = (time.monotonic() - began) / len(batch)
            for row, domain in enumerate(batch):
                state = self.states[domain.image]
                state.seconds += took
                if fooled[row] and not state.fooled:
                    state.found, state.waiting = candidates[row], []
                if state.fooled:
                    continue
                self._divide(state, domain, float(bounds[row]), splits[row])

    def _divide(self, state: State, domain: Domain, bound: float, place: Place | None) -> None:
        """Settles the domain, or puts the two that it is divided into among those that wait."""
        if bound > 0:
            state.settled = min(state.settled, bound)
            return
        bound = max(bound, domain.bound) if np.isfinite(bound) else domain.bound
        if place is None and not domain.whole:
            heapq.heappush(state.waiting, domain._replace(bound=bound, whole=True))
            return
        if place is None or len(state.waiting) >= MOST:
            state.given_up, state.settled = True, min(state.settled, bound)
            return
        for sign in (1, -1):
            splits = (*domain.splits, (place, sign))
            heapq.heappush(state.waiting, Domain(bound, next(self.turns), domain.image, domain.other, splits))

    def _next(self, seconds: float, domains: int | None) -> Iterator[Domain]:
        """The domains to bound, of each image in turn the one with the least bound, as long as it may go on."""
        while True:
            some = False
            for state in self.states:
                spent = state.seconds >= seconds if domains is None else state.taken >= domains
                if state.waiting and not spent and not state.given_up:
                    some = True
                    state.taken += 1
                    yield heapq.heappop(state.waiting)
            if not some:
                return

    def _bound(self, batch: list[Domain]):
        """Bounds of domains, images that may be adversarial, whether they are, and where to divide them."""
        rows = batch + batch[-1:] * (WIDTH - len(batch))
        at = np.array([domain.image for domain in rows])
        signs = {place: np.zeros((len(rows), *shape), np.int8) for place, shape in self.ramps.items()}
        for row, domain in enumerate(rows):
            for (place, entry), sign in domain.splits:
                signs[place][row].reshape(-1)[entry] = sign
        boxes = [
            Interval(*(jnp.concatenate([self.boxes[i][n][part] for i in at], -1) for part in (0, 1)))
            for n in range(len(self.boxes[0]))
        ]
        others = np.array([domain.other for domain in rows], np.int32)
        given = (self.images[at], self.labels[at], self.radii[at], others)
        splits = {place: jnp.moveaxis(jnp.asarray(s), 0, -1) for place, s in signs.items()}
        steps = LAST_STEPS if any(domain.whole for domain in batch) else STEPS
        out = _bound(self.platform, self.norm, self.classifier, *given, boxes, splits, steps)
        bounds, candidates, fooled, scores, places = map(np.asarray, out)
        order = list(self.ramps)
        divided = [
            (order[places[row, 0]], int(places[row, 1])) if scores[row] > 0 else None for row in range(len(batch))
        ]
        return bounds, candidates, fooled, divided


@partial(jax.jit, static_argnums=(0, 1))
def _root(platform, norm, classifier, images, labels, radius):
    """Leads `[C, 1]` by CROWN; the bounds of what steps are functions of; and what has the shape of the ramps."""
    bounds = _walk(platform, norm, classifier, images, radius)
    kept = []

    def tighten(*given: Any) -> Interval:
        kept.append(linear.tighten(Bounds.back, *given))
        return kept[-1]

    bounds.forwards(tighten)
    leads, _ = linear.leads(bounds, labels, [Bounds.back, partial(linear.with_slopes, "flat")])
    return leads, kept, {place: ramp.d.low for place, ramp in _ramps(bounds).items()}


def _walk(platform: str, norm: float, classifier: Classifier, images: jax.Array, radius: jax.Array) -> Bounds:
    computation = program.read(classifier, images.shape[1:], images.dtype, platform)
    return linear.walk(classifier, images, radius, norm, computation)


def _ramps(bounds: Bounds) -> dict[int, Ramp]:
    return {place: node.ramp for place, node in bounds.nodes.items() if node.ramp is not None}


@partial(jax.jit, static_argnums=(0, 1))
def _bound(platform, norm, classifier, images, labels, radius, others, boxes, splits, steps):
    """Lower bounds `[B]` of leads over domains, inf where these are empty; candidates, and whether they are
    adversarial; the largest score of a step that may be divided, 0 where there is none, and its place `[B, 2]`."""
    bounds = _walk(platform, norm, classifier, images, radius)
    bounds.splits, kept = splits, iter(boxes)
    bounds.forwards(lambda walk, place, factors, interval, wanted: interval.within(next(kept)))
    number, end = bounds.program.logits, len(bounds.program.equations)
    center, off = bounds.combined({number: 1.0})
    classes = bounds.program.shapes[number].shape[1]
    function = sum(
        sign * jax.nn.one_hot(which, classes, axis=0, dtype=center.dtype)[None]
        for sign, which in ((1, labels), (-1, others))
    )
    constant = (function * center - jnp.abs(function) * off).sum((0, 1))
    ramps, coefficients = _ramps(bounds), {}

    def bound(free):
        slopes, multipliers = free

        def less(place: int, a: jax.Array) -> jax.Array | None:
            coefficients[place] = a
            return splits[place] * multipliers[place] if place in multipliers else None

        return bounds.back(end, {number: function}, constant, slopes.get, multipliers=less)

    begin = (
        {place: steepness(ramp.d, "adaptive") for place, ramp in ramps.items()},
        {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()},
    )
    bound(begin)
    none = {place: jnp.zeros_like(ramp.d.low) for place, ramp in ramps.items()}
    scales = {
        place: jnp.abs(a).max(tuple(range(a.ndim - 1)), keepdims=True) for place, a in (none | coefficients).items()
    }
    best, free, mean = _optimized(bound, begin, steps, scales)
    coefficients.clear()
    last, where = bound(free)
    empty = sum((ramp.d.low > ramp.d.high).any(tuple(range(ramp.d.low.ndim - 1))) for ramp in ramps.values())
    best = jnp.where(empty > 0, jnp.inf + 0 * bounds.underflow, jnp.maximum(best, last))  # NaN stays
    tried = [bounds.region.at(d) for d in (where, mean)]
    scores = [
        _score(ramp, (none | coefficients)[place], free[0][place]).reshape(-1, len(labels))
        for place, ramp in ramps.items()
    ]
    entries = jnp.stack([score.argmax(0) for score in scores])
    largest = jnp.stack([score.max(0) for score in scores])
    which = largest.argmax(0)
    column = jnp.arange(len(labels))
    places = jnp.stack([which, entries[which, column]], 1)
    fooled, also = (driver.misclassified(classifier, candidates, labels) for candidates in tried)
    candidates = jnp.where(fooled.reshape(-1, *[1] * (images.ndim - 1)), *tried)
    fooled = fooled | also
    return best, candidates, fooled, largest[which, column], places


def _optimized(bound, begin, steps, scales):
    """The best bounds that were met; slopes in [0, 1] and multipliers of at least 0 after the last step; and the mean
    of where the later bounds were attained, each step's counting as much as its number. `scales` are the sizes of the
    multipliers of each step: of the coefficients that they are added to.

    Where a bound is attained jumps from corner to corner of the region; the mean tends to where the least value is, as
    multipliers tend to the best ones (Shor, "Minimization methods for non-differentiable functions", 1985).
    """
    rule, lengths = optax.scale_by_adam(b1=SOONER, b2=SOONER), (SLOPE, MULTIPLIER)

    def total(free):
        least, where = bound(free)
        return -least.sum(), (least, where)

    def step(number, state):
        free, memory, best, mean = state
        gradient, (least, where) = jax.grad(total, has_aux=True)(free)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), gradient)
        (along, across), memory = rule.update(gradient, memory)
        directions = along, jax.tree.map(jnp.multiply, across, scales)
        shrunk = 0.1 ** (number / steps)
        slopes, multipliers = (
            jax.tree.map(lambda f, d, length=length: f - (length * shrunk * d).astype(f.dtype), *pair)
            for length, *pair in zip(lengths, free, directions, strict=True)
        )
        slopes = jax.tree.map(lambda s: jnp.clip(s, 0, 1), slopes)
        multipliers = jax.tree.map(lambda m: jnp.maximum(m, 0), multipliers)
        mean = mean + (where - mean) * (2 / (number + 2))
        return (slopes, multipliers), memory, jnp.maximum(best, least), mean

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
