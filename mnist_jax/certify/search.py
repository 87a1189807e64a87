"""The search of branch and bound: in which order domains are bounded, narrowed and divided.

A generator, `BranchAndBound._settle`, works on each domain and yields the functions that it needs bounds of.
`BranchAndBound.run` collects these of many domains and images into batches for the device. *Narrowing* a domain is to
improve the bounds of its ramps' arguments for those of its images only whose lead is not positive.
"""

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import geometry
from mnist_jax.certify import domains, driver, pattern, region
from mnist_jax.certify.domains import Bounded, Domain, Target
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.relaxations import Interval
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import Classifier
from mnist_jax.device import precisely

# Linear functions that are bounded together, by platform. On an H200, of 20 brackets of MLP-original with 5 s for each
# image, 512 closed 15 in 44 s, 64 closed 11 in 64 s, and 2,048 closed 15 in 48 s. A CPU's number is chosen, not tuned.
LANES = {"cpu": 64}
LANES_OF_ACCELERATOR = 512
STEPS = 12  # Adam's steps for a bound; chosen, not tuned
# Adam's steps for a half that is only compared with others. Of 2 and 12, on five images of MLP-original whose brackets
# had stayed open (30 to 40 s each, exact arithmetic), 2 closed three, 12 none.
TRIED = 2
# Entries that are tried for a split; the best is kept. Of 8 and 12, 12 closed one of those images that 8 left open.
CHOICES = 12
LAST_STEPS = 400  # Adam's steps in a domain that can't be divided and has no linear program; chosen, not tuned
# Entries whose bounds are improved in a round, for each domain that splits are expected to make of this one. Of 1, 8
# and no limit, 8 needed half the lanes of 1 on two questions of experiments/questions.py's network `dense2`, as many as
# without a limit; on those of `max`, which had been left open, a limit left better bounds after the same time.
WORTH = 8
# The rest are chosen, not tuned.
NARROWED = 256  # largest number of entries whose bounds are improved in a round: those with the largest scores
# Entries whose bounds are improved together; the next group uses the improved bounds. Two functions each fill a CPU's
# lanes, even if there is only one domain to work on.
GROUP = 32
ENOUGH = 0.85  # a round is followed by another if the lead's (negative) bound shrank to less than this share
# The lead's weight starts at this share of the weight that makes the lead's bound as large as the entry's interval.
SHARE = 0.6
SURVEYED = 1024  # largest number of a ramp's entries whose bounds are improved for all leads together
ALL = -1  # the other class of a domain that is not for one lead
QUEUE = 2**30  # bytes that the waiting domains of all images may take; further domains stay open
AT_ONCE = 32  # images whose bounds by CROWN are in memory before those that are not needed are dropped
ROWS = 4096  # largest number of ramps' entries for which a linear program is made
AIM = 3  # a linear program aims at a lead of this many times that of the least clear adversarial image
SINGLE = 2e-6  # and at least this share of the largest logit, more than rounding to single precision changes


T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """A function to bound over a domain (see `domains.Target`), with where and how long to optimize its bound."""

    domain: Domain
    ramp: int = 0
    entry: int = 0
    sign: int = 0
    weight: float = 1.0
    steps: int = STEPS


# The work on one domain: it yields functions to bound, and is sent their bounds.
Settling = Generator[list[Task], list[Bounded], None]


@dataclass
class Job:
    """A domain that is being worked on.

    Attributes:
      domain, settling: the domain, and the generator that works on it.
      missing: how many of the tasks that the generator waits for are not done.
      found: the bounds of those that are, by their number.
    """

    domain: Domain
    settling: Settling
    missing: int = 0
    found: dict[int, Bounded] = field(default_factory=dict)


@dataclass
class ImageState:
    """What is known of an image so far.

    Attributes:
      radius: the radius of its region; it falls while the nearest adversarial image is looked for.
      leads: CROWN's bounds of the leads that are not positive, by the other class.
      waiting: the domains that are not worked on yet: a heap of bound, number and domain, the least bound first.
      running: the number of domains that are being worked on.
      settled: the least bound of the domains that are done.
      given_up: whether some domain can't be settled, so that the image stays open.
      found, distance: the nearest adversarial image so far, and its distance.
      seconds, taken: the seconds and the number of domains spent on the image.
    """

    radius: np.floating
    leads: dict[int, float] = field(default_factory=dict)
    waiting: list[tuple[float, int, Domain]] = field(default_factory=list)
    running: int = 0
    settled: float = np.inf
    given_up: bool = False
    found: np.ndarray | None = None
    distance: float = np.inf
    seconds: float = 0.0
    taken: int = 0

    @property
    def done(self) -> bool:
        """Whether every domain is settled."""
        return not (self.waiting or self.running or self.given_up)

    def least(self) -> float:
        """A lower bound of the leads over all other classes."""
        return min([self.settled, *(bound for bound, *_ in self.waiting[:1])])


