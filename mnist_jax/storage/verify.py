"""Recheck a file of attack results from its images alone, with nothing of the code that made it."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split
from mnist_jax.errors import InputError
from mnist_jax.evaluation import predict
from mnist_jax.geometry import exact_norm
from mnist_jax.storage.results import R, Record, check_about, targets_of, weights_of

# Logits differ in their last bits from one batch and device to the next; a failure that fools by twice what attacks
# leave to that, 1e-5 of the largest logit, is none.
CLEAR = 2e-5
CLOSE = 1e-4  # relative: sums and differences of float32 are rounded otherwise in double precision
SHOWN = 5  # wrong images in the text


def verify(
    record: Record[AttackResult], model: Path, classifier: Classifier, split: Split, path: Path
) -> dict[str, Any]:
    """What holds of the record at `path`, whose network is said to be the one at `model`.

    Every image is given to the classifier anew, and its distance is measured in double precision.

    Returns:
      `images`, `successes`, `largest_error` (relative, of the distances), and `wrong`: for each image of which
      something does not hold, its index and what.

    Raises:
      InputError: the file is of other weights or another split, or not whole.
    """
    x = originals(record, model, classifier, split, path)
    options, targets = record.about["options"], targets_of(record)
    images, distance = np.asarray(record.result.images), np.asarray(record.result.distance, float)
    success = np.asarray(record.result.success, bool)
    answers = logits(classifier, images)
    if max(targets or [0]) >= answers.shape[1]:
        raise InputError(f"{path} is damaged: its targets are not classes")
    predictions = answers.argmax(1)
    fooled = predictions != record.labels if targets is None else predictions == targets
    with np.errstate(all="ignore"):  # what is not a number is not within any limit
        r = images.astype(float) - x
        lengths = exact_norm(r, float(record.about["norm"]))
        error = np.where(success, np.abs(distance - lengths), 0) / np.maximum(lengths, 1e-3)
        inside = ((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1)
        clearly = fools(answers, record.labels, targets)
        at_once = fools(logits(classifier, x), record.labels, targets)  # without any perturbation
        faults = {
            "not in [0, 1]": ~inside,
            "not misclassified": success & ~fooled,
            "not of the distance it says": success & ~(error <= CLOSE),
            "a failure with a distance": ~success & ~np.isinf(distance),
            "a failure that fools": ~success & inside & clearly & _allowed(lengths, record),
            "not needed, as the image itself fools": at_once & ~(success & (distance == 0)),
        }
        if "radius" in options:
            faults["farther than the radius"] = success & ~(lengths <= options["radius"] * (1 + CLOSE) + 1e-6)
    largest = float(error.max(initial=0))
    return {
        "file": str(path),
        "model": str(model),
        "images": len(images),
        "successes": int(success.sum()),
        "largest_error": largest if math.isfinite(largest) else None,
        "wrong": faulty(record, faults),
    }


def originals(record: Record[Any], model: Path, classifier: Classifier, split: Split, path: Path) -> np.ndarray:
    """The images of the split, in [0, 1]. Raises `InputError` unless the record is of it and of these weights."""
    check_about(path, record)
    if weights_of(model, classifier) != record.about["weights"]:
        raise InputError(f"{path} was made with other weights than those of {model}; it takes the right ones")
    indices = record.indices
    if not ((indices >= 0) & (indices < len(split.labels))).all():
        raise InputError(f"{path} has images that the split does not have; is it of another dataset?")
    if record.result.images.shape[1:] != split.images.shape[1:]:
        raise InputError(f"{path} has images of another shape than the split; is it of another dataset?")
    if not np.array_equal(record.labels, split.labels[indices]):
        raise InputError(f"{path} has other labels than the split; is it of another dataset?")
    return split.images[indices] / np.float32(255)


def faulty(record: Record[R], faults: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each image that has a fault: its index, and what does not hold of it."""
    return [
        {"index": int(index), "what": [what for what, which in faults.items() if which[i]]}
        for i, index in enumerate(record.indices)
        if any(which[i] for which in faults.values())
    ]


def _allowed(lengths: np.ndarray, record: Record[AttackResult]) -> np.ndarray:
    """Whether a success may be so far away, by more than rounding."""
    radius = record.about["options"].get("radius", math.inf)
    if record.about["method"] == "fixed_norm":  # at exactly that norm
        return np.abs(lengths - radius) <= CLOSE * radius
    return lengths <= radius * (1 - CLOSE)


def fools(logits: np.ndarray, labels: np.ndarray, targets: list[int] | None) -> np.ndarray:
    """Whether the largest logit but the label's, or the target's, is clearly the largest of all."""
    rows, one = np.arange(len(logits)), labels if targets is None else np.asarray(targets, int)
    others = logits.copy()
    others[rows, one] = -np.inf
    lead = logits[rows, one] - others.max(1, initial=-np.inf)
    return (-lead if targets is None else lead) > CLEAR * np.abs(logits).max(1, initial=0)


def logits(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """What the classifier says of the images, by the highest precision of the device, in double precision."""
    if not len(images):
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
        return np.zeros((0, jax.eval_shape(classifier, one).shape[1]))
    with jax.default_matmul_precision("highest"):
        return np.asarray(predict(classifier, np.asarray(images, np.float32)), float)


def text(report: dict[str, Any]) -> str:
    lines = [f"{report['images']} images, {report['successes']} successes, {len(report['wrong'])} wrong"]
    lines += in_words(report["wrong"])
    if report["largest_error"] is not None:
        lines.append(f"distances hold to {report['largest_error']:.1e}")
    return "\n".join(lines)


def in_words(wrong: list[dict[str, Any]]) -> list[str]:
    """A line for each of the first images that have a fault."""
    lines = [f"image {one['index']}: {', '.join(one['what'])}" for one in wrong[:SHOWN]]
    return lines + ([f"and {len(wrong) - SHOWN} more; --json lists them"] if len(wrong) > SHOWN else [])
