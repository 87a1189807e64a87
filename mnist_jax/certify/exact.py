"""Brackets of the distance of the nearest adversarial image, by branch and bound on the radius."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, unstable
from mnist_jax.certify import domains as domains_
from mnist_jax.certify import driver
from mnist_jax.certify.branch_and_bound import branch_and_bound
from mnist_jax.certify.largest_radius import largest_radius
from mnist_jax.certify.search import BranchAndBound, crown, misclassified
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.device import precisely
from mnist_jax.geometry import INF
from mnist_jax.jaxprs.program import UnsupportedOperation
from mnist_jax.units import Units

# All chosen, not tuned.
CLOSE = 1e-4  # relative gap between the ends that is aimed at by default
FARTHER = 1.5  # factor by which the radius grows where no adversarial image was found within it
HALVINGS = 4  # proofs at smaller radii, where there was none just below the upper end
FIRST = 0.75  # share of the seconds for the proof just below the upper end; the halvings have the rest
SLACKER = 10  # factor by which each halving's largest relative gap exceeds the one before
SMALLEST = 1e-4  # the first radius where CROWN certifies none and no adversarial image is known
ROUNDING = 1e-6  # relative difference between radii that counts as rounding
FINE = 1e-3  # `close` below which the ends are for exact arithmetic by default


class Bracket(NamedTuple):
    """Bounds of the distance of the nearest adversarial image, for every image.

    Attributes:
      lower: `[B]`, certified: no adversarial image is nearer than this.
      upper: `[B]`, the distance of `images`; 0 where the original is misclassified, inf where no adversarial image was
        found.
      images: `[B, *shape]`, adversarial where `upper` is finite, else the originals.
    """

    lower: jax.Array
    upper: jax.Array
    images: jax.Array


def exact(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = INF,
    seconds: float = 600.0,
    domains: int | None = None,
    near: ArrayLike | None = None,
    close: float = CLOSE,
    device: bool | None = None,
) -> Bracket:
    """Finds the nearest adversarial image, and proves that there is none closer than `1 - close` of its distance.

    Branch and bound (see `branch_and_bound`) within a radius that falls to `1 - close` of the distance of each
    adversarial image found; domains that were settled within a larger radius stay settled. For the norms 1 and inf each
    adversarial image found is replaced by the nearest one with the same activation pattern, by a linear program. A
    quarter of the seconds is left for proofs at smaller radii, where there is none at that one.

    The ends hold for one of two functions, as `device` says. Those for the device hold for the classifier as it
    computes in single precision, in any order of summation, and in exact arithmetic, too, as `branch_and_bound` says.
    This costs as much of the distance as the largest rounding of the logits is worth: on the original project's MLP
    about 1e-4 in Linf, which is 1 % of a distance of 0.01. Ends for exact arithmetic do not pay for it: proofs are made
    in double precision, and images are adversarial in it. A device that rounds in single precision may then classify
    another way an image that is nearly as far away as the lower end, or the image at the upper end. A classifier that
    does not compute in the precision of its weights gets ends for the device in any case.

    Args:
      classifier: for images of any shape.
      images: `[B, *shape]` in [0, 1], or within the classifier's own bounds.
      labels: `[B]`, or None for the classifier's own predictions.
      norm: p, one of 1, 2 and inf.
      seconds: the most seconds for each image, without compilation.
      domains: instead of `seconds`, the most domains in each search of an image. Only with this limit is the result
        reproducible.
      near: `[B, *shape]`, adversarial images to start from, as an attack finds them. Images that are not adversarial
        are ignored. Without any the radius grows until an adversarial image is found, which takes long.
      close: the relative gap between the ends that is aimed at, in (0, 1).
      device: whether the ends are to hold for the device, or else for exact arithmetic. By default they hold for the
        device where `close` is at least 1e-3: below, rounding in single precision often leaves more than that open.

    Returns:
      A `Bracket` in the precision of the images; `lower` is rounded down and `upper` up.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    arguments.numbers(0, 1, above=True, below=True, close=close)
    if domains is not None:
        arguments.counts(domains=domains)
    norm = geometry.check_norm(norm, driver.NORMS)
    x, classes, _ = driver.checked(classifier, images, labels, 0.0)
    if classifier.bounds != UNIT and len(x):
        how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains, "close": close}
        how["device"] = device
        return _in_units(classifier, x, classes, near, **how)
    device = close >= FINE if device is None else device
    ends = _Ends(classifier, np.asarray(x), np.asarray(classes), norm, 1 - close, device)
    ends.is_met(np.arange(len(x)), np.asarray(x))
    if near is not None:
        given = arguments.images_of(classifier, near)
        if given.shape != x.shape:
            raise ValueError(f"near must be like the images, {list(x.shape)}, not {list(given.shape)}")
        ends.is_met(np.arange(len(x)), np.asarray(given))
    ends.approach(FIRST * seconds, domains)
    for turn in range(HALVINGS):
        ends.halve((1 - FIRST) / HALVINGS * seconds, domains, 1 - close * SLACKER ** (turn + 1))
    lower, upper = -driver.rounded_up(-ends.lower, x.dtype), driver.rounded_up(ends.upper, x.dtype)
    return Bracket(*(jnp.asarray(part, x.dtype) for part in (lower, upper, ends.shown)))


