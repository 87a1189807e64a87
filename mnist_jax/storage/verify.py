"""Recheck a file of attack results from its images alone, with nothing of the code that made it."""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.classifier import Classifier
from mnist_jax.data import Split
from mnist_jax.errors import InputError
from mnist_jax.evaluation import CHUNK
from mnist_jax.storage.results import Record

CLOSE = 1e-4  # relative: sums and differences of float32 are rounded otherwise in double precision
SHOWN = 5  # wrong images in the text


def said(record: Record, key: str, kind: type, path: Path) -> Any:
    """What the file says of itself. Raises `InputError` where it does not."""
    value = record.about.get(key)
    if not isinstance(value, kind):
        raise InputError(f"{path} does not say its {key}, so it can't be verified")
    return value


def verify(record: Record, model: Path, classifier: Classifier, split: Split, path: Path) -> dict[str, Any]:
    """What holds of the record at `path`, whose network is said to be the one at `model`.

    Every image is given to the classifier anew, and its distance is measured in double precision.

    Returns:
      `images`, `successes`, `largest_error` (relative, of the distances), and `wrong`: for each image of which
      something does not hold, its index and what.

    Raises:
      InputError: the file is of other weights or another split, or not whole.
    """
    norm = float(said(record, "norm", (int, float), path))  # type: ignore[arg-type]
    if hashlib.sha256(model.read_bytes()).hexdigest() != said(record, "weights", str, path):
        raise InputError(f"{path} was made with other weights than those of {model}; name the right ones by --model")
    originals = _originals(record, split, path)  # and a look at all arrays
    images, distance = np.asarray(record.result.images), np.asarray(record.result.distance, float)
    success = np.asarray(record.result.success, bool)
    options = record.about.get("options", {})
    predictions = _predictions(classifier, images)
    fooled = predictions != record.labels
    if options.get("targets") is not None:
        targets = np.array(options["targets"])
        if len(targets) not in (1, *range(len(images), len(split.labels) + 1)):
            raise InputError(f"{path} is damaged: it has {len(targets)} targets for {len(images)} images")
        fooled = predictions == (targets if len(targets) == 1 else targets[: len(images)])
    r = (images.astype(float) - originals).reshape(len(images), math.prod(images.shape[1:]))
    lengths = np.linalg.norm(r, norm, axis=1) if len(r) else np.zeros(0)
    error = np.where(success, np.abs(distance - lengths), 0) / np.maximum(lengths, 1e-3)
    inside = (images >= 0) & (images <= 1)
    faults = {
        "not in [0, 1]": ~inside.reshape(r.shape).all(1),
        "not misclassified": success & ~fooled,
        "not of the distance it says": success & ~(error <= CLOSE),
        "a failure with a distance": ~success & ~np.isinf(distance),
    }
    if "radius" in options:
        faults["farther than the radius"] = success & ~(lengths <= options["radius"] * (1 + CLOSE) + 1e-6)
    wrong = [
        {"index": int(index), "what": [what for what, which in faults.items() if which[i]]}
        for i, index in enumerate(record.indices)
        if any(which[i] for which in faults.values())
    ]
    largest = float(error.max(initial=0))
    return {
        "file": str(path),
        "model": str(model),
        "images": len(images),
        "successes": int(success.sum()),
        "largest_error": largest if math.isfinite(largest) else None,
        "wrong": wrong,
    }


def _originals(record: Record, split: Split, path: Path) -> np.ndarray:
    """The images of the split, in [0, 1], after a look at what the record says of them."""
    indices, count = record.indices, record.indices.size
    arrays = (record.labels, *record.result)
    whole = all(a.shape[:1] == (count,) for a in arrays) and indices.dtype.kind in "iu"
    numbers = record.result.images.dtype.kind == "f" and all(a.dtype.kind in "fiub" for a in arrays)
    if not (whole and numbers and all(a.shape == (count,) for a in (indices, record.labels, *record.result[1:]))):
        raise InputError(f"{path} is damaged: its arrays are not of one length, or not of numbers")
    if len(set(indices.tolist())) < count:
        raise InputError(f"{path} is damaged: it has an image twice")
    if not ((indices >= 0) & (indices < len(split.labels))).all():
        raise InputError(f"{path} has images that the split does not have; is it of another --dataset?")
    if record.result.images.shape[1:] != split.images.shape[1:]:
        raise InputError(f"{path} has images of another shape than the split; is it of another --dataset?")
    if not np.array_equal(record.labels, split.labels[indices]):
        raise InputError(f"{path} has other labels than the split; is it of another --dataset?")
    return split.images[indices] / np.float32(255)


def _predictions(classifier: Classifier, images: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """What the classifier takes the images for, by the highest precision of the device."""
    if not len(images):
        return np.zeros(0, int)
    apply = jax.jit(lambda images: classifier(images).argmax(1))
    with jax.default_matmul_precision("highest"):
        parts = [apply(jnp.asarray(images[i : i + chunk], jnp.float32)) for i in range(0, len(images), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


def text(report: dict[str, Any]) -> str:
    lines = [f"{report['images']} images, {report['successes']} successes, {len(report['wrong'])} wrong"]
    for one in report["wrong"][:SHOWN]:
        lines.append(f"image {one['index']}: {', '.join(one['what'])}")
    if len(report["wrong"]) > SHOWN:
        lines.append(f"and {len(report['wrong']) - SHOWN} more; --json lists them")
    if report["largest_error"] is not None:
        lines.append(f"distances hold to {report['largest_error']:.1e}")
    return "\n".join(lines)
