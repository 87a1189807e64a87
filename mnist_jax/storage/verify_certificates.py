"""Recheck a file of certificates: attack the certified images, and prove some of them anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.attack.minimal_norm.nearest import nearest
from mnist_jax.certify.driver import CertifyResult
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split
from mnist_jax.geometry import exact_norm
from mnist_jax.storage.results import Certificates, Record
from mnist_jax.storage.verify import CLOSE, clearly_adversarial, faulty, in_words, logits, originals

PROVED = 20  # images at most that are proved anew, as proofs take most of the time; chosen, not tuned
# `refutes` also tries the perturbation found times this factor: what an attack finds is so near the decision boundary
# that rounding may decide the class.
FARTHER = 1.001


def verify(
    record: Record[Certificates],
    model: Path,
    classifier: Classifier,
    split: Split,
    path: Path,
    prove: Callable[..., CertifyResult],
) -> dict[str, Any]:
    """Rechecks certificates.

    Every image is classified anew. The certified images are attacked by `nearest`, and the distance of an adversarial
    image found is measured in double precision. Some of them, evenly spread, are proved anew.

    Args:
      record: the certificates.
      model: path of the network's file, whose SHA-256 must be that in the record.
      classifier: the network.
      split: the images that were certified.
      path: of the file of results.
      prove: the certification method that the record names.

    Returns:
      A report: the numbers of `images`, of those `certified`, `fooled` and `open`, of certified images `refuted` by an
      adversarial image within the radius, of those `proved_anew` (the attempts), and of these those that stayed
      `unproved`; and `wrong`, for each image that contradicts its certificate the `index` and a list `what` of the
      faults.

    Raises:
      InputError: the file is of other weights or another split, or damaged.
      UnsupportedOperation: the method has no bound for an operation of the classifier.
    """
    x, found = originals(record, model, classifier, split, path), record.result
    certified, fooled = (np.asarray(flags, bool) for flags in (found.certified, found.fooled))
    norm = float(record.about["norm"])
    refuted = refutes(classifier, record, x, certified, np.asarray(found.radius, float))
    chosen = _some(certified & ~refuted)
    unproved = np.zeros_like(certified)
    if len(chosen):
        # Slightly less than the radius: a largest radius may just fail on a device or in a batch that rounds otherwise.
        radius = np.asarray(found.radius, float)[chosen] * (1 - CLOSE)
        unproved[chosen] = ~np.asarray(prove(classifier, x[chosen], record.labels[chosen], radius, norm=norm).certified)
    faults = _claims(classifier, record, x) | {"refuted, by an adversarial image within its radius": refuted}
    faults |= {"not proved anew": unproved}
    return {
        "file": str(path),
        "model": str(model),
        "method": record.about["method"],
        "images": len(x),
        "certified": int(certified.sum()),
        "fooled": int(fooled.sum()),
        "open": int((~certified & ~fooled).sum()),
        "refuted": int(refuted.sum()),
        "proved_anew": len(chosen),
        "unproved": int(unproved.sum()),
        "wrong": faulty(record, faults),
    }


def _claims(classifier: Classifier, record: Record[Certificates], x: np.ndarray) -> dict[str, np.ndarray]:
    """The faults that show without an attack or a proof: for each, by its description, which images have it, `[N]`."""
    found = record.result
    certified, fooled = (np.asarray(flags, bool) for flags in (found.certified, found.fooled))
    images, radius = np.asarray(found.images), np.asarray(found.radius, float)
    with np.errstate(all="ignore"):  # a comparison with NaN is false, which makes a fault of it
        lengths = exact_norm(images.astype(float) - x, float(record.about["norm"]))
        answers = logits(classifier, images)
        misclassified = (answers.argmax(1) != record.labels) | ~np.isfinite(answers).all(1)
        faults = {
            "not in [0, 1]": ~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1),
            "certified and fooled": certified & fooled,
            "certified without a positive margin": certified & ~(found.margin > 0),
            "not misclassified": fooled & ~misclassified,
            "farther than its radius": fooled & ~(lengths <= radius * (1 + CLOSE) + 1e-6),
            "not the original image": ~fooled & ~(exact_norm(images.astype(float) - x, np.inf) <= 1e-6),
        }
    if (asked := record.about["options"].get("radius")) is not None:
        faults["at another radius than was asked for"] = radius != asked
    return faults


def refutes(
    classifier: Classifier,
    record: Record[Any],
    x: np.ndarray,
    certified: np.ndarray,
    radius: np.ndarray,
    effort: str = "standard",
) -> np.ndarray:
    """Which certified images have an adversarial image within their radius, as far as `nearest` finds one.

    Args:
      classifier: the network.
      record: the results, which give labels and norm.
      x: the original images `[N, *shape]`.
      certified: which images to attack, `[N]`.
      radius: `[N]`.
      effort: of `nearest`.

    Returns:
      Booleans `[N]`, true for misclassified originals too.
    """
    refuted, rows, norm = np.zeros(len(x), bool), np.flatnonzero(certified), float(record.about["norm"])
    if not len(rows):
        return refuted
    start, labels = x[rows].astype(float), record.labels[rows]
    found = np.asarray(nearest(classifier, x[rows], labels, norm=norm, effort=effort).images, float)
    refuted[rows] = clearly_adversarial(logits(classifier, x[rows]), labels, None)
    for times in (1, FARTHER):
        images = np.clip(start + times * (found - start), 0, 1).astype(np.float32)
        within = exact_norm(images - start, norm) <= radius[rows]
        refuted[rows] |= within & clearly_adversarial(logits(classifier, images), labels, None)
    return refuted


def _some(which: np.ndarray) -> np.ndarray:
    """The places of at most `PROVED` of the images that `which` marks, evenly spread."""
    rows = np.flatnonzero(which)
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(PROVED, len(rows))).astype(int))]


def text(report: dict[str, Any]) -> str:
    """The report as lines for a person."""
    lines = [
        f"{report['images']} images, {report['certified']} certified, {report['fooled']} fooled, "
        f"{report['open']} open, {len(report['wrong'])} wrong",
        *in_words(report["wrong"]),
    ]
    proved = report["proved_anew"] - report["unproved"]
    if left := report["certified"] - report["refuted"]:
        lines.append(f"not refuted by an attack: {left} of {report['certified']} that are certified")
    if report["proved_anew"]:
        lines.append(f"re-proved by {report['method']}: {proved} of {report['proved_anew']}")
    return "\n".join(lines)
