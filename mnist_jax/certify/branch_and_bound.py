"""Branch and bound: what linear bounds leave open is divided by the signs of its steps, until it is settled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.certify import driver
from mnist_jax.certify.crown import crown
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.search import Search, misclassified
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.geometry import INF


def branch_and_bound(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = INF,
    seconds: float = 60.0,
    domains: int | None = None,
    search: Callable[..., Any] | None = None,
) -> CertifyResult:
    """Certifies by linear bounds over parts of the region, which it divides where they do not suffice.

    What `crown` certifies, or finds an adversarial image of, is done. For each other class that is left, there is a
    domain, and what is done to a domain is, in this order, until its bound is positive and it is settled:

    1. The label's lead over the other class is bounded, with the best slopes and multipliers that Adam finds (Wang et
       al., "Beta-CROWN", 2021).
    2. Those steps that cost the bound most are bounded again, over those images of the domain only for which the lead
       is not positive (Kotha et al., "Provably bounding neural network preimages", 2023): there, many have one sign.
       That is repeated as long as it helps.
    3. The domain is divided into two by the sign of one ReLU (or maximum, or absolute value), the best of some that
       cost most by the bounds of both halves. These are domains of their own.
    4. If all steps have one sign, so that it can't be divided, the least lead is that of a linear program.

    The image is certified when no domain is left. Images at which bounds are nearly attained are tried on the way, and
    settle it if they are adversarial. Where a certificate needed step 2, `margin` says only that it is positive.

    Args:
      classifier, images, labels, radius, norm: as in `crown`.
      seconds: for each image, at most, without compiling; what is left is open. Where `domains` is given it is not
        looked at.
      domains: that are begun for each image, at most; with it, and only with it, the result is always the same.

      search: an attack with a radius, such as `attack.apgd`, called as `search(classifier, images, labels, radius,
        norm=norm)` for what CROWN leaves; what its `images` have within the radius that is adversarial is taken.

    Raises:
      ValueError: an argument is not what it should be.
      UnsupportedOperation: the classifier computes something that no bound is known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    if domains is not None:
        arguments.counts(domains=domains)
    norm = geometry.check_norm(norm, driver.NORMS)
    if classifier.bounds != UNIT:
        how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains, "search": search}
        return driver.in_units(branch_and_bound, classifier, images, labels, radius, **how)
    x, classes, radii = driver.checked(classifier, images, labels, radius)
    first = crown(classifier, x, classes, radii, norm=norm)
    first = first if search is None else _searched(search, first, classifier, x, classes, radii, norm)
    open_ = _open(first)
    if not len(open_):
        return first
    certified, fooled, margin, shown = (np.array(part) for part in first)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        images_, labels_, radii_ = (np.asarray(part)[open_] for part in (x, classes, radii))
        tree = Search(classifier, norm, images_, labels_, radii_)
        if not tree.ramps:  # there is nothing to divide
            return first
        tree.run(seconds, domains)
    for place, state in zip(open_, tree.states, strict=True):
        if state.found is not None:
            fooled[place], shown[place] = True, state.found
            continue
        certified[place] = state.done
        margin[place] = max(margin[place], state.least())
    return CertifyResult(*map(jnp.asarray, (certified & (margin > 0), fooled, margin, shown)))


def _open(result: CertifyResult) -> np.ndarray:
    return np.flatnonzero(~np.asarray(result.certified | result.fooled))


def _searched(search, result, classifier, x, classes, radii, norm) -> CertifyResult:
    """With what an attack finds of the images that are open."""
    if not len(open_ := _open(result)):
        return result
    given = (x[open_], classes[open_], radii[open_])
    images = arguments.images_of(classifier, search(classifier, *given, norm=norm).images)
    distances = geometry.exact_norm(np.asarray(images, float) - np.asarray(given[0], float), norm)
    found = np.asarray(in_chunks(misclassified, (images, given[1]), classifier)) & (distances <= np.asarray(given[2]))
    fooled, shown = np.array(result.fooled), np.array(result.images)
    fooled[open_[found]], shown[open_[found]] = True, np.asarray(images)[found]
    return result._replace(fooled=jnp.asarray(fooled), images=jnp.asarray(shown))
