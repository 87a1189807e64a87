"""What an attack gives back, recomputed from the images themselves; in memory and as a file."""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import files, norms
from mnist_jax.attack.problem import Problem
from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError
from mnist_jax.version import VERSION

FORMAT = 1  # of the file; files of a newer format are refused


class AttackResult(NamedTuple):
    """What an attack found, a pytree with an entry for each image.

    Attributes:
      images: `[B, *shape]` in [0, 1], adversarial where `success`; elsewhere the last attempt.
      distance: `[B]`, the p-norm of the images less the originals; inf where it failed.
      success: `[B]`, whether the classifier gives these images another class than the label (or the target, where one
        was given), by more than rounding can undo: 1e-5 of the largest logit.
      gradients: `[B]`, how many gradients of the classifier were used for each image.
      forwards: `[B]`, how many evaluations without a gradient.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array
    gradients: jax.Array
    forwards: jax.Array

    def only(self, allowed: jax.Array) -> "AttackResult":
        """Without the successes that are not allowed `[B]`; an image misclassified as it is always is."""
        success = self.success & (allowed | (self.distance == 0))
        return self._replace(success=success, distance=jnp.where(success, self.distance, jnp.inf))


def finish(
    classifier: Classifier, problem: Problem, found: jax.Array, norm: float, gradients: ArrayLike, forwards: ArrayLike
) -> AttackResult:
    """The result: images that were misclassified from the start as they were, and what is said of `found` recomputed.

    `gradients` and `forwards` are what the attack used, a number or `[B]`; the evaluations here are added.
    """
    with jax.default_matmul_precision("highest"):
        before = problem.solved(classifier(problem.images))
        images = problem.where(before, problem.images, jnp.clip(found, 0, 1))
        success = before | problem.solved(classifier(images))
    distance = jnp.where(success, norms.norm(images - problem.images, norm), jnp.inf)
    used = [jnp.where(before, 0, jnp.asarray(n, jnp.int32)) for n in (gradients, forwards)]
    return AttackResult(images, distance, success, used[0], used[1] + jnp.where(before, 1, 2))


class Record(NamedTuple):
    """The results of an attack on some images of a split, as a file keeps them.

    Attributes:
      indices: `[N]`, places in the split.
      labels: `[N]`.
      result: the `AttackResult` for them, as NumPy arrays.
      about: what made it: model and its fingerprint, dataset, split, method, norm, options, version.
    """

    indices: np.ndarray
    labels: np.ndarray
    result: AttackResult
    about: dict[str, Any]


def save(path: Path, record: Record) -> None:
    """Writes the record as .npz, whole or not at all. Raises `InputError` where that can't be done.

    The arrays are `indices`, `labels` and the fields of `AttackResult`; `about` is JSON, and `format` a number.
    """
    arrays = {"indices": record.indices, "labels": record.labels, **record.result._asdict()}
    about = json.dumps(record.about | {"version": VERSION}, sort_keys=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, format=FORMAT, about=about, **arrays)
    files.write(path, buffer.getvalue())


def load(path: Path) -> Record:
    """Reads a record. Raises `InputError` where the file is missing, damaged, of a newer version, or something else."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if file["format"] > FORMAT:
                raise InputError(f"{path} was written by a newer mnist_jax; upgrade mnist_jax to read it")
            result = AttackResult(*[file[name] for name in AttackResult._fields])
            about = json.loads(str(file["about"]))
            return Record(file["indices"], file["labels"], result, about)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except Exception as error:  # whatever zip and npy raise for damaged ones
        raise InputError(f"{path} is not a file of attack results, or damaged ({error})") from error