class Root(NamedTuple):
    """CROWN's bounds of an image's whole region, in the memory of the host.

    Attributes:
      leads: `[C]`, lower bounds of the leads, inf for the label itself.
      boxes: as those of a domain.
      ramps: the shapes of the ramps, by the place of their equation.
      asked: for each ramp the number of its argument's box.
      deeper: the numbers of the ramps that planes above the first ramps may give better bounds of.
      narrowed: the numbers of the ramps whose arguments' bounds are to be narrowed.
      start: where the optimization of bounds starts by itself.
    """

    leads: np.ndarray
    boxes: tuple[Interval, ...]
    ramps: dict[int, tuple[int, ...]]
    asked: list[int]
    deeper: list[int]
    narrowed: list[int]
    start: domains.Start


def crown_with_roots(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike, radii: ArrayLike, *, norm: float
) -> tuple[CertifyResult, dict[int, Root]]:
    """What `crown` proves of images `[B, *shape]`, and the roots of those that it does not certify, by their place.

    Images go one by one: several at once take no less time, and this is a program that branch and bound needs anyway.
    """
    images, labels, radii = (np.asarray(part) for part in (images, labels, radii))
    certified, fooled, margin = (np.zeros(len(images), kind) for kind in (bool, bool, images.dtype))
    result, roots = (certified, fooled, margin, images.copy()), {}
    how = (domains.platform_for(classifier, images.shape[1:], images.dtype), norm)
    for start in range(0, len(images), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        with precisely():
            given = (images[rows], labels[rows], radii[rows])
            found = jax.tree.map(np.asarray, in_chunks(partial(domains.root, *how), given, classifier, size=1))
        for all_, own in zip(result, found.result, strict=True):
            all_[rows] = own
        places = [place for known in found.boxes for place in known]
        asked = [places.index(place) for place in found.ramps]
        ramps = {place: ramp.shape[1:] for place, ramp in found.ramps.items()}
        deeper, narrowed = (
            [number for number, is_ in enumerate(which.values()) if is_[0]] for which in (found.deeper, found.narrowed)
        )
        for i in np.flatnonzero(~found.result.certified):
            boxes = tuple(Interval(*(z[i].copy() for z in box)) for known in found.boxes for box in known.values())
            begin = jax.tree.map(lambda x, i=i: x[i], found.start)
            roots[start + int(i)] = Root(found.leads[i], boxes, ramps, asked, deeper, narrowed, begin)
    return CertifyResult(*map(jnp.asarray, result)), roots


def crown(
    classifier: Classifier, images: ArrayLike, labels: ArrayLike, radius: ArrayLike, *, norm: float
) -> CertifyResult:
    """The certificate `crown` by the program that gives roots, for images, labels and radii that are checked."""
    return crown_with_roots(classifier, images, labels, radius, norm=norm)[0]


class BranchAndBound:
    """Branch and bound on several images at once, whose domains share the lanes.

    Args:
      classifier, norm: as in `branch_and_bound`.
      images, labels, radii: `[B, *shape]`, `[B]` and `[B]`, in the memory of the host.
      nearer: None to stop at the first adversarial image of each image; else the search goes on within this share of
        its distance.
      roots: as `crown_with_roots` gives them, where they are known already.
    """

    def __init__(
        self,
        classifier: Classifier,
        norm: float,
        images: np.ndarray,
        labels: np.ndarray,
        radii: np.ndarray,
        nearer: float | None = None,
        roots: dict[int, Root] | None = None,
    ) -> None:
        self.classifier, self.norm, self.nearer = classifier, norm, nearer
        self.images, self.labels = images, labels
        self.lanes = lanes_for(jax.default_backend())
        self.how = (domains.platform_for(classifier, images.shape[1:], images.dtype), norm, classifier)
        self.turns = itertools.count()
        if roots is None:
            _, roots = crown_with_roots(classifier, images, labels, radii, norm=norm)
        self.roots = roots
        known = next(iter(roots.values()), None)
        self.ramps, self.asked, self.deeper, self.narrowed = ({}, [], [], []) if known is None else known[2:6]
        self.states = [self._begin(i, radius) for i, radius in enumerate(radii)]

    def _begin(self, i: int, radius: np.floating) -> ImageState:
        """The state of an image after CROWN: with a domain, the whole region, if some lead's bound is not positive."""
        if (root := self.roots.get(i)) is None:  # CROWN certifies it
            return ImageState(radius)
        signs = tuple(np.zeros(shape, np.int8) for shape in self.ramps.values())
        bounds = np.nan_to_num(root.leads.astype(float), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        state = ImageState(radius, settled=bounds[bounds > 0].min(initial=np.inf))
        state.leads = {other: float(bounds[other]) for other in np.flatnonzero(~(bounds > 0)).tolist()}
        if state.leads:
            self._wait(state, Domain(min(state.leads.values()), i, ALL, root.boxes, signs))
        return state

    def _wait(self, state: ImageState, domain: Domain) -> None:
        size = sum(array.nbytes for array in jax.tree.leaves((domain.boxes, domain.signs, domain.start)))
        if len(state.waiting) * size * len(self.images) >= QUEUE:
            state.given_up, state.settled = True, min(state.settled, domain.bound)
        else:
            heapq.heappush(state.waiting, (domain.bound, next(self.turns), domain))

    def run(self, seconds: float, most: int | None) -> None:
        """Works on the domains until all are settled, or an image's limit is reached.

        Args:
          seconds: the most seconds for each image, without compilation.
          most: instead, the most domains for each image.
        """
        waiting = [state.waiting[0][-1] for state in self.states if state.waiting]
        if not waiting or not self.ramps:
            return
        self._bound([Task(waiting[0])])  # compiles
        tasks: deque[tuple[Job, int, Task]] = deque()
        while True:
            while len(tasks) < self.lanes and (domain := self._next(seconds, most)) is not None:
                self.states[domain.image].running += 1
                self._advance(tasks, Job(domain, self._settle(domain)), None)
            if not tasks:
                return
            batch = self._batch(tasks)
            began = time.monotonic()
            found = self._bound([task for *_, task in batch])
            took = (time.monotonic() - began) / len(batch)
            for (job, slot, task), one in zip(batch, found, strict=True):
                state = self.states[job.domain.image]
                state.seconds += took
                if one.fooled:
                    self._met(task.domain, one.candidates)
                job.found[slot] = one
                job.missing -= 1
                if not job.missing:
                    self._advance(tasks, job, [job.found[n] for n in range(len(job.found))])
            for job in {id(job): job for job, *_ in tasks}.values():
                self._stop_if_spent(tasks, job, seconds, most)

    def _batch(self, tasks: deque[tuple[Job, int, Task]]) -> list[tuple[Job, int, Task]]:
        """Takes the first tasks, as many as there are lanes, of those with the first one's number of steps."""
        batch: list[tuple[Job, int, Task]] = []
        others: list[tuple[Job, int, Task]] = []
        while tasks and len(batch) < self.lanes:
            entry = tasks.popleft()
            (batch if not batch or entry[-1].steps == batch[0][-1].steps else others).append(entry)
        tasks.extendleft(reversed(others))
        return batch

    def _stop_if_spent(self, tasks, job: Job, seconds: float, most: int | None) -> None:
        """Stops the work on a domain if its image has an answer or no time left."""
        state = self.states[job.domain.image]
        over = state.seconds >= seconds if most is None else False
        if over or self._answered(state):
            for entry in [entry for entry in tasks if entry[0] is job]:
                tasks.remove(entry)
            state.running -= 1
            if not self._answered(state):
                self._wait(state, job.domain)

    def _answered(self, state: ImageState) -> bool:
        return state.found is not None and self.nearer is None

    def _next(self, seconds: float, most: int | None) -> Domain | None:
        """Takes the next domain: the least bound of the image with the fewest domains taken; None if there is none."""
        able = [
            state
            for state in self.states
            if state.waiting
            and not self._answered(state)
            and (state.seconds < seconds if most is None else state.taken < most)
        ]
        if not able:
            return None
        state = min(able, key=lambda state: state.taken)
        domain = heapq.heappop(state.waiting)[-1]
        state.taken += domain.other != ALL
        return domain

    def _advance(self, tasks, job: Job, found: list[Bounded] | None) -> None:
        try:
            wanted = job.settling.send(found) if found is not None else next(job.settling)
        except StopIteration:
            self.states[job.domain.image].running -= 1
            return
        job.missing, job.found = len(wanted), {}
        tasks.extend((job, slot, task) for slot, task in enumerate(wanted))

    # The work on a domain

    def _settle(self, domain: Domain) -> Settling:
        """Bounds a domain and narrows it as long as that helps; divides it if the bound is still not positive."""
        state = self.states[domain.image]
        if domain.other == ALL:
            yield from self._survey(domain)
            return
        (found,) = yield [Task(domain)]
        domain = _raised(domain, found.bound)._replace(start=found.start)
        while domain.bound <= 0:
            costly = _costly(self._narrowable(found.scores), _worthwhile(domain))
            if not len(costly):
                break
            before = domain.bound
            domain = yield from self._narrow(domain, costly)
            if domain.bound > 0:
                break
            (found,) = yield [Task(domain)]
            domain = _raised(domain, found.bound)._replace(start=found.start)
            domain = domain._replace(eased=domain.bound - before)
            if not domain.bound > ENOUGH * before:
                break
        if domain.bound > 0:
            state.settled = min(state.settled, _proved(domain))
            return
        yield from self._divide(domain, _costly(found.scores, CHOICES))

    def _narrowable(self, scores: np.ndarray) -> np.ndarray:
        """The scores `[R]` of all ramps' entries, 0 for those whose arguments' bounds are not narrowed."""
        keep = [np.full(size, number in self.narrowed) for number, size in enumerate(self._sizes())]
        return np.where(np.concatenate(keep), scores, 0)

    def _survey(self, whole: Domain) -> Settling:
        """Bounds the leads over an image's whole region; has a domain wait for each that is not positive.

        For these, the bounds of arguments of ramps are improved first by planes above the first ramps, once for all
        leads.
        """
        state, leads = self.states[whole.image], self._leads(whole)
        found = yield [Task(lead) for lead in leads]
        leads = [_raised(lead, one.bound) for lead, one in zip(leads, found, strict=True)]
        state.settled = min([state.settled, *(lead.bound for lead in leads if lead.bound > 0)])
        scores = [one.scores for lead, one in zip(leads, found, strict=True) if not lead.bound > 0]
        if not scores:
            return
        undecided = self._split(np.max(scores, 0) > 0)
        for ramp in self.deeper:
            entries = np.flatnonzero(undecided[ramp])
            if 0 < len(entries) <= SURVEYED:
                asked = [Task(whole, ramp, entry, sign, 0.0) for entry in entries.tolist() for sign in (1, -1)]
                whole = self._narrowed(whole, asked, (yield asked))._replace(narrowed=False)
        for lead in leads:
            if not lead.bound > 0:
                self._wait(state, lead._replace(boxes=whole.boxes))

    def _leads(self, whole: Domain) -> list[Domain]:
        """The whole region as a domain for each lead that CROWN's bound of is not positive."""
        return [whole._replace(other=o, bound=bound) for o, bound in self.states[whole.image].leads.items()]

    def _narrow(self, domain: Domain, costly: np.ndarray) -> Generator[list[Task], list[Bounded], Domain]:
        """The domain with better bounds of some entries; its own bound is inf if they contradict each other."""
        for some in np.split(costly, range(GROUP, len(costly), GROUP)):
            asked = [self._target(domain, entry, sign) for entry in some for sign in (1, -1)]
            domain = self._narrowed(domain, asked, (yield asked))
            if domain.bound > 0:
                break
        return domain

    def _divide(self, domain: Domain, costly: np.ndarray) -> Settling:
        """Divides a domain by the sign of the entry, of a few, whose halves have the best bounds."""
        if not len(costly):
            yield from self._finish(domain)
            return
        state, signs = self.states[domain.image], (1, -1)
        halves = [[self._half(domain, entry, sign) for sign in signs] for entry in costly]
        found = iter((yield [Task(half, steps=TRIED) for two in halves for half in two]))
        halves = [[_raised(half, next(found).bound) for half in two] for two in halves]
        best = max(halves, key=lambda two: sum(min(half.bound, 0) for half in two))
        gain = sum(min(half.bound, 0) - domain.bound for half in best) / 2
        for half in best:
            if half.bound > 0:
                state.settled = min(state.settled, _proved(half))
            else:
                self._wait(state, half._replace(gain=gain if gain > 0 else domain.gain))

    def _finish(self, domain: Domain) -> Settling:
        """Settles a domain in which the signs of all ramps are known, so that the least lead is a linear program's."""
        state = self.states[domain.image]
        before = state.radius
        signs, multipliers, image = self._program(domain)
        if image is not None and self._is_adversarial(domain, image):
            self._met(domain, image)
            if self.nearer is None:
                return
        decided = domain._replace(signs=self._split(signs))
        if multipliers is not None:
            proof = dict(zip(self.ramps, multipliers, strict=True))
            decided = decided._replace(start=self.roots[domain.image].start._replace(multipliers=proof))
        (found,) = yield [Task(decided, steps=LAST_STEPS if multipliers is None else STEPS)]
        domain = _raised(domain, found.bound)
        if domain.bound > 0:
            state.settled = min(state.settled, _proved(domain))
        elif state.radius < before:  # a nearer adversarial image was found
            self._wait(state, domain)
        else:
            state.given_up, state.settled = True, min(state.settled, domain.bound)

    def _place(self, entry: int) -> tuple[int, int]:
        """The number of the ramp of an entry of `Bounded.scores`, and the entry's place in the flattened ramp."""
        for ramp, size in enumerate(self._sizes()):
            if entry < size:
                return ramp, int(entry)
            entry -= size
        raise IndexError

    def _sizes(self) -> list[int]:
        """The number of entries of each ramp."""
        return [math.prod(shape) for shape in self.ramps.values()]

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, ...]:
        """Splits an array `[R]` of all ramps' entries into one of each ramp's shape."""
        ends = np.cumsum(self._sizes())[:-1]
        return tuple(part.reshape(s) for part, s in zip(np.split(flat, ends), self.ramps.values(), strict=True))

    def _target(self, domain: Domain, entry: int, sign: int) -> Task:
        ramp, place = self._place(entry)
        low, high = (float(z.reshape(-1)[place]) for z in domain.boxes[self.asked[ramp]])
        weight = SHARE * (high - low) / -domain.bound if domain.bound < 0 else 0.0
        return Task(domain, ramp, place, sign, weight if np.isfinite(weight) else 0.0)

    def _narrowed(self, domain: Domain, asked: list[Task], found: list[Bounded]) -> Domain:
        """The domain with the bounds that were found for these tasks, as `_narrow` returns it."""
        boxes = list(domain.boxes)
        for task, one in zip(asked, found, strict=True):
            at = self.asked[task.ramp]
            if boxes[at] is domain.boxes[at]:
                boxes[at] = Interval(*(z.copy() for z in boxes[at]))
            low, high = (z.reshape(-1) for z in boxes[at])  # views
            if task.sign > 0 and one.bound > low[task.entry]:
                low[task.entry] = one.bound
            elif task.sign < 0 and -one.bound < high[task.entry]:
                high[task.entry] = -one.bound
            if low[task.entry] > high[task.entry]:
                return domain._replace(bound=np.inf, narrowed=True)
        return domain._replace(boxes=tuple(boxes), narrowed=True)

    def _half(self, domain: Domain, entry: int, sign: int) -> Domain:
        """The part of a domain where an entry has a sign."""
        ramp, place = self._place(entry)
        signs = list(domain.signs)
        signs[ramp] = signs[ramp].copy()
        signs[ramp].reshape(-1)[place] = sign
        return domain._replace(signs=tuple(signs))

    # Linear programs

    def _pieces(self, tasks: list[Task]) -> tuple[pattern.Affine, np.ndarray]:
        """The targets as affine functions where the signs of all ramps are known; and the signs `[R]`."""

        def some(tasks: list[Task]) -> list[tuple[np.ndarray, Any, np.ndarray]]:
            a, at, signs = map(np.asarray, domains.pieces(*self.how, *self._lanes(tasks)[:-1]))
            return list(zip(a.reshape(len(at), -1), at, signs.T, strict=True))[: len(tasks)]

        a, at, signs = zip(*self._in_parts(some, tasks), strict=True)
        return pattern.Affine(np.array(a, float), np.array(at, float)), signs[0]

    def _program(self, domain: Domain) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None, np.ndarray | None]:
        """Solves a domain's linear program: signs `[R]`; multipliers and the image of least lead, None if not found."""
        with self._counted(domain):
            affine, signs = self._pieces([Task(domain), *self._all_steps(domain)])
            lead, steps = _parted(affine)
            if not self._has_programs or not _finite(affine):
                return signs, None, None
            original = self.images[domain.image].reshape(-1).astype(float)
            radius = float(self.states[domain.image].radius)
            solved = pattern.least_lead(lead, steps, signs, original, radius, self.norm)
        if solved is None:
            return signs, None, None
        found, multipliers = solved
        return signs, self._split(multipliers), None if found is None else self._image(domain, found)

    @property
    def _has_programs(self) -> bool:
        """Whether linear programs are made: not for the Euclidean norm, nor for more than `ROWS` entries."""
        return self.norm != 2 and sum(self._sizes()) <= ROWS

    @contextmanager
    def _counted(self, domain: Domain) -> Iterator[None]:
        """Adds the seconds inside to those of the domain's image."""
        if self._has_programs:
            self._pieces([Task(domain)])  # compiles
        began = time.monotonic()
        try:
            yield
        finally:
            self.states[domain.image].seconds += time.monotonic() - began

    def _all_steps(self, domain: Domain) -> list[Task]:
        if not self._has_programs:
            return []
        return [Task(domain, ramp, entry, 1, 0.0) for ramp, size in enumerate(self._sizes()) for entry in range(size)]

    def _image(self, domain: Domain, flat: np.ndarray) -> np.ndarray:
        """A linear program's image in single precision, moved towards the original so that rounding stays within."""
        d = flat - self.images[domain.image].reshape(-1)
        return self._single(domain, np.sign(d) * np.maximum(np.abs(d) * region.INSIDE - region.ROUNDED, 0))

    def _single(self, domain: Domain, d: np.ndarray) -> np.ndarray:
        """The image with a perturbation, rounded to single precision in the pixels that are perturbed."""
        original, d = self.images[domain.image], d.reshape(self.images.shape[1:])
        moved = np.clip(original + d, 0, 1).astype(np.float32).astype(original.dtype)
        return np.where(d == 0, original, moved)

    def _met(self, domain: Domain, image: np.ndarray) -> None:
        """Keeps an image if it is adversarial, within the radius, and nearer than the one kept so far."""
        state = self.states[domain.image]
        if self.nearer is not None:
            image = self._single(domain, image - self.images[domain.image])
        distance = self._distance(domain, image)
        if distance > float(state.radius) or distance >= state.distance or not self._is_adversarial(domain, image):
            return
        if self.nearer is not None and self._has_programs:
            with self._counted(domain):
                nearer = self._nearer(domain, image)
            if (there := self._distance(domain, nearer)) < distance:
                image, distance = nearer, there
        state.found, state.distance = image, distance
        if self.nearer is None:
            state.waiting = []
        else:
            state.radius = min(state.radius, self.images.dtype.type(self.nearer * distance))

    def _distance(self, domain: Domain, image: np.ndarray) -> float:
        difference = image.astype(float) - self.images[domain.image]
        return float(geometry.exact_norm(difference[None], self.norm)[0])

    def _nearer(self, domain: Domain, image: np.ndarray) -> np.ndarray:
        """The nearest adversarial image with the activation pattern of one; that one itself if none is found."""
        original, state = self.images[domain.image], self.states[domain.image]
        signs = np.asarray(domains.signs_at(*self.how, image[None]))[:, 0]
        there = domain._replace(boxes=self.roots[domain.image].boxes, signs=self._split(signs))
        affine = self._pieces([Task(there), *self._all_steps(there)])[0]
        if not _finite(affine):
            return image
        lead, steps = _parted(affine)
        below = max(AIM * driver.clearly(original.dtype), SINGLE) * float(np.abs(self.classifier(image[None])).max())
        given = (original.reshape(-1).astype(float), float(state.radius), self.norm, below)
        found = pattern.nearest(lead, steps, signs, *given)
        if found is None:
            return image
        nearer = self._single(domain, found - given[0])
        return nearer if self._is_adversarial(domain, nearer) else image

    def _is_adversarial(self, domain: Domain, image: np.ndarray) -> bool:
        return bool(misclassified(self.classifier, image[None], self.labels[[domain.image]])[0])

    # Lanes

    def _lanes(self, tasks: list[Task]) -> tuple:
        """The arguments of `domains.bounded` but the number of steps; the last task fills the lanes that are left."""
        rows = tasks + tasks[-1:] * (self.lanes - len(tasks))
        at = np.array([task.domain.image for task in rows])
        dtype = self.images.dtype
        radii = np.array([self.states[i].radius for i in at], dtype)
        others = np.array([task.domain.other for task in rows], np.int32)
        boxes = [
            jax.tree.map(lambda *each: np.stack(each, -1), *[task.domain.boxes[n] for task in rows])
            for n in range(len(rows[0].domain.boxes))
        ]
        signs = {place: np.stack([task.domain.signs[n] for task in rows], -1) for n, place in enumerate(self.ramps)}
        target = Target(
            np.array([task.ramp for task in rows], np.int32),
            np.array([task.entry for task in rows], np.int32),
            np.array([task.sign for task in rows], np.int32),
            np.array([task.weight for task in rows], dtype),
        )
        starts = [task.domain.start or self.roots[task.domain.image].start for task in rows]
        start = jax.tree.map(lambda *each: np.stack(each, -1), *starts)
        return (self.images[at], self.labels[at], radii, others, boxes, signs, target, start)

    def _in_parts(self, work: Callable[[list[Task]], list[T]], tasks: list[Task]) -> list[T]:
        """What `work` gives for tasks, at most `lanes` of them at a time; that number is halved if memory runs out."""
        done: list[T] = []
        while len(done) < len(tasks):
            try:
                done += work(tasks[len(done) : len(done) + self.lanes])
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or self.lanes == 1:
                    raise
                self.lanes //= 2
        return done

    def _bound(self, tasks: list[Task]) -> list[Bounded]:
        """Bounds the target of every task; they take the same number of steps."""
        return self._in_parts(self._bound_together, tasks)

    def _bound_together(self, tasks: list[Task]) -> list[Bounded]:
        (steps,) = {task.steps for task in tasks}
        out = jax.tree.map(np.asarray, domains.bounded(*self.how, *self._lanes(tasks), jnp.int32(steps)))
        bounds = np.nan_to_num(out.bound.astype(float), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        scores = np.nan_to_num(out.scores, nan=0.0, posinf=0.0)
        return [
            Bounded(
                float(bounds[n]),
                out.candidates[n],
                bool(out.fooled[n]),
                scores[:, n],
                None if task.sign else jax.tree.map(lambda x, n=n: x[..., n].copy(), out.start),
            )
            for n, task in enumerate(tasks)
        ]


@jax.jit
def misclassified(classifier: Classifier, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether images are misclassified, `[B]`, as `driver.misclassified` judges; compiled."""
    return driver.misclassified(classifier, images, labels)


def _raised(domain: Domain, bound: float) -> Domain:
    return domain._replace(bound=max(bound, domain.bound))


def _proved(domain: Domain) -> float:
    """The lower bound of the lead that a positive bound proves; in a narrowed domain only that the lead is positive."""
    return float(np.finfo(np.float32).tiny) if domain.narrowed else domain.bound


def lanes_for(platform: str) -> int:
    """How many functions a device bounds together, before its memory is known to be too small."""
    return LANES.get(platform, LANES_OF_ACCELERATOR)


def _worthwhile(domain: Domain) -> int:
    """How many entries' bounds to improve in a round, before a domain is divided.

    The bound rises by `gain` with a split; so many splits one below the other make it positive, and as many domains as
    2 to the power of that. Better bounds are found once for all of these; if they raise the bound by as much as the
    last time, they save that share of the domains which the splits for that rise would have made.
    """
    if not 0 < domain.gain < np.inf:
        return NARROWED
    splits, saved = (-domain.bound / domain.gain, 1 - 2 ** -(domain.eased / domain.gain))
    return min(NARROWED, int(WORTH * saved * 2 ** min(splits, 64)) // GROUP * GROUP)


def _costly(scores: np.ndarray, most: int) -> np.ndarray:
    """The entries with the largest scores, largest first, without those of score 0."""
    order = np.argsort(-scores, kind="stable")[:most]
    return order[scores[order] > 0]


def _finite(affine: pattern.Affine) -> bool:
    return all(np.isfinite(part).all() for part in affine)


def _parted(affine: pattern.Affine) -> tuple[pattern.Affine, pattern.Affine]:
    """Parts the affine functions of a linear program into the lead, which is the first, and the ramps' differences."""
    return pattern.Affine(affine.coefficients[:1], affine.at[:1]), pattern.Affine(
        affine.coefficients[1:], affine.at[1:]
    )
