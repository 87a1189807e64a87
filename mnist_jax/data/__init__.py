"""MNIST and datasets of the same form: 28x28 grey images of ten classes, in four IDX files.

The files come from this package (mnist), from a folder of the user's, or through tensorflow-datasets, which
knows addresses and checksums and keeps a cache. They are read directly, so their order is kept.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import os
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mnist_jax.errors import InputError, unknown

DATASETS = ("mnist", "fashion_mnist", "kmnist")
SPLITS = ("train", "test", "val")

# How long, in seconds, a server may take to start answering: name lookup, connection and reply together.
_PATIENCE = 10.0

_EMBEDDED = Path(__file__).parent / "mnist"

# The files of every dataset, with the SHA-256 that they have, uncompressed, in mnist.
_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

_DECOMPRESS = {".gz": gzip.decompress, ".xz": lzma.decompress}


class Split(NamedTuple):
    """Images with their labels. The arrays may share memory and be read-only: copy before writing."""

    images: Any  # uint8 [N, 28, 28, 1], of numpy or, on a device, of jax
    labels: Any  # int32 [N], from 0 to 9


class Dataset(NamedTuple):
    """The three splits of a dataset, each in the order of the original files."""

    name: str
    train: Split
    test: Split
    val: Split


class _File(NamedTuple):
    path: Path
    raw: bytes  # uncompressed


def load(name: str = "mnist", data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a dataset: `train` and `test` from its training files, `val` from its official test (t10k) files.

    Of N training images `test` is the last N // 6 and `train` the rest: 50,000 and 10,000 of MNIST's 60,000.

    Args:
        name: one of `DATASETS`. `mnist` comes with this package; the others are downloaded once, into the
            cache of tensorflow-datasets (`downloads` in TFDS_DATA_DIR, by default ~/tensorflow_datasets).
        data_dir: a folder with the four IDX files to use instead, raw, .gz or .xz, of any number of images.
            What they contain is up to the user: `name` is then only a name, and no checksum is compared.

    Raises:
        InputError: the name is unknown; a file is missing, unreadable, damaged, altered, or doesn't hold
            28x28 images and labels from 0 to 9; the download failed (without a network: within 15 seconds).
    """
    files = _files(name, data_dir, tuple(_FILES))
    return Dataset(name, *_train_and_test(*files[:2]), val=_decode_split(*files[2:]))


def load_split(split: str, name: str = "mnist", data_dir: str | os.PathLike[str] | None = None) -> Split:
    """One of the `SPLITS` of a dataset, from its two files alone; see `load`.

    Raises:
        InputError: the split is unknown, or as `load`.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    files = _files(name, data_dir, tuple(_FILES)[2:] if split == "val" else tuple(_FILES)[:2])
    if split == "val":
        return _decode_split(*files)
    train, test = _train_and_test(*files)
    return train if split == "train" else test


def fingerprint(split: Split) -> str:
    """What stands for all images and labels of a split, in their order."""
    digest = hashlib.sha256()
    for array in (np.asarray(split.images, np.uint8), np.asarray(split.labels, "<i4")):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _files(name: str, data_dir: str | os.PathLike[str] | None, stems: tuple[str, ...]) -> list[_File]:
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    if data_dir is not None:
        return _from_folder(data_dir, stems)
    return _from_package(stems) if name == "mnist" else _from_network(name, stems)


def _train_and_test(images_file: _File, labels_file: _File) -> tuple[Split, Split]:
    images, labels = _decode_split(images_file, labels_file)
    held_out = len(images) // 6
    if not held_out:
        raise InputError(f"{images_file.path} holds {len(images)} images: at least 6 are needed for a test split")
    return Split(images[:-held_out], labels[:-held_out]), Split(images[-held_out:], labels[-held_out:])


def normalize(images: Any) -> Any:
    """Map grey levels 0 to 255 onto [0, 1]: uint8 to float32, the shape kept, for numpy and jax arrays.

    The result is `images / 255` rounded once, as PyTorch's ToTensor gives it, to the last bit, compiled or not.

    Raises:
        TypeError: the images are not uint8 (they have been normalised already?).
    """
    if images.dtype != np.uint8:
        raise TypeError(f"normalize takes uint8 images, not {images.dtype}")
    # XLA turns a division by 255 into a product with 1/255, which misses half of the levels by their last bit.
    # In x/255 = x/256 + x/256/255 the first term is exact and the second so small that its error doesn't count.
    part = images.astype("float32") * np.float32(1 / 256)
    return part + part * np.float32(1 / 255)


def _from_package(stems: tuple[str, ...]) -> list[_File]:
    remedy = "reinstall mnist_jax"

    def read(stem: str) -> _File:
        path = _EMBEDDED / f"{stem}.xz"
        raw = _decompress(path, _read(path, remedy), remedy)
        _verify(path, raw, _FILES[stem], remedy)
        return _File(path, raw)

    # xz is what takes the time, and it lets other threads run.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, stems))


def _from_folder(folder: str | os.PathLike[str], stems: tuple[str, ...]) -> list[_File]:
    remedy = "the data folder needs four whole, readable IDX files"
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read the data folder {os.fspath(folder)!r} ({error.strerror}); {remedy}") from error
    files = []
    for stem in stems:
        spellings = [base + end for base in (stem, stem.replace("-idx", ".idx")) for end in ("", *_DECOMPRESS)]
        found = next((name for name in spellings if name in present), None)
        if found is None:
            raise InputError(f"{os.fspath(folder)} lacks {stem}; it may be called {', '.join(spellings)}")
        path = Path(folder, found)
        files.append(_File(path, _decompress(path, _read(path, remedy), remedy)))
    return files


def _from_network(name: str, stems: tuple[str, ...]) -> list[_File]:
    # Imported when needed: it takes a good part of a second, which mnist and a folder shouldn't cost.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.constants import get_default_data_dir
    from tensorflow_datasets.core.download.resource import get_dl_fname

    registered = tfds.builder_cls(name).url_infos
    urls = {url.rpartition("/")[2].removesuffix(".gz"): url for url in registered}
    downloads = Path(get_default_data_dir(), "downloads").expanduser()

    # The two places where DownloadManager looks. It also wants a file of notes beside each one; as checksums
    # are compared below, a file that somebody copied here without its notes is as good.
    paths: dict[str, Path] = {}
    for stem in stems:
        cached = get_dl_fname(urls[stem], registered[urls[stem]].checksum)
        for path in (downloads / cached, downloads / name / cached):
            if os.path.isfile(path):  # Path.is_file would raise where permission is denied
                paths[stem] = path
    missing = {stem: urls[stem] for stem in stems if stem not in paths}
    if missing:
        paths |= _download(name, missing, registered, downloads)

    remedy = "delete it, and it will be downloaded again"
    files = []
    for stem in stems:
        content = _read(paths[stem], remedy)
        _verify(paths[stem], content, registered[urls[stem]].checksum, remedy)
        files.append(_File(paths[stem], _decompress(paths[stem], content, remedy)))
    return files


def _download(name: str, urls: dict[str, str], registered: dict[str, Any], downloads: Path) -> dict[str, Path]:
    """Fetch `urls` (by name of file) into the cache; gives their paths. The progress bar is on stderr."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    url = next(iter(urls.values()))
    try:
        # DownloadManager itself tries for minutes before it gives up, so ask first.
        _wait_for_answer(url)
        manager = tfds.download.DownloadManager(download_dir=downloads, dataset_name=name, url_infos=registered)
        return {stem: Path(path) for stem, path in manager.download(urls).items()}
    except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        raise InputError(
            f"cannot download {name} from {urlsplit(url).netloc} to {downloads} ({_reason(error)}); "
            "without a network, use a folder of its IDX files as data_dir (--data-dir), the embedded mnist, "
            "or a download cache filled elsewhere (TFDS_DATA_DIR)"
        ) from error


