"""Recheck a file of brackets: the adversarial images at the upper ends, and the lower ends by an attack."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.certify.exact import Bracket
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split
from mnist_jax.geometry import exact_norm
from mnist_jax.storage.results import Record
from mnist_jax.storage.verify import CLOSE, clearly_adversarial, faulty, in_words, logits, originals
from mnist_jax.storage.verify_certificates import refutes

EFFORT = "thorough"  # of the attack `nearest`; brackets are made at the standard effort, which would find the same


def verify(record: Record[Bracket], model: Path, classifier: Classifier, split: Split, path: Path) -> dict[str, Any]:
    """Rechecks brackets.

    Every adversarial image is classified anew, and its distance is measured in double precision. The images with a
    lower end are attacked by `nearest`, with more effort than brackets are made with: it must not find an adversarial
    image nearer than the lower end. No proof is repeated, as that would take as long as the first time.

    Args:
      record: the brackets.
      model: path of the network's file, whose SHA-256 must be that in the record.
      classifier: the network.
      split: the images that were bracketed.
      path: of the file of results.

    Returns:
      A report: the numbers of `images`, of those `found` an adversarial image for, those `proved` to have a lower end
      above 0, and of these those `refuted` by a nearer adversarial image; `largest_error`, the largest relative error
      of an upper end; and `wrong`, for each image that contradicts its bracket the `index` and a list `what` of the
      faults.

    Raises:
      InputError: the file is of other weights or another split, or damaged.
    """
    x = originals(record, model, classifier, split, path)
    lower, upper, images = (np.asarray(part, float) for part in record.result)
    found, proved = np.isfinite(upper), lower > 0
    refuted = refutes(classifier, record, x, proved, lower, EFFORT)
    answers = logits(classifier, images)
    misclassified = (answers.argmax(1) != record.labels) | ~np.isfinite(answers).all(1)
    with np.errstate(all="ignore"):  # a comparison with NaN is false, which makes a fault of it
        lengths = exact_norm(images - x, float(record.about["norm"]))
        error = np.where(found, np.abs(upper - lengths), 0) / np.maximum(lengths, 1e-3)
        at_once = clearly_adversarial(logits(classifier, x), record.labels, None)  # without any perturbation
        faults = {
            "not in [0, 1]": ~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1),
            "lower end above the upper one": lower > upper,
            "not misclassified": found & ~misclassified,
            "not at the stated distance": found & ~(error <= CLOSE),
            "not the original image": ~found & ~(exact_norm(images - x, np.inf) <= 1e-6),
            "not at distance 0, although the original is adversarial": at_once & (upper > 0),
            "refuted, by an adversarial image within its lower end": refuted,
        }
    largest = float(error.max(initial=0))
    return {
        "file": str(path),
        "model": str(model),
        "images": len(x),
        "found": int(found.sum()),
        "proved": int(proved.sum()),
        "refuted": int(refuted.sum()),
        "largest_error": largest if math.isfinite(largest) else None,
        "wrong": faulty(record, faults),
    }


def text(report: dict[str, Any]) -> str:
    """The report as lines for a person."""
    lines = [
        f"{report['images']} images, {report['found']} with an adversarial image, {len(report['wrong'])} wrong",
        *in_words(report["wrong"]),
    ]
    if report["largest_error"] is not None:
        lines.append(f"largest relative error of an upper end: {report['largest_error']:.1e}")
    if report["proved"]:
        left = report["proved"] - report["refuted"]
        lines.append(f"lower ends not refuted by an attack: {left} of {report['proved']}; they are not proved anew")
    return "\n".join(lines)
