"""Results of attacks as files: .npz, with what made them."""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.errors import InputError
from mnist_jax.storage import files
from mnist_jax.version import VERSION

FORMAT = 1  # of the file; files of a newer format are refused


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
