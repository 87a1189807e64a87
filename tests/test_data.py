"""Datasets: the true MNIST, folders of IDX files, and tensorflow-datasets, all on this machine alone."""

import gzip
import hashlib
import lzma
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import data
from mnist_jax.data import source
from mnist_jax.errors import InputError

TRAIN_IMAGES, TRAIN_LABELS, VAL_IMAGES, VAL_LABELS = FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


def idx(array):
    """An IDX file of bytes, as the format's definition has it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def small_arrays(train=12, val=5, seed=0, shape=(28, 28), labels=10):
    """Random images and labels of a small dataset, in the order of its files."""
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (train, *shape)), rng.integers(0, labels, train)]
    return [*arrays, rng.integers(0, 256, (val, *shape)), rng.integers(0, labels, val)]


def small_files(**how):
    """The four files of a small random dataset, uncompressed, by name."""
    return {stem: idx(array) for stem, array in zip(FILES, small_arrays(**how), strict=True)}


def write_folder(folder, files, suffix="", rename=str):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, raw in files.items():
        (folder / (rename(stem) + suffix)).write_bytes(PACK[suffix](raw))
    return folder


def assert_same(left, right):
    for one, other in zip(left[1:4], right[1:4], strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def refused(match, *args, **kwargs):
    """`load` refuses, with the text `match` in a message of one line."""
    with pytest.raises(InputError) as caught:
        data.load(*args, **kwargs)
    message = str(caught.value)
    assert match in message
    assert "\n" not in message
    return message


# MNIST


def test_mnist_is_mnist(mnist):
    assert mnist.name == "mnist"
    for split, count in zip(mnist[1:4], (50_000, 10_000, 10_000), strict=True):
        assert (split.images.shape, split.images.dtype) == ((count, 28, 28, 1), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((count,), np.int32)
    histograms = [np.bincount(split.labels).tolist() for split in mnist[1:4]]
    assert histograms == [
        [4932, 5678, 4968, 5101, 4859, 4506, 4951, 5175, 4842, 4988],
        [991, 1064, 990, 1030, 983, 915, 967, 1090, 1009, 961],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ]
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.val.labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_mnist_splits_make_up_the_original_files_in_order(mnist):
    images = np.concatenate([mnist.train.images, mnist.test.images])[..., 0]
    labels = np.concatenate([mnist.train.labels, mnist.test.labels])
    assert [
        hashlib.sha256(idx(array)).hexdigest() for array in (images, labels, mnist.val.images[..., 0], mnist.val.labels)
    ] == [
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ]


def test_damaged_embedded_copy(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    shutil.copytree(Path(data.__file__).parent / "mnist", folder)
    monkeypatch.setattr(source, "_EMBEDDED", folder)
    labels = folder / f"{VAL_LABELS}.xz"
    packed = labels.read_bytes()
    raw = bytearray(lzma.decompress(packed))
    raw[-1] ^= 1

    labels.write_bytes(lzma.compress(raw))
    message = refused(f"{labels} is altered: its SHA-256 is {hashlib.sha256(raw).hexdigest()}, not ff7bcfd4")
    assert message.endswith("reinstall mnist_jax")

    labels.write_bytes(packed[:-20])
    assert refused(f"{labels} is damaged (").endswith("reinstall mnist_jax")

    labels.unlink()
    assert refused(f"cannot read {labels} (No such file").endswith("reinstall mnist_jax")


def test_import_needs_no_tensorflow_datasets():
    code = "import sys, mnist_jax.data as d; d.load(); print('tensorflow_datasets' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Names


@pytest.mark.parametrize(("name", "near"), [("fashion", "fashion_mnist"), ("KMNIST", "kmnist"), ("mnits", "mnist")])
def test_unknown_name_with_a_near_one(name, near):
    message = refused(f"unknown dataset {name!r}: did you mean {near}", name)
    assert "? There are mnist, fashion_mnist, kmnist, emnist; one of your own needs its folder" in message


def test_unknown_name(tmp_path):
    expected = "unknown dataset 'imagenet': There are mnist, fashion_mnist, kmnist, emnist; one of your own needs its "
    assert refused(expected, "imagenet") == expected + "folder (--data-dir)"
    folder = write_folder(tmp_path, small_files())
    assert data.load("imagenet", folder).name == "imagenet"
    for name in (
        "my-own",
        "",
        "../own",
        "2nd",
    ):  # in the names of checkpoints and results, a dataset's name stands between hyphens
        refused(f"{name!r} is no name for a dataset", name, folder)


# Folders


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("rename", [str, lambda stem: stem.replace("-idx", ".idx")], ids=["dash", "dot"])
def test_folder(tmp_path, suffix, rename):
    files = small_files(train=13, val=5)
    got = data.load("kmnist", write_folder(tmp_path, files, suffix, rename))
    assert got.name == "kmnist"
    images = np.frombuffer(files[TRAIN_IMAGES][16:], np.uint8).reshape(13, 28, 28, 1)
    labels = np.frombuffer(files[TRAIN_LABELS][8:], np.uint8).astype(np.int32)
    val_images = np.frombuffer(files[VAL_IMAGES][16:], np.uint8).reshape(5, 28, 28, 1)
    val_labels = np.frombuffer(files[VAL_LABELS][8:], np.uint8).astype(np.int32)
    assert_same(
        got,
        data.Dataset(
            "kmnist",
            train=data.Split(images[:11], labels[:11]),
            test=data.Split(images[11:], labels[11:]),
            val=data.Split(val_images, val_labels),
            class_names=(),
        ),
    )


def test_folder_of_the_true_mnist(tmp_path, mnist):
    embedded = Path(data.__file__).parent / "mnist"
    assert_same(data.load(data_dir=str(embedded)), mnist)


def test_own_files_under_the_name_mnist(tmp_path):
    got = data.load("mnist", write_folder(tmp_path, small_files()))
    assert [len(split.labels) for split in got[1:4]] == [10, 2, 5]


@pytest.mark.parametrize(
    ("folder", "reason"), [("absent", "No such file"), ("file", "Not a directory"), ("", "No such")]
)
def test_not_a_folder(tmp_path, folder, reason):
    (tmp_path / "file").touch()
    place = str(tmp_path / folder) if folder else ""
    refused(f"cannot read the data folder {place!r} ({reason}", data_dir=place)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    folder = write_folder(tmp_path / "mine", small_files())
    (folder / VAL_LABELS).chmod(0)
    refused(f"cannot read {folder / VAL_LABELS} (Permission denied)", data_dir=folder)
    folder.chmod(0)
    refused(f"cannot read the data folder {str(folder)!r} (Permission denied)", data_dir=folder)
    folder.chmod(0o700)


@pytest.mark.parametrize("stem", FILES)
def test_missing_file(tmp_path, stem):
    folder = write_folder(tmp_path, small_files())
    (folder / stem).unlink()
    message = refused(f"{folder} lacks {stem}; it may be called ", data_dir=folder)
    dotted = stem.replace("-idx", ".idx")
    for spelling in (stem, f"{stem}.gz", f"{stem}.xz", dotted, f"{dotted}.gz", f"{dotted}.xz"):
        assert spelling in message


def test_a_folder_in_the_place_of_a_file(tmp_path):
    folder = write_folder(tmp_path, small_files())
    (folder / VAL_IMAGES).unlink()
    (folder / VAL_IMAGES).mkdir()
    refused(f"cannot read {folder / VAL_IMAGES} (Is a directory)", data_dir=folder)


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("length", [0, 3, 6, 10, -1])
def test_truncated_file(tmp_path, stem, length):
    files = small_files()
    folder = write_folder(tmp_path, files | {stem: files[stem][:length]})
    refused(f"{folder / stem} is truncated or damaged: ", data_dir=folder)


def test_bytes_left_over(tmp_path):
    files = small_files()
    folder = write_folder(tmp_path, files | {TRAIN_LABELS: files[TRAIN_LABELS] + b"\0"})
    refused("is truncated or damaged: 21 bytes, its header asks for 20", data_dir=folder)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("spoil", [lambda b: b[:-10], lambda b: b[:40] + bytes(20) + b[60:], lambda b: b"no" + b])
def test_damaged_compressed_file(tmp_path, suffix, spoil):
    folder = write_folder(tmp_path, small_files(), suffix)
    path = folder / (TRAIN_IMAGES + suffix)
    path.write_bytes(spoil(path.read_bytes()))
    refused(f"{path} is damaged (", data_dir=folder)


def test_files_in_each_others_place(tmp_path):
    files = small_files()
    folder = write_folder(tmp_path, files | {TRAIN_IMAGES: files[TRAIN_LABELS]})
    refused(
        f"{folder / TRAIN_IMAGES} is not the right IDX file: its magic number is 0x801, not 0x803",
        data_dir=folder,
    )


def test_counts_differ(tmp_path):
    folder = write_folder(tmp_path, small_files() | {TRAIN_LABELS: idx(np.zeros(11))})
    refused(
        f"{folder / TRAIN_IMAGES} holds 12 images, but {folder / TRAIN_LABELS} 11 labels",
        data_dir=folder,
    )


def test_wrong_shape(tmp_path):
    folder = write_folder(tmp_path, small_files() | {VAL_IMAGES: idx(np.zeros((5, 32, 30)))})
    message = refused(f"{folder / VAL_IMAGES} holds images of 32x30 pixels, not 28x28 as in mnist", data_dir=folder)
    assert message.endswith("; another --dataset name takes any")


def test_wrong_label(tmp_path):
    folder = write_folder(tmp_path, small_files() | {VAL_LABELS: idx(np.array([0, 9, 1, 10, 255]))})
    refused(f"{folder / VAL_LABELS} has the label 10 at index 3: labels are from 0 to 9 in mnist", data_dir=folder)


def test_no_images(tmp_path):
    folder = write_folder(tmp_path, small_files(val=0))
    refused(f"{folder / VAL_IMAGES} is empty", data_dir=folder)


def test_too_few_images_to_split(tmp_path):
    assert len(data.load(data_dir=write_folder(tmp_path / "6", small_files(train=6))).test.labels) == 1
    refused("holds 5 images: at least 6 are needed", data_dir=write_folder(tmp_path / "5", small_files(train=5)))


# Of any size and number of classes


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (5, 6, 3)])
def test_own_folder(tmp_path, shape):
    arrays = small_arrays(train=30, shape=shape, labels=4)
    arrays[1][:2] = 3, 0
    arrays[3][:] = 1  # not every class is in every file
    folder = write_folder(tmp_path, {stem: idx(array) for stem, array in zip(FILES, arrays, strict=True)}, ".gz")
    got = data.load("shapes", folder)
    assert (got.name, got.shape, got.class_names) == ("shapes", (*shape, 1)[:3], ("0", "1", "2", "3"))
    np.testing.assert_array_equal(got.train.images, arrays[0][:25].reshape(25, *got.shape))
    np.testing.assert_array_equal(got.test.labels, arrays[1][25:])
    np.testing.assert_array_equal(got.val.images, arrays[2].reshape(5, *got.shape))
    for split in data.SPLITS:
        for ours, theirs in zip(data.load_split(split, "shapes", folder), getattr(got, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_names_of_classes(tmp_path):
    folder = write_folder(tmp_path, small_files(train=30, shape=(9, 7), labels=3))
    (folder / "classes.txt").write_text("circle\nsmall square\n étoile \nnone of them\n\n", encoding="utf-8")
    assert data.load("shapes", folder).class_names == ("circle", "small square", "étoile", "none of them")
    for text in (b"", b"one\n", b"one\n\ntwo\n", b"one\ntwo\none\n"):
        (folder / "classes.txt").write_bytes(text)
        refused(f"{folder / 'classes.txt'} has an empty line, a name twice, or fewer than two names", "shapes", folder)
    (folder / "classes.txt").write_bytes(b"one\n\xff\n")
    refused(f"{folder / 'classes.txt'} is not text", "shapes", folder)
    (folder / "classes.txt").write_text("circle\nsquare\n")
    refused("train-labels-idx1-ubyte has the label 2 at index ", "shapes", folder)


def test_names_of_known_classes(tmp_path, mnist):
    assert mnist.class_names == tuple("0123456789")
    folder = write_folder(tmp_path, small_files())
    fashion, kana = (data.load(name, folder).class_names for name in ("fashion_mnist", "kmnist"))
    assert (len(fashion), fashion[0], fashion[9]) == (10, "T-shirt/top", "Ankle boot")
    assert kana == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def test_names_are_those_that_tensorflow_datasets_has():
    import tensorflow_datasets as tfds

    for name in ("fashion_mnist", "kmnist"):
        text = Path(tfds.builder_cls(name).code_path).read_text()
        assert all(f'"{one}",' in text for one in data.DATASETS[name].class_names)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {VAL_IMAGES: idx(np.zeros((5, 8, 7)))},
            "t10k-images-idx3-ubyte holds images of 8x7 pixels, not 9x7 as in shapes",
        ),
        ({VAL_LABELS: idx(np.array([0, 1, 2, 3, 9]))}, "has the label 3 at index 3: labels are from 0 to 2 in shapes"),
        ({TRAIN_LABELS: idx(np.zeros(12))}, "train-labels-idx1-ubyte has one label only, 0: at least two classes"),
        ({TRAIN_IMAGES: idx(np.zeros((12, 9, 7, 2)))}, "holds images of 2 channels: grey ones have 1, coloured ones 3"),
        ({TRAIN_IMAGES: idx(np.zeros((12, 0, 7)))}, "train-images-idx3-ubyte is empty"),
        ({TRAIN_IMAGES: idx(np.zeros((12, 9)))}, "its magic number is 0x802, not 0x803 or 0x804"),
    ],
)
def test_files_that_do_not_agree(tmp_path, changed, message):
    files = small_files(shape=(9, 7), labels=3) | {TRAIN_LABELS: idx(np.arange(12) % 3)}
    refused(message, "shapes", write_folder(tmp_path, files | changed))


LETTERS = [f"emnist-letters-{part}-ubyte" for part in ("train-images-idx3", "train-labels-idx1")]
LETTERS += [stem.replace("train", "test") for stem in LETTERS]


def letters():
    """Images and labels, and the same as EMNIST's files, where images are transposed and labels begin at 1."""
    arrays = small_arrays(labels=26)
    arrays[1][:2] = 0, 25
    stored = [array.swapaxes(1, 2) if array.ndim == 3 else array + 1 for array in arrays]
    return arrays, {stem: idx(array) for stem, array in zip(LETTERS, stored, strict=True)}


def assert_letters(got, arrays):
    assert (got.name, got.shape, got.class_names[0], got.class_names[25:]) == ("emnist", (28, 28, 1), "a", ("z",))
    images, labels, val_images, val_labels = arrays
    np.testing.assert_array_equal(np.concatenate([got.train.images, got.test.images])[..., 0], images)
    np.testing.assert_array_equal(np.concatenate([got.train.labels, got.test.labels]), labels)
    np.testing.assert_array_equal(got.val.images[..., 0], val_images)
    np.testing.assert_array_equal(got.val.labels, val_labels)


def test_letters_in_a_folder_are_upright_and_begin_at_a(tmp_path):
    arrays, files = letters()
    folder = write_folder(tmp_path, files, ".gz")
    assert_letters(data.load("emnist", folder), arrays)
    np.testing.assert_array_equal(data.load_split("val", "emnist", folder).labels, arrays[3])
    write_folder(folder, {LETTERS[3]: idx(np.array([1, 0, 2, 26, 3]))}, ".gz")
    refused("has the label 0 at index 1: labels are from 1 to 26 in emnist", "emnist", folder)
    (folder / f"{LETTERS[2]}.gz").unlink()
    refused(f"{folder} lacks {LETTERS[2]}", "emnist", folder)


# Downloads through tensorflow-datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds" / "downloads"


def no_lookup(*args, **kwargs):
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.fixture
def no_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


def registered(monkeypatch, name, address, packed):
    """Register the files `packed` of dataset `name` with tensorflow-datasets, at `address`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    infos = {
        f"{address}{stem}.gz": UrlInfo(tfds.core.utils.Size(len(content)), hashlib.sha256(content).hexdigest(), None)
        for stem, content in packed.items()
    }
    monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)
    return infos


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine: its folder, its address, and the requests that it got."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path.lstrip("/"))

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{httpd.server_port}/", asked=asked)
        httpd.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
@pytest.mark.parametrize("own_folder", [True, False], ids=["in a folder of its own", "without"])
def test_filled_cache_needs_no_network(tmp_path, monkeypatch, cache, no_network, name, own_folder):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.resource import get_dl_fname

    files = small_files()
    packed = {stem: gzip.compress(raw) for stem, raw in files.items()}
    infos = registered(monkeypatch, name, tfds.builder_cls(name).URL, packed)
    place = cache / name if own_folder else cache
    place.mkdir(parents=True)
    for (url, info), content in zip(infos.items(), packed.values(), strict=True):
        (place / get_dl_fname(url, info.checksum)).write_bytes(content)
    assert_same(data.load(name), data.load(name, write_folder(tmp_path / "raw", files)))


@pytest.mark.parametrize("split", data.SPLITS)
def test_one_split_needs_its_own_files_alone(tmp_path, mnist, split):
    got = data.load_split(split)
    for ours, theirs in zip(got, getattr(mnist, split), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    start = "t10k" if split == "val" else "train"
    files = {stem: raw for stem, raw in small_files().items() if stem.startswith(start)}
    folder = write_folder(tmp_path, files)
    assert len(data.load_split(split, "kmnist", folder).labels)
    with pytest.raises(InputError, match="lacks"):
        data.load("kmnist", folder)


def test_unknown_splits_are_refused():
    with pytest.raises(InputError, match="vall"):
        data.load_split("vall")


def test_download_then_cache(tmp_path, monkeypatch, capfd, cache, server):
    files = small_files()
    packed = {stem: gzip.compress(raw) for stem, raw in files.items()}
    registered(monkeypatch, "kmnist", server.url, packed)
    write_folder(server.folder, files, ".gz")

    expected = data.load("kmnist", write_folder(tmp_path / "raw", files))
    assert_same(data.load("kmnist"), expected)
    assert set(server.asked) == {f"{stem}.gz" for stem in FILES}
    out, err = capfd.readouterr()
    assert out == ""
    assert "Dl Completed" in err

    server.asked.clear()
    assert_same(data.load("kmnist"), expected)
    assert server.asked == []
    assert capfd.readouterr() == ("", "")

    next(path for path in cache.rglob("*.gz") if "t10k-l" in path.name).unlink()
    assert_same(data.load("kmnist"), expected)
    assert set(server.asked) == {f"{VAL_LABELS}.gz"}


def test_letters_are_downloaded_in_one_archive(tmp_path, monkeypatch, capfd, cache, server):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    arrays, files = letters()
    path = server.folder / "gzip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for stem, raw in files.items():
            archive.writestr(f"gzip/{stem}.gz", gzip.compress(raw))
    content = path.read_bytes()
    info = UrlInfo(tfds.core.utils.Size(len(content)), hashlib.sha256(content).hexdigest(), "gzip.zip")
    monkeypatch.setattr(tfds.builder_cls("emnist"), "url_infos", {f"{server.url}gzip.zip": info})

    assert_letters(data.load("emnist"), arrays)
    assert set(server.asked) == {"gzip.zip"}
    server.asked.clear()
    np.testing.assert_array_equal(data.load_split("val", "emnist").labels, arrays[3])  # from the cache
    assert server.asked == []
    cached = next(cache.rglob("*.zip"))
    cached.write_bytes(content + b"more")
    assert "delete it" in refused(f"{cached} is altered: its SHA-256 is ", "emnist")


def test_real_checksums_are_registered():
    import tensorflow_datasets as tfds

    for name, form in list(data.DATASETS.items())[1:]:
        infos = tfds.builder_cls(name).url_infos
        files = [form.archive] if form.archive else [f"{stem}.gz" for stem in form.stems]
        assert sorted(url.rpartition("/")[2] for url in infos) == sorted(files)
        assert all(len(info.checksum) == 64 for info in infos.values())


def test_altered_cached_file(cache, no_network):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.resource import get_dl_fname

    infos = tfds.builder_cls("fashion_mnist").url_infos
    garbage = gzip.compress(small_files()[TRAIN_IMAGES])
    paths = {url: cache / "fashion_mnist" / get_dl_fname(url, info.checksum) for url, info in infos.items()}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(garbage)
    url = next(url for url in infos if TRAIN_IMAGES in url)
    message = refused(f"{paths[url]} is altered: its SHA-256 is ", "fashion_mnist")
    assert f"{hashlib.sha256(garbage).hexdigest()}, not {infos[url].checksum}" in message
    assert "delete it" in message


def test_altered_download(monkeypatch, cache, server):
    files = small_files()
    registered(monkeypatch, "kmnist", server.url, {stem: gzip.compress(raw) for stem, raw in files.items()})
    write_folder(server.folder, small_files(seed=1), ".gz")
    refused("has wrong checksum", "kmnist")


def test_server_without_the_files(monkeypatch, cache, server):
    registered(monkeypatch, "kmnist", server.url, dict.fromkeys(FILES, b""))
    refused("(404 Client Error: File not found", "kmnist")


def test_cache_that_cannot_be_made(monkeypatch, cache, server):
    files = small_files()
    registered(monkeypatch, "kmnist", server.url, {stem: gzip.compress(raw) for stem, raw in files.items()})
    write_folder(server.folder, files, ".gz")
    cache.parent.touch()
    refused(f"to {cache} (Not a directory)", "kmnist")


def assert_names_the_ways_out(message, cache):
    for way in ("--data-dir", "embedded mnist", "download cache", str(cache)):
        assert way in message


def test_no_network(cache, no_network):
    started = time.monotonic()
    message = refused("cannot download kmnist from codh.rois.ac.jp to ", "kmnist")
    assert time.monotonic() - started < 5
    assert "(Temporary failure in name resolution)" in message
    assert_names_the_ways_out(message, cache)


def test_proxy_that_refuses(monkeypatch, cache):
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        assert_names_the_ways_out(refused("(Connection refused)", "fashion_mnist"), cache)


def test_patience_leaves_time_for_the_rest():
    assert source._PATIENCE <= 12


def test_name_lookup_that_hangs(monkeypatch, cache, no_network):
    done = threading.Event()

    def hang(*args, **kwargs):
        done.wait(30)
        no_lookup()

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(source, "_PATIENCE", 0.3)
    started = time.monotonic()
    message = refused("(no answer within 0.3 s)", "kmnist")
    done.set()
    assert time.monotonic() - started < 3
    assert_names_the_ways_out(message, cache)


def test_server_that_never_answers(monkeypatch, cache):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(source, "_PATIENCE", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        registered(monkeypatch, "kmnist", address, dict.fromkeys(FILES, b""))
        started = time.monotonic()
        assert_names_the_ways_out(refused("cannot download kmnist", "kmnist"), cache)
        assert time.monotonic() - started < 3


# Normalisation


@pytest.mark.parametrize(
    "run",
    [data.normalize, lambda x: data.normalize(jnp.asarray(x)), jax.jit(data.normalize)],
    ids=["numpy", "jax", "jit"],
)
def test_normalize_is_the_rounded_quotient(run):
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    got = np.asarray(run(levels))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, levels.astype(np.float32) / np.float32(255), strict=True)


def test_normalize_wants_grey_levels():
    with pytest.raises(TypeError, match="takes uint8 images, not float32"):
        data.normalize(data.normalize(np.zeros((1, 28, 28, 1), np.uint8)))
