"""Save and load results of attacks, certificates, brackets and smoothing as .npz files that say how they were made."""

import hashlib
import io
import json
import math
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.certify.exact import Bracket
from mnist_jax.classifier import Classifier
from mnist_jax.data import Split, fingerprint
from mnist_jax.errors import InputError, first_line
from mnist_jax.storage import files
from mnist_jax.version import VERSION

OWN = ".py"  # suffix of a user's file that builds a network; its weights may be in other files
FORMAT = 1  # version of the file format; files of a newer one are refused


def weights_of(model: Path, classifier: Classifier) -> str:
    """The SHA-256 by which results identify a network: of its file, and of its weights if that is a Python file."""
    digest = hashlib.sha256(model.read_bytes())
    for leaf in jax.tree.leaves(classifier.params) if model.suffix == OWN else ():
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Certificates(NamedTuple):
    """Certificates of N images, as NumPy arrays.

    Attributes:
      radius: `[N]`, the radius that the other fields are about: the one that was asked for, or without one the largest
        that was certified for the image, 0 where none was.
      certified, fooled, margin, images: as in `CertifyResult`.
    """

    radius: np.ndarray
    certified: np.ndarray
    fooled: np.ndarray
    margin: np.ndarray
    images: np.ndarray


class Smoothed(NamedTuple):
    """Certificates of the smoothed classifier for N images, as NumPy arrays.

    Attributes:
      classes, abstained, radius, counts: as in `certify.SmoothingResult`.
    """

    classes: np.ndarray
    abstained: np.ndarray
    radius: np.ndarray
    counts: np.ndarray


R = TypeVar("R", bound=AttackResult | Bracket | Certificates | Smoothed)

# Which kind of results a file holds, by a field that only this kind has; attack results are the rest.
KINDS: dict[str, type[Any]] = {"certified": Certificates, "lower": Bracket, "abstained": Smoothed}


class Record(NamedTuple, Generic[R]):
    """The results for N images of a split, as a file holds them.

    Attributes:
      indices: `[N]`, the images' places in the split.
      labels: `[N]`.
      result: the `AttackResult`, `Certificates`, `Bracket` or `Smoothed` of the images, as NumPy arrays.
      about: everything that the results depend on: the model and the SHA-256 of its weights, the dataset, the split
        and the SHA-256 of its images and labels, method, norm, options, precision, platform, version. If the options
        have several `targets`, these are for the images in the order of `indices`, followed by those of images that are
        still to be attacked. If they have no `radius`, certificates are for each image's largest radius.
    """

    indices: np.ndarray
    labels: np.ndarray
    result: R
    about: dict[str, Any]


def made_by(
    model: Path,
    classifier: Classifier,
    method: str,
    norm: float,
    options: dict[str, Any],
    dataset: str,
    split: str,
    images: Split,
) -> dict[str, Any]:
    """The `about` of a `Record`, for the network in the file `model` and the split `images` of a dataset."""
    return {
        "model": model.stem,
        "weights": weights_of(model, classifier),
        "method": method,
        "norm": norm,
        "dataset": dataset,
        "split": split,
        "data": fingerprint(images),
        "options": options,
        "precision": jnp.result_type(float).name,
        "platform": jax.default_backend(),
        "version": VERSION,
    }


def save(path: Path, record: Record[R], aside: Path | None = None) -> None:
    """Writes the record as .npz, whole or not at all; an earlier file is moved to `aside`, where that is given.

    The arrays of the file are `indices`, `labels` and the fields of the result; `about` is a string of JSON, in which
    an infinite norm is "inf"; `format` is the number `FORMAT`.

    Raises:
      InputError: the file can't be written.
    """
    files.write(path, packed(record), aside)


def packed(record: Record[R], **more: Any) -> bytes:
    """The content of the .npz file that `save` writes; `more` are further arrays to put into it, by name."""
    arrays: dict[str, Any] = {"indices": record.indices, "labels": record.labels, **record.result._asdict(), **more}
    about = json.dumps(files.strict({"version": VERSION} | record.about), sort_keys=True, allow_nan=False)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, format=FORMAT, about=about, **arrays)
    return buffer.getvalue()