def _wait_for_answer(url: str) -> None:
    """Raise OSError unless `url` starts to answer, with success, within `_PATIENCE` seconds."""
    import requests

    failures: list[OSError] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_PATIENCE) as response:
                response.raise_for_status()
        except OSError as error:  # all of requests' errors are; raised below, where it can be handled
            failures.append(error)

    # No timeout of requests covers the name lookup, nor several addresses tried in turn: a thread that can be
    # left behind does.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {_PATIENCE:g} s")
    if failures:
        raise failures[0]


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: requests wraps the system's plain words in several layers."""
    while error.__context__ is not None:
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(":")


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {remedy}") from error


def _decompress(path: Path, content: bytes, remedy: str) -> bytes:
    try:
        return _DECOMPRESS.get(path.suffix, bytes)(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def _verify(path: Path, content: bytes, sha256: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise InputError(f"{path} is altered: its SHA-256 is {found}, not {sha256}; {remedy}")


def _decode(file: _File, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file: a magic number, the size of each dimension (big-endian), the values."""
    start = 4 * (1 + dimensions)
    magic, *shape = (int.from_bytes(file.raw[at : at + 4], "big") for at in range(0, start, 4))
    wanted = 0x800 + dimensions  # 8 stands for unsigned bytes
    if len(file.raw) >= 4 and magic != wanted:
        raise InputError(f"{file.path} is not the right IDX file: its magic number is {magic:#x}, not {wanted:#x}")
    size = start + math.prod(shape)
    if len(file.raw) != size:
        raise InputError(f"{file.path} is truncated or damaged: {len(file.raw)} bytes, its header asks for {size}")
    return np.frombuffer(file.raw, np.uint8, offset=start).reshape(shape)


def _decode_split(images_file: _File, labels_file: _File) -> Split:
    images, labels = _decode(images_file, dimensions=3), _decode(labels_file, dimensions=1)
    if len(images) != len(labels):
        raise InputError(f"{images_file.path} holds {len(images)} images, but {labels_file.path} {len(labels)} labels")
    if not len(images):
        raise InputError(f"{images_file.path} is empty: it holds no images")
    if images.shape[1:] != (28, 28):
        raise InputError(f"{images_file.path} holds images of {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise InputError(f"{labels_file.path} has the label {labels[at]} at index {at}: labels are from 0 to 9")
    return Split(images[..., np.newaxis], labels.astype(np.int32))
