"""Recheck a file of attack results from its images alone, without the code of attacks."""

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

# Relative to the largest logit: by how much an image must be misclassified to contradict a failure. Attacks themselves
# ask for 1e-5, as logits differ in their last bits between batches and devices; this is twice that.
CLEAR = 2e-5
CLOSE = 1e-4  # relative slack of distances and radii, which here are recomputed in double precision
SHOWN = 5  # images with a fault that the text lists; --json lists all


def verify(
    record: Record[AttackResult], model: Path, classifier: Classifier, split: Split, path: Path
) -> dict[str, Any]:
    """Rechecks attack results: classifies every image anew, and measures its distance in double precision.

    Args:
      record: the results.
      model: path of the network's file, whose SHA-256 must be that in the record.
      classifier: the network.
      split: the images that were attacked.
      path: of the file of results.

    Returns:
      A report: the numbers `images` and `successes`; `largest_error`, the largest relative error of a distance; and
      `wrong`, for each image that contradicts its result the `index` and a list `what` of the faults.

    Raises:
      InputError: the file is of other weights or another split, or damaged.
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
    with np.errstate(all="ignore"):  # a comparison with NaN is false, which makes a fault of it
        r = images.astype(float) - x
        lengths = exact_norm(r, float(record.about["norm"]))
        error = np.where(success, np.abs(distance - lengths), 0) / np.maximum(lengths, 1e-3)
        inside = ((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1)
        clearly = clearly_adversarial(answers, record.labels, targets)
        at_once = clearly_adversarial(logits(classifier, x), record.labels, targets)  # without any perturbation
        faults = {
            "not in [0, 1]": ~inside,
            "not misclassified": success & ~fooled,
            "not at the stated distance": success & ~(error <= CLOSE),
            "a failure with a finite distance": ~success & ~np.isinf(distance),
            "a failure whose image is adversarial": ~success & inside & clearly & _allowed(lengths, record),
            "not at distance 0, although the original is adversarial": at_once & ~(success & (distance == 0)),
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
    """The original images `[N, *shape]` in [0, 1] of a record's results.

    Raises:
      InputError: the record is of other weights, or has images or labels that don't fit the split.
    """
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
    """The images that have a fault, each with its `index` and the list `what` of its faults.

    Args:
      record: the results.
      faults: for each possible fault, by its description, which images have it, `[N]`.
    """
    return [
        {"index": int(index), "what": [what for what, which in faults.items() if which[i]]}
        for i, index in enumerate(record.indices)
        if any(which[i] for which in faults.values())
    ]


def _allowed(lengths: np.ndarray, record: Record[AttackResult]) -> np.ndarray:
    """Which images are clearly (by more than rounding) at a distance at which the attack could report a success, `[N]`.

    The distances are `lengths`; `fixed_norm` allows only its radius, other attacks at most theirs, if they have one.
    """
    radius = record.about["options"].get("radius", math.inf)
    if record.about["method"] == "fixed_norm":  # at exactly that norm
        return np.abs(lengths - radius) <= CLOSE * radius
    return lengths <= radius * (1 - CLOSE)


def clearly_adversarial(logits: np.ndarray, labels: np.ndarray, targets: list[int] | None) -> np.ndarray:
    """Which images are clearly adversarial, by more than `CLEAR`, judging by their logits `[N, C]`.

    Adversarial means that another class than the label has the largest logit, or with targets that the target has it.
    """
    rows, one = np.arange(len(logits)), labels if targets is None else np.asarray(targets, int)
    others = logits.copy()
    others[rows, one] = -np.inf
    margin = logits[rows, one] - others.max(1, initial=-np.inf)
    return (-margin if targets is None else margin) > CLEAR * np.abs(logits).max(1, initial=0)


def logits(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """The logits `[N, C]` of images, computed at the device's highest matmul precision, as float64."""
    if not len(images):
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
        return np.zeros((0, jax.eval_shape(classifier, one).shape[1]))
    with jax.default_matmul_precision("highest"):
        return np.asarray(predict(classifier, np.asarray(images, np.float32)), float)


def text(report: dict[str, Any]) -> str:
    """The report as lines for a person."""
    lines = [f"{report['images']} images, {report['successes']} successes, {len(report['wrong'])} wrong"]
    lines += in_words(report["wrong"])
    if report["largest_error"] is not None:
        lines.append(f"largest relative error of a distance: {report['largest_error']:.1e}")
    return "\n".join(lines)


def in_words(wrong: list[dict[str, Any]]) -> list[str]:
    """A line for each of the first `SHOWN` images that have a fault, and one for the rest."""
    lines = [f"image {one['index']}: {', '.join(one['what'])}" for one in wrong[:SHOWN]]
    return lines + ([f"and {len(wrong) - SHOWN} more; --json lists them"] if len(wrong) > SHOWN else [])
