"""The certificate by branch and bound: regions that CROWN leaves open are divided by the signs of ramps."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.certify import driver
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.certify.search import BranchAndBound, crown_with_roots, misclassified
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import UNIT, Classifier
from mnist_jax.device import precisely
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
    """Certifies by linear bounds over parts of the region, which are divided where the bounds do not suffice.

    Images that `crown` certifies or finds adversarial images of are done. For each of the others, every class over
    which the lead (label's logit minus that class's) is not certified has a domain: at first the whole region. A domain
    goes through the following, until its bound is positive, which settles it:

    1. The lead is bounded, with slopes and multipliers optimized by Adam (Wang et al., "Beta-CROWN", 2021).
    2. Those arguments of ramps (ReLUs, maxima, absolute values) whose relaxation may cost the bound most are bounded
       again, for those images of the domain only whose lead is not positive (Kotha et al., "Provably bounding neural
       network preimages", 2023): there, many ramps have one sign. That is repeated as long as it helps, with fewer
       arguments the fewer domains a division is expected to make.
    3. The domain is divided into two by the sign of one ramp: of a few that may cost most, the one whose halves have
       the best bounds.
    4. If the signs of all ramps are known, so that there is nothing to divide, the least lead is that of a linear
       program.

    An image is certified when no domain is left. Images at which bounds are nearly attained are tried meanwhile, and
    settle the image if they are adversarial. Where a certificate needed number 2, `margin` only says that the margin is
    positive.

    Args:
      classifier, images, labels, radius, norm: as in `crown`.
      seconds: the most seconds for each image, without compilation; images that are not settled then are open.
      domains: instead of `seconds`, the most domains that are begun for each image. Only with this limit is the result
        reproducible.
      search: an attack such as `attack.apgd`, called as `search(classifier, images, labels, radius, norm=norm)` on the
        images that CROWN leaves open. Those of its result's `images` that are adversarial and within the radius settle
        their image.

    Returns:
      What is proved of each image, and adversarial images that were found.

    Raises:
      ValueError: an argument has the wrong shape, type or range.
      UnsupportedOperation: the classifier computes something that no bounds are known for.
    """
    arguments.numbers(0, np.inf, above=True, seconds=seconds)
    if domains is not None:
        arguments.counts(domains=domains)
    norm = geometry.check_norm(norm, driver.NORMS)
    if classifier.bounds != UNIT:
        how: dict[str, Any] = {"norm": norm, "seconds": seconds, "domains": domains, "search": search}
        return driver.in_units(branch_and_bound, classifier, images, labels, radius, **how)
    x, classes, radii = driver.checked(classifier, images, labels, radius)
    first, roots = crown_with_roots(classifier, x, classes, radii, norm=norm)
    first = first if search is None else _searched(search, first, classifier, x, classes, radii, norm)
    open_ = _open(first)
    if not len(open_):
        return first
    certified, fooled, margin, shown = (np.array(part) for part in first)
    with precisely():
        images_, labels_, radii_ = (np.asarray(part)[open_] for part in (x, classes, radii))
        ours = {place: roots[i] for place, i in enumerate(open_.tolist())}
        tree = BranchAndBound(classifier, norm, images_, labels_, radii_, roots=ours)
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


@precisely()
def _searched(search, result, classifier, x, classes, radii, norm) -> CertifyResult:
    """The result with adversarial images that an attack finds of the open ones."""
    if not len(open_ := _open(result)):
        return result
    given = (x[open_], classes[open_], radii[open_])
    images = arguments.images_of(classifier, search(classifier, *given, norm=norm).images)
    distances = geometry.exact_norm(np.asarray(images, float) - np.asarray(given[0], float), norm)
    found = np.asarray(in_chunks(misclassified, (images, given[1]), classifier)) & (distances <= np.asarray(given[2]))
    fooled, shown = np.array(result.fooled), np.array(result.images)
    fooled[open_[found]], shown[open_[found]] = True, np.asarray(images)[found]
    return result._replace(fooled=jnp.asarray(fooled), images=jnp.asarray(shown))
