"""Read the files of a dataset from this package, a folder, or tensorflow-datasets, and check that they are intact."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mnist_jax.data.form import STEMS, Form
from mnist_jax.errors import InputError

# Seconds until a server must have begun to answer: name lookup, connection and reply together; chosen, not tuned.
_PATIENCE = 10.0

_EMBEDDED = Path(__file__).parent / "mnist"

# SHA-256 of the canonical MNIST files, uncompressed.
_SHA256 = dict(
    zip(
        STEMS,
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        strict=True,
    )
)

_DECOMPRESS = {".gz": gzip.decompress, ".xz": lzma.decompress}

_CLASSES = "classes.txt"  # optional file in a folder of the user's: a class name on each line


class File(NamedTuple):
    """The content of a file, with its path for error messages."""

    path: Path
    raw: bytes  # uncompressed


def from_package(stems: tuple[str, ...]) -> list[File]:
    """Reads files of the MNIST that this package contains. Raises `InputError` where one is damaged."""
    remedy = "reinstall mnist_jax"

    def read(stem: str) -> File:
        path = _EMBEDDED / f"{stem}.xz"
        raw = _decompress(path, _read(path, remedy), remedy)
        _verify(path, hashlib.sha256(raw).hexdigest(), _SHA256[stem], remedy)
        return File(path, raw)

    # Threads help: decompression takes most of the time, and releases Python's lock.
    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, stems))


def from_folder(folder: str | os.PathLike[str], stems: tuple[str, ...]) -> list[File]:
    """Reads files from a folder of the user's, raw, .gz or .xz. Raises `InputError` where one is missing or damaged."""
    remedy = "the data folder needs four whole, readable IDX files"
    present = _listing(folder, remedy)
    files = []
    for stem in stems:
        spellings = [base + end for base in (stem, stem.replace("-idx", ".idx")) for end in ("", *_DECOMPRESS)]
        found = next((name for name in spellings if name in present), None)
        if found is None:
            raise InputError(f"{os.fspath(folder)} lacks {stem}; it may be called {', '.join(spellings)}")
        path = Path(folder, found)
        files.append(File(path, _decompress(path, _read(path, remedy), remedy)))
    return files


def class_names(folder: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """The class names in the folder's classes.txt; None where there is no such file.

    Raises:
      InputError: the file can't be read, or has an empty line, a name twice, or fewer than two names.
    """
    remedy = "it needs one class name per line, in UTF-8, each different, for two classes or more"
    if _CLASSES not in _listing(folder, "the data folder needs four whole, readable IDX files"):
        return None
    path = Path(folder, _CLASSES)
    try:
        names = tuple(line.strip() for line in _read(path, remedy).decode().strip().splitlines())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error.reason}); {remedy}") from error
    if not all(names) or len(set(names)) < max(2, len(names)):
        raise InputError(f"{path} has an empty line, a name twice, or fewer than two names; {remedy}")
    return names


def from_network(form: Form, stems: tuple[str, ...]) -> list[File]:
    """Reads files from the download cache of tensorflow-datasets, and downloads those that it lacks.

    Raises:
      InputError: a file can't be downloaded, is damaged, or has another checksum than the registered one.
    """
    # Imported only here, as the import takes some tenths of a second that other sources need not wait for.
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.constants import get_default_data_dir
    from tensorflow_datasets.core.download.resource import get_dl_fname

    name, wanted = form.name, (form.archive,) if form.archive else stems
    registered = tfds.builder_cls(name).url_infos
    urls = {url.rpartition("/")[2].removesuffix(".gz"): url for url in registered}
    downloads = Path(get_default_data_dir(), "downloads").expanduser()

    # The two places where DownloadManager keeps downloads. It ignores a file without its .INFO file beside it; here
    # a file that was copied without it will do, as its checksum is compared below.
    paths: dict[str, Path] = {}
    for file in wanted:
        cached = get_dl_fname(urls[file], registered[urls[file]].checksum)
        for path in (downloads / cached, downloads / name / cached):
            if os.path.isfile(path):  # Path.is_file would raise where permission is denied
                paths[file] = path
    missing = {file: urls[file] for file in wanted if file not in paths}
    if missing:
        paths |= _download(name, missing, registered, downloads)

    remedy = "delete it, and it will be downloaded again"
    for file in wanted:
        _verify(paths[file], _digest(paths[file], remedy), registered[urls[file]].checksum, remedy)
    if form.archive:
        return _from_archive(paths[form.archive], stems)
    return [File(paths[stem], _decompress(paths[stem], _read(paths[stem], remedy), remedy)) for stem in stems]


def _from_archive(path: Path, stems: tuple[str, ...]) -> list[File]:
    """Reads files from EMNIST's zip archive (its checksum was compared), in which each is compressed by gzip."""
    with zipfile.ZipFile(path) as archive:
        return [File(path / stem, gzip.decompress(archive.read(f"gzip/{stem}.gz"))) for stem in stems]


def _download(name: str, urls: dict[str, str], registered: dict[str, Any], downloads: Path) -> dict[str, Path]:
    """Download `urls` (by name of file) into the cache, with a progress bar on stderr, and return the files' paths."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    url = next(iter(urls.values()))
    try:
        # DownloadManager retries for minutes before it fails, so check first whether the server answers.
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
    """Raise OSError unless the server begins a successful answer for `url` within `_PATIENCE` seconds."""
    import requests

    failures: list[OSError] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_PATIENCE) as response:
                response.raise_for_status()
        except OSError as error:  # the base class of all errors of requests; raised in the caller's thread, below
            failures.append(error)

    # The timeout of requests covers neither the name lookup nor several addresses tried in turn, so the request runs
    # in a thread, which is abandoned when the time is over.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {_PATIENCE:g} s")
    if failures:
        raise failures[0]


def _reason(error: BaseException) -> str:
    """The message of the innermost exception, in one line: requests wraps the system's message several times."""
    while error.__context__ is not None:
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(":")


def _listing(folder: str | os.PathLike[str], remedy: str) -> set[str]:
    """The names of the files in a folder. Raises `InputError`, ending with the remedy, where it can't be read."""
    try:
        return set(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read the data folder {os.fspath(folder)!r} ({error.strerror}); {remedy}") from error


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {remedy}") from error


def _digest(path: Path, remedy: str) -> str:
    """The SHA-256 of a file, read piece by piece, as archives are large."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); {remedy}") from error


def _decompress(path: Path, content: bytes, remedy: str) -> bytes:
    try:
        return _DECOMPRESS.get(path.suffix, bytes)(content)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def _verify(path: Path, found: str, sha256: str, remedy: str) -> None:
    if found != sha256:
        raise InputError(f"{path} is altered: its SHA-256 is {found}, not {sha256}; {remedy}")