def _in_units(
    classifier: Classifier, images: jax.Array, labels: jax.Array, near: ArrayLike | None, *, norm: float, **how: Any
) -> Bracket:
    """Runs `exact` on images in [0, 1] and converts the result to the units of the classifier's bounds."""
    units = Units.of(classifier.bounds, images.dtype)
    u = units.inside(images)
    begin = None if near is None else units.inside(arguments.images_of(classifier, near))
    inside = exact(classifier.in_unit_box, u, labels, norm=norm, near=begin, **how)
    shown = units.outside(images, inside.images - u)
    distances = geometry.exact_norm(np.asarray(shown, float) - np.asarray(images, float), norm)
    upper = driver.rounded_up(np.where(np.isfinite(inside.upper), distances, np.inf), images.dtype)
    return Bracket(units.within(inside.lower, u, norm), jnp.asarray(upper), shown)


class _Ends:
    """The ends of every image's bracket so far.

    Attributes:
      lower, upper, shown: as in `Bracket`, in double precision.
      failed: `[B]`, the least radius at which a proof failed.
      limit: `[B]`, the largest distance within [0, 1].
      double: the classifier in double precision, for ends in exact arithmetic; None for ends that hold on the device.
    """

    def __init__(
        self, classifier: Classifier, images: np.ndarray, labels: np.ndarray, norm: float, share: float, device: bool
    ) -> None:
        self.classifier, self.images, self.labels, self.norm, self.share = classifier, images, labels, norm, share
        self.lower, self.upper = np.zeros(len(images)), np.full(len(images), np.inf)
        self.shown = images.copy()
        self.limit = np.asarray(geometry.largest(jnp.asarray(images), norm)) if len(images) else self.lower
        self.failed = self.limit.astype(float)
        self.double = None if device else _double(classifier, images, norm)
        self.judge = self.double or classifier

    def is_met(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Takes some rows' images as upper ends where they are adversarial and nearer than those so far."""
        images = images.astype(self.images.dtype)
        distances = geometry.exact_norm(images.astype(float) - self.images[rows], self.norm)
        with self._precision(self.judge):
            fooled = in_chunks(misclassified, (self._as(self.judge, images), self.labels[rows]), self.judge)
        for row, image, distance, adversarial in zip(rows, images, distances, np.asarray(fooled), strict=True):
            if adversarial and distance < self.upper[row]:
                self.upper[row], self.shown[row] = distance, image
                self.failed[row] = min(self.failed[row], distance)

    def wide(self) -> np.ndarray:
        """The rows whose lower end is not yet as close to the upper one as aimed at, nor to a radius that failed."""
        aim = self.share * (1 - ROUNDING) * np.minimum(self.upper, self.limit)
        return np.flatnonzero((self.lower < aim) & (self.lower < self.share * (1 - ROUNDING) * self.failed))

    def approach(self, seconds: float, domains: int | None) -> None:
        """Searches just below the upper ends; within growing radii where no adversarial image is known."""
        left = np.full(len(self.images), seconds if domains is None else np.inf)
        self._certify_by_crown(np.flatnonzero(~np.isfinite(self.upper)))
        while len(rows := self.wide()[left[self.wide()] > 0]):
            unknown = np.maximum(FARTHER * self.lower[rows], SMALLEST)
            radii = np.where(np.isfinite(self.upper[rows]), self.share * self.upper[rows], unknown)
            radii = np.minimum(radii, self.limit[rows])
            with self._proofs() as classifier:
                images, radii = (self._as(classifier, part) for part in (self.images[rows], radii))
                search = BranchAndBound(classifier, self.norm, images, self.labels[rows], radii, self.share)
                search.run(float(left[rows].min()), domains)
            for row, state in zip(rows, search.states, strict=True):
                left[row] = left[row] - state.seconds if state.done and state.found is None else 0
                if state.done:
                    self.lower[row] = max(self.lower[row], state.radius)
                else:
                    self.failed[row] = min(self.failed[row], state.radius)
                if state.found is not None:
                    self.is_met(np.array([row]), state.found[None])
        self._certify_by_crown(self.wide())

    def halve(self, seconds: float, domains: int | None, share: float) -> None:
        """Tries a proof in the middle of each bracket that is not closed, or at a share of the upper end if that is
        larger, and moves the end that the result settles."""
        rows = self.wide()
        if not len(rows):
            return
        radii = (self.lower + self.failed)[rows] / 2
        slack = share * self.upper[rows]
        radii = np.where(np.isfinite(slack) & (slack < self.failed[rows]), np.maximum(radii, slack), radii)
        with self._proofs() as classifier:
            given = (self._as(classifier, self.images[rows]), self.labels[rows], self._as(classifier, radii))
            result = branch_and_bound(classifier, *given, norm=self.norm, seconds=seconds, domains=domains)
        certified, fooled = np.asarray(result.certified), np.asarray(result.fooled)
        self.lower[rows[certified]] = radii[certified]
        open_ = ~(certified | fooled)
        self.failed[rows[open_]] = radii[open_]
        if fooled.any():
            self.is_met(rows[fooled], np.asarray(result.images)[fooled])

    def _certify_by_crown(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        with self._proofs() as classifier:
            radii = largest_radius(
                classifier, self._as(classifier, self.images[rows]), self.labels[rows], norm=self.norm, method=crown
            )
        self.lower[rows] = np.maximum(self.lower[rows], radii)

    @contextmanager
    def _proofs(self) -> Iterator[Classifier]:
        """The classifier that proofs are about, in its precision."""
        with self._precision(self.double):
            yield self.double or self.classifier

    def _precision(self, classifier: Classifier | None) -> ExitStack:
        stack, double = ExitStack(), classifier is not None and classifier is self.double
        stack.enter_context(precisely())
        stack.enter_context(jax.enable_x64(double or unstable.setting("jax_enable_x64")))
        return stack

    def _as(self, classifier: Classifier, array: np.ndarray) -> np.ndarray:
        return array.astype(self.images.dtype if classifier is self.classifier else float)


def _double(classifier: Classifier, images: np.ndarray, norm: float) -> Classifier | None:
    """The classifier with its weights in double precision; None if it does not compute in the precision of its weights,
    or is in double precision already."""
    if images.dtype == np.float64 or not len(images):
        return None
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        double = replace(classifier, params=jax.tree.map(_wider, classifier.params))
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.dtype(float))
        label, radius = (jax.ShapeDtypeStruct((1,), kind) for kind in (np.int32, float))
        try:
            platform = domains_.platform_for(double, one.shape[1:], one.dtype)
            jax.eval_shape(partial(domains_.root, platform, norm), double, one, label, radius)
        except (UnsupportedOperation, TypeError):
            return None
    return double


def _wider(leaf: Any) -> Any:
    return jnp.asarray(leaf, float) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf
