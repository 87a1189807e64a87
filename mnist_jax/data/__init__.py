"""Load MNIST and datasets of the same kind: small labelled images in four IDX files.

The files come from this package (mnist), from a folder of the user's, or through tensorflow-datasets, which
knows addresses and checksums and keeps a cache. They are read directly, so that the order of the images is that of the
files. The size of the images and the number and names of the classes depend on the dataset.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.data import source
from mnist_jax.data.form import DATASETS, Form
from mnist_jax.data.source import File
from mnist_jax.errors import InputError, unknown

__all__ = ["DATASETS", "SPLITS", "Dataset", "Split", "fingerprint", "load", "load_split", "normalize", "size"]

SPLITS = ("train", "test", "val")


class Split(NamedTuple):
    """Images with their labels. The arrays may share memory and be read-only: copy before writing."""

    images: Any  # uint8 [N, height, width, channels]; a NumPy array, or a JAX array where it is on a device
    labels: Any  # int32 [N], from 0


class Dataset(NamedTuple):
    """The three splits of a dataset, each in the order of the original files, and the class names by label."""

    name: str
    train: Split
    test: Split
    val: Split
    class_names: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of an image: height, width, channels."""
        return self.train.images.shape[1:]


def load(name: str = "mnist", data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a dataset: `train` and `test` from its training files, `val` from its official test (t10k) files.

    Of the N images in the training files `test` is the last N // 6 and `train` the rest: 10,000 and 50,000 of MNIST's
    60,000.

    Args:
        name: one of `DATASETS`. `mnist` comes with this package; the others are downloaded once, into the
            cache of tensorflow-datasets (`downloads` in TFDS_DATA_DIR, by default ~/tensorflow_datasets).
            With `data_dir`, any other name of letters, digits and underscores is allowed too.
        data_dir: a folder with four IDX files to read instead, raw, .gz or .xz, with any number of images.
            Their checksums are not compared. If `name` is one of `DATASETS`, they must have the image shape and the
            labels of that dataset. Otherwise the images may have any size, `[N, height, width]` or
            `[N, height, width, 1 or 3]`; the class names are then the lines of the folder's classes.txt, or without
            that file the numbers from 0 to the largest label of the training file.

    Raises:
        InputError: the name is unknown; a file is missing, unreadable, damaged, altered, or doesn't hold
            images and labels of this dataset; the download failed (without a network: within 15 seconds).
    """
    form = _form(name, data_dir)
    files = _files(form, data_dir, form.stems)
    whole = _decode_split(form, *files[:2])
    form = form._replace(shape=whole.images.shape[1:], class_names=form.class_names or _numbers(whole, files[1]))
    assert form.class_names is not None
    return Dataset(
        name, *_train_and_test(whole, files[0]), val=_decode_split(form, *files[2:]), class_names=form.class_names
    )


def load_split(split: str, name: str = "mnist", data_dir: str | os.PathLike[str] | None = None) -> Split:
    """Load one of the `SPLITS` of a dataset, reading only the two files that it needs.

    Args:
        split: one of `SPLITS`.
        name: as in `load`.
        data_dir: as in `load`.

    Raises:
        InputError: the split is unknown, or `load` would raise it.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    form = _form(name, data_dir)
    files = _files(form, data_dir, form.stems[2:] if split == "val" else form.stems[:2])
    whole = _decode_split(form, *files)
    if split == "val":
        return whole
    train, test = _train_and_test(whole, files[0])
    return train if split == "train" else test


def fingerprint(split: Split) -> str:
    """The SHA-256 of a split's images and labels, in their order, as a hexadecimal string."""
    digest = hashlib.sha256()
    for array in (np.asarray(split.images, np.uint8), np.asarray(split.labels, "<i4")):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def size(shape: tuple[int, ...]) -> str:
    """The shape of an image as text: "28x28", or "32x32x3" with several channels."""
    height, width, channels = shape
    return f"{height}x{width}" + (f"x{channels}" if channels > 1 else "")


def normalize(images: Any) -> Any:
    """Map grey levels 0 to 255 onto [0, 1]: uint8 to float32, the shape kept, for numpy and jax arrays.

    Each value is exactly `images / 255` rounded to float32, as in PyTorch's ToTensor, inside and outside of `jax.jit`.

    Raises:
        TypeError: the images are not uint8; perhaps they are normalised already.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"normalize takes uint8 images, not {images.dtype}")
    # XLA turns a division by 255 into a product with 1/255, which is wrong in the last bit for half of the grey levels.
    # In x/255 = x/256 + x/256/255 the first term is exact, and the second's rounding error is too small to matter.
    part = images.astype("float32") * np.float32(1 / 256)
    return part + part * np.float32(1 / 255)


def _form(name: str, data_dir: str | os.PathLike[str] | None) -> Form:
    """The form of a known dataset, or of the user's own in `data_dir`. Raises `InputError` where it is neither."""
    if name in DATASETS:
        return DATASETS[name]
    if data_dir is None:
        hint = "; one of your own needs its folder (--data-dir)"
        raise InputError(f"{unknown('dataset', name, DATASETS)}{hint}")
    if not name.isidentifier():
        raise InputError(f"{name!r} is no name for a dataset: it takes letters, digits and underscores")
    return Form(name, source.class_names(data_dir))


def _files(form: Form, data_dir: str | os.PathLike[str] | None, stems: tuple[str, ...]) -> list[File]:
    """Reads the files with these stems from the folder, from this package, or through tensorflow-datasets."""
    if data_dir is not None:
        return source.from_folder(data_dir, stems)
    return source.from_package(stems) if form.name == "mnist" else source.from_network(form, stems)


def _numbers(split: Split, labels_file: File) -> tuple[str, ...]:
    """The class names of a dataset that has none: the numbers from 0 to the largest label."""
    largest = int(split.labels.max())
    if not largest:
        raise InputError(f"{labels_file.path} has one label only, 0: at least two classes are needed")
    return tuple(map(str, range(largest + 1)))


def _train_and_test(whole: Split, images_file: File) -> tuple[Split, Split]:
    """Divides the training file's images: all but the last sixth, and the last sixth."""
    images, labels = whole
    held_out = len(images) // 6
    if not held_out:
        raise InputError(f"{images_file.path} holds {len(images)} images: at least 6 are needed for a test split")
    return Split(images[:-held_out], labels[:-held_out]), Split(images[-held_out:], labels[-held_out:])


def _decode(file: File, dimensions: tuple[int, ...]) -> np.ndarray:
    """The uint8 array in an IDX file, whose number of dimensions is one of `dimensions`.

    The format: a magic number, the size of each dimension (4 bytes each, big-endian), the values.
    """
    magic = int.from_bytes(file.raw[:4], "big")
    magics = [0x800 + count for count in dimensions]  # 0x08 means unsigned bytes, the last byte counts the dimensions
    if len(file.raw) >= 4 and magic not in magics:
        wanted = " or ".join(f"{one:#x}" for one in magics)
        raise InputError(f"{file.path} is not the right IDX file: its magic number is {magic:#x}, not {wanted}")
    start = 4 * (1 + (magic - 0x800 if magic in magics else dimensions[0]))
    shape = [int.from_bytes(file.raw[at : at + 4], "big") for at in range(4, start, 4)]
    count = start + math.prod(shape)
    if len(file.raw) != count:
        raise InputError(f"{file.path} is truncated or damaged: {len(file.raw)} bytes, its header asks for {count}")
    return np.frombuffer(file.raw, np.uint8, offset=start).reshape(shape)


def _decode_split(form: Form, images_file: File, labels_file: File) -> Split:
    """The images and labels in two IDX files. Raises `InputError` unless they fit each other and the form."""
    images, labels = _decode(images_file, (3, 4)), _decode(labels_file, (1,)).astype(np.int32) - form.first_label
    if len(images) != len(labels):
        raise InputError(f"{images_file.path} holds {len(images)} images, but {labels_file.path} {len(labels)} labels")
    if not images.size:
        raise InputError(f"{images_file.path} is empty: it holds no images")
    images = images.reshape(*images.shape[:3], -1)
    if form.transposed:
        images = images.swapaxes(1, 2)
    split = Split(images, labels)
    _check(form, split, images_file, labels_file)
    return split


def _check(form: Form, split: Split, images_file: File, labels_file: File) -> None:
    """Raises `InputError` unless the images have a shape and the labels values that the form allows."""
    where = form.name + ("; another --dataset name takes any" if form.name in DATASETS else "")
    shape = split.images.shape[1:]
    if form.shape is not None and shape != form.shape:
        raise InputError(
            f"{images_file.path} holds images of {size(shape)} pixels, not {size(form.shape)} as in {where}"
        )
    if shape[-1] not in (1, 3):
        raise InputError(f"{images_file.path} holds images of {shape[-1]} channels: grey ones have 1, coloured ones 3")
    first, last = form.first_label, form.first_label + len(form.class_names or ()) - 1
    outside = (split.labels < 0) | (split.labels > last - first if form.class_names else False)
    if outside.any():
        at = int(np.argmax(outside))
        label = split.labels[at] + first
        raise InputError(
            f"{labels_file.path} has the label {label} at index {at}: labels are from {first} to {last} in {where}"
        )
