"""How near the nearest adversarial image is: no nearer than what is proved, no farther than what was found."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, attack, certify, geometry
from mnist_jax.certify import driver
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.geometry import INF
from mnist_jax.units import Units

JUST_BELOW = 0.99  # of the distance that was found, where it is tried to prove that nothing is nearer
PROOFS = 2  # there, at most, as long as each finds a nearer image
HALVINGS = 4  # where these fail, of the range in which a proof may be found, and of that of an image


class Bracket(NamedTuple):
    """Where the least norm of an adversarial perturbation is, for every image.

    Attributes:
      lower: `[B]`, no adversarial image is nearer than this: certified.
      upper: `[B]`, the distance of `images`: 0 for an image that is misclassified as it is, inf where none was found.
      images: `[B, *shape]`, adversarial where `upper` is finite, else the originals.
    """

    lower: jax.Array
    upper: jax.Array
    images: jax.Array


def bracket(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = INF,
    seconds: float = 60.0,
    domains: int | None = None,
) -> Bracket:
    """Brackets the distance of the nearest adversarial image, by an attack from above and proofs from below.

    `attack.nearest` finds one; `certify.branch_and_bound` proves that there is none within 0.99 of its distance, and
    where it does not, the largest radius that `crown` certifies is the lower end, and radii between the ends are tried.
    An adversarial image that is met on the way moves the upper end down.

    Args:
      classifier: of any shape of images.
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`, or None for the classifier's own predictions.
      norm: p, one of 1, 2 and inf.
      seconds: for the proofs of each image, at most, as in `branch_and_bound`; half of them for the lower end.
      domains: instead, at most, in each proof of an image.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    norm = geometry.check_norm(norm, driver.NORMS)
    x, classes, _ = driver.checked(classifier, images, labels, 0.0)
    if classifier.bounds != UNIT and len(x):
        return _in_units(classifier, x, classes, norm=norm, seconds=seconds, domains=domains)
    found = attack.nearest(classifier, x, classes, norm=norm)
    state = _Ends(classifier, np.asarray(x), np.asarray(classes), norm, found)
    rows = np.flatnonzero(state.upper > 0)
    for _ in range(PROOFS):  # again, where the first ones find a nearer image
        state.prove(rows, JUST_BELOW * state.ceiling[rows], seconds / 4 / PROOFS, domains)
        rows = rows[(state.ceiling == np.minimum(state.upper, state.limit))[rows] & state.wide()[rows]]
    rows = np.flatnonzero(state.wide())
    if len(rows):
        state.lower[rows] = certify.largest_radius(classifier, x[rows], classes[rows], norm=norm)
    for _ in range(HALVINGS):
        rows = np.flatnonzero(state.wide())
        state.prove(rows, (state.lower + state.ceiling)[rows] / 2, seconds / 2 / HALVINGS, domains)
    for _ in range(HALVINGS):
        low = np.maximum(state.lower, state.floor)
        rows = np.flatnonzero(low < JUST_BELOW * state.upper)
        rows = rows[np.isfinite(state.upper[rows])]
        state.prove(rows, (low + state.upper)[rows] / 2, seconds / 4 / HALVINGS, domains)
    return Bracket(*map(jnp.asarray, (state.lower, state.upper, state.shown)))


def _in_units(classifier: Classifier, images: jax.Array, labels: jax.Array, *, norm: float, **how: Any) -> Bracket:
    """The bracket for images in [0, 1], in the units of the classifier's bounds."""
    units = Units.of(classifier.bounds, images.dtype)
    u = units.inside(images)
    inside = bracket(classifier.in_unit_box, u, labels, norm=norm, **how)
    shown = units.outside(images, inside.images - u)
    distances = geometry.exact_norm(np.asarray(shown, float) - np.asarray(images, float), norm)
    upper = np.where(np.isfinite(inside.upper), distances, np.inf).astype(images.dtype)
    return Bracket(units.within(inside.lower, u, norm), jnp.asarray(upper), shown)


class _Ends:
    """The ends so far; the least radius at which no proof was found, and the largest at which no image was."""

    def __init__(
        self, classifier: Classifier, images: np.ndarray, labels: np.ndarray, norm: float, found: attack.AttackResult
    ) -> None:
        self.classifier, self.images, self.labels, self.norm = classifier, images, labels, norm
        self.lower, self.upper = np.zeros(len(images), np.float32), np.array(found.distance)
        self.shown = np.where(np.isfinite(self.upper).reshape(-1, *[1] * (images.ndim - 1)), found.images, images)
        self.limit = np.asarray(geometry.largest(jnp.asarray(images), norm)) if len(images) else self.upper
        self.ceiling = np.minimum(self.upper, self.limit)  # no perturbation is larger than the limit
        self.floor = np.zeros_like(self.lower)

    def wide(self) -> np.ndarray:
        """Where the lower end is farther from the upper one than is aimed at, and a proof may still bring it nearer."""
        aim = JUST_BELOW * (1 - 1e-6) * np.minimum(self.upper, self.limit)
        return (self.lower < aim) & (self.lower < JUST_BELOW * self.ceiling)

    def prove(self, rows: np.ndarray, radius: np.ndarray, seconds: float, domains: int | None) -> None:
        """Moves an end of these images to the radius, or below it, where it is settled there, else the ceiling."""
        if not len(rows):
            return
        images, labels = self.images[rows], self.labels[rows]
        how: dict[str, Any] = {"norm": self.norm, "seconds": seconds, "domains": domains}
        result = certify.branch_and_bound(self.classifier, images, labels, radius, **how)
        distances = geometry.exact_norm(np.asarray(result.images, float) - images, self.norm)
        for row, one, certified, fooled, image, distance in zip(
            rows, radius, result.certified, result.fooled, np.asarray(result.images), distances, strict=True
        ):
            if certified:
                self.lower[row] = max(self.lower[row], one)
                continue
            if fooled and distance < self.upper[row]:
                self.upper[row], self.shown[row] = distance, image
            if not fooled:
                self.floor[row] = max(self.floor[row], one)
            self.ceiling[row] = min(self.upper[row] if fooled else one, self.ceiling[row])