def load(path: Path, wanted: str = "attack results") -> Record[Any]:
    """Reads a record of any kind of results.

    Args:
      path: of the .npz file.
      wanted: what error messages call the results that the file should hold.

    Raises:
      InputError: the file is missing, damaged, of a newer format, or something else.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if file["format"] > FORMAT:
                raise InputError(f"{path} was written by a newer mnist_jax; upgrade mnist_jax to read it")
            kind = next((kind for field, kind in KINDS.items() if field in file.files), AttackResult)
            result = kind(*[file[name] for name in kind._fields])
            about = json.loads(str(file["about"]))
            record = Record(file["indices"], file["labels"], result, about)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except Exception as error:  # zip and npy raise many kinds for damaged files
        raise InputError(f"{path} is not a file of {wanted}, or damaged ({first_line(error)})") from error
    _check(path, record)
    if about.get("norm") == "inf":
        about["norm"] = math.inf
    return record


def _check(path: Path, record: Record[Any]) -> None:
    """Raises `InputError` where shapes, types or values of the record's arrays are impossible."""
    if not isinstance(record.about, dict):
        raise InputError(f"{path} is damaged: it does not say what made it")
    indices, count, whole = record.indices, record.indices.size, True
    for name, array in record.result._asdict().items():
        wide = {"images": array.ndim > 1, "counts": array.ndim == 2}.get(name)
        whole &= array.shape[:1] == (count,) and (array.ndim == 1 if wide is None else wide)
        whole &= array.dtype.kind in ("f" if name == "images" else "fiub")
    rows = (indices, record.labels)
    if not (whole and all(a.shape == (count,) and a.dtype.kind in "iu" for a in rows)):
        raise InputError(f"{path} is damaged: its arrays are not of one length, or not of numbers")
    if len(set(indices.tolist())) < count:
        raise InputError(f"{path} is damaged: it has an image twice")
    if isinstance(record.result, Certificates):
        fits, what = _are_certificates(record.result), "certificates or its radii"
    elif isinstance(record.result, Bracket):
        fits, what = _are_ends(record.result), "brackets"
    elif isinstance(record.result, Smoothed):
        fits, what = _are_votes(record.result), "votes or its radii"
    else:
        fits, what = _are_successes(record.result), "successes or its counts"
    if not fits:
        raise InputError(f"{path} is damaged: its {what} are invalid")


def _are_votes(result: Smoothed) -> bool:
    classes = (result.classes >= -1) & (result.classes < result.counts.shape[1])
    radii = np.isfinite(result.radius) & (result.radius >= 0)
    flags = np.isin(result.abstained, (0, 1))
    return bool(classes.all() and radii.all() and flags.all()) and result.counts.dtype.kind in "iu"


def _are_successes(result: AttackResult) -> bool:
    counts = all(((n >= 0) & (n == np.round(n))).all() for n in (result.gradients, result.forwards))
    return counts and bool(np.isin(result.success, (0, 1)).all())


def _are_ends(result: Bracket) -> bool:
    return bool((np.isfinite(result.lower) & (result.lower >= 0) & (result.upper >= 0)).all())


def _are_certificates(result: Certificates) -> bool:
    radii = np.isfinite(result.radius) & (result.radius >= 0)
    return bool(radii.all()) and all(np.isin(flags, (0, 1)).all() for flags in (result.certified, result.fooled))


def check_about(path: Path, record: Record[R]) -> None:
    """Raises `InputError` where an entry of the record's `about` that is needed is missing or impossible."""
    about = record.about
    for key in ("norm", "model", "weights", "method", "dataset", "split"):
        value = about.get(key)
        fits = _is_norm(value) if key == "norm" else isinstance(value, str)
        if not fits:
            raise InputError(f"{path} does not say its {key}, so its results can't be used")
    options = about.get("options")
    if not isinstance(options, dict):
        raise InputError(f"{path} does not say its options, so its results can't be used")
    radius, targets = options.get("radius", 0), options.get("targets")
    if not (_is_number(radius) and 0 <= radius < math.inf):
        raise InputError(f"{path} is damaged: its radius is not a number of at least 0")
    if targets is None:
        return
    if not isinstance(targets, list) or not all(type(target) is int and target >= 0 for target in targets):
        raise InputError(f"{path} is damaged: its targets are not classes")
    if len(targets) != 1 and len(targets) < len(record.indices):
        raise InputError(f"{path} is damaged: it has {len(targets)} targets for {len(record.indices)} images")


def _is_number(value: Any) -> bool:
    """Whether the value is a number, infinite or at most 1e300, so that computing with it doesn't overflow at once."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (value == math.inf or value <= 1e300)


def _is_norm(value: Any) -> bool:
    return _is_number(value) and (value == 0 or value >= 1)


def targets_of(record: Record[R]) -> list[int] | None:
    """The target class of every image of a record; None where its attack was untargeted."""
    targets, count = record.about["options"].get("targets"), len(record.indices)
    return targets if targets is None else (targets * count if len(targets) == 1 else targets)[:count]
