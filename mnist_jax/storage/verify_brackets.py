"""Recheck a file of brackets: the images at the upper ends, and the lower ends by an attack."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.certify.exact import Bracket
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split
from mnist_jax.geometry import exact_norm
from mnist_jax.storage.results import Record
from mnist_jax.storage.verify import CLOSE, faulty, fools, in_words, logits, originals
from mnist_jax.storage.verify_certificates import refutes

EFFORT = "thorough"  # of the attack: what the bracket began with was found at the standard one, and would be again


def verify(record: Record[Bracket], model: Path, classifier: Classifier, split: Split, path: Path) -> dict[str, Any]:
    """What holds of the record at `path`, whose network is said to be the one at `model`.

    Every image is given to the classifier anew, and its distance is measured in double precision. All of them are
    attacked by `nearest`, with more effort than a bracket begins with: what it finds must not be within a lower end.
    No proof is repeated, which would take the time of the first.

    Returns:
      `images`; `found`, how many have an adversarial image; `proved`, how many a lower end above 0; `refuted`, of
      these, by an image that is nearer; `largest_error`, relative, of the upper ends; and `wrong`: for each image of
      which something does not hold, its index and what.

    Raises:
      InputError: the file is of other weights or another split, or not whole.
    """
    x = originals(record, model, classifier, split, path)
    lower, upper, images = (np.asarray(part, float) for part in record.result)
    found, proved = np.isfinite(upper), lower > 0
    refuted = refutes(classifier, record, x, proved, lower, EFFORT)
    answers = logits(classifier, images)
    misclassified = (answers.argmax(1) != record.labels) | ~np.isfinite(answers).all(1)
    with np.errstate(all="ignore"):  # what is not a number is not within any limit
        lengths = exact_norm(images - x, float(record.about["norm"]))
        error = np.where(found, np.abs(upper - lengths), 0) / np.maximum(lengths, 1e-3)
        at_once = fools(logits(classifier, x), record.labels, None)  # without any perturbation
        faults = {
            "not in [0, 1]": ~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1),
            "lower end above the upper one": lower > upper,
            "not misclassified": found & ~misclassified,
            "not of the distance it says": found & ~(error <= CLOSE),
            "not the image itself": ~found & ~(exact_norm(images - x, np.inf) <= 1e-6),
            "not needed, as the image itself fools": at_once & (upper > 0),
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
    lines = [
        f"{report['images']} images, {report['found']} with an adversarial image, {len(report['wrong'])} wrong",
        *in_words(report["wrong"]),
    ]
    if report["largest_error"] is not None:
        lines.append(f"upper ends hold to {report['largest_error']:.1e}")
    if report["proved"]:
        left = report["proved"] - report["refuted"]
        lines.append(f"lower ends not refuted by an attack: {left} of {report['proved']}; they are not proved anew")
    return "\n".join(lines)
