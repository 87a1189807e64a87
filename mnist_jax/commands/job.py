"""Jobs: a method applied to images of a split, whose results are saved while it runs, and which can be resumed.

An attack, certificates, brackets and smoothing are jobs: each is a subclass of `Job`, and `carry_out` runs it.
"""

import argparse
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mnist_jax import data
from mnist_jax.chunks import chunk_size
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console, own_model
from mnist_jax.errors import InputError
from mnist_jax.networks import Network
from mnist_jax.storage import checkpoint, files
from mnist_jax.storage.results import R, Record, check_about, load, made_by, save, targets_of

CHUNKS_AT_ONCE = 4  # chunks between two checks for Ctrl-C: chunks together waste less of a last, partly empty batch
MODELS = "a checkpoint's path, a name such as CNN or CNN-original, an ONNX file, or FILE.py:FUNCTION for your own"
STARTING = "compiling, and the first images"  # shown beside the bar until the first images are done
SECONDS_BETWEEN_SAVES = 3.0  # at least, as every save writes all results so far anew; chosen, not tuned


def add_options(parser: console.Parser, title: str, *, verb: str, norms: str) -> argparse._ArgumentGroup:
    """Adds the options of every job. Options that are not given are absent from the parsed namespace."""
    group = parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
    group.add_argument("--norm", type=norm_of, help=f"p of the norm: {norms}")
    group.add_argument("--radius", type=console.number(float, 0, 1e6), help="largest norm of the perturbations")
    group.add_argument("--split", help=f"one of {', '.join(data.SPLITS)} (default: val)")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--count", type=console.number(int, 1), help=f"{verb} the first COUNT images (default: all)")
    which.add_argument("--ids", type=integers, help=f"{verb} the images at these indices only, as in 3,14")
    group.add_argument("--resume", action="store_true", help=f"keep the results that are saved, and {verb} the rest")
    return group


def norm_of(text: str) -> float:
    """The type of the option --norm (for argparse): 0, a number of at least 1, or inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value == 0 or value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, a number of at least 1, or inf")
    return value


def parts(text: str) -> list[str]:
    """The type of an option (for argparse): names or numbers, as in 3,bag."""
    if not all(found := [part.strip() for part in text.split(",")]):
        raise argparse.ArgumentTypeError(f"{text!r} has nothing between two commas")
    return found


def integers(text: str) -> list[int]:
    """The type of an option (for argparse): whole numbers, as in 3,14."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 3,14") from error


class Subject(NamedTuple):
    """A trained network, and the images that a job works on."""

    path: Path  # of the network's file
    classifier: Classifier
    class_names: tuple[str, ...]
    dataset: str
    split: data.Split


def subject(model: str, split: str, options: argparse.Namespace, dataset: str | None = None) -> Subject:
    """Loads the network that `model` names, and a split of a dataset.

    The dataset is that of the options, else `dataset`, else the one that the network was trained for.

    Raises:
      InputError: the network or the data can't be loaded, or don't fit each other.
    """
    if own_model.is_meant(model):
        name = options.dataset or dataset or "mnist"
        images = data.load_split(split, name, options.data_dir)
        path, classifier, names = own(model, name, images)
        return Subject(path, classifier, names, name, images)
    path = checkpoint.find(model, options.output)
    trained = checkpoint.load(path)
    name = options.dataset or dataset or trained.about.get("dataset", "mnist")
    images = data.load_split(split, name, options.data_dir)
    check_fits(path, trained.network, name, images)
    return Subject(path, trained.classifier(), trained.class_names, name, images)


def check_fits(path: Path, network: type[Network], dataset: str, split: data.Split) -> None:
    """Raises `InputError` unless the network at `path` takes the split's images and has the classes of its dataset."""
    shape = split.images.shape[1:]
    if shape != network.shape:
        raise InputError(
            f"{path} takes images of {data.size(network.shape)} pixels, but those of {dataset} have {data.size(shape)}"
        )
    _check_classes(path, network.classes, dataset, split)


def _check_classes(path: Path, classes: int, dataset: str, split: data.Split) -> None:
    known = len(data.DATASETS[dataset].class_names or ()) if dataset in data.DATASETS else 0
    count = known or int(split.labels.max()) + 1  # of an unknown dataset, a lower bound
    if count > classes or (known and count < classes):
        raise InputError(f"{path} knows {classes} classes, but {dataset} has {count}")


def own(model: str, dataset: str, split: data.Split) -> tuple[Path, Classifier, tuple[str, ...]]:
    """Loads a network of the user's own (`own_model`): the path of its file, its classifier, its classes' names.

    Raises:
      InputError: it can't be loaded, does not take the split's images, or has other classes than the dataset.
    """
    path, classifier, classes = own_model.load(model, split.images.shape[1:])
    _check_classes(path, classes, dataset, split)
    names = data.DATASETS[dataset].class_names if dataset in data.DATASETS else None
    return path, classifier, names or tuple(map(str, range(classes)))


class Chosen(NamedTuple):
    """The network and the images that a job's options choose, and the folder of its results."""

    subject: Subject
    split: str
    indices: np.ndarray  # of the images in the split
    folder: Path  # of the results


def choose(options: argparse.Namespace) -> Chosen:
    """Loads the network and the images that the options name. Raises `InputError` where they are wrong."""
    split = getattr(options, "split", "val")
    about = subject(options.model, split, options)
    return Chosen(about, split, _indices(options, split, len(about.split.labels)), options.output)


def _indices(options: argparse.Namespace, split: str, count: int) -> np.ndarray:
    """The indices, in the split of `count` images, that --count or --ids choose."""
    if "ids" not in options:
        wanted = getattr(options, "count", count)
        if wanted > count:
            raise InputError(f"--count {wanted} is more than the {count} images of {split}")
        return np.arange(wanted)
    if outside := [i for i in options.ids if not 0 <= i < count]:
        raise InputError(f"--ids {outside[0]} is not an image of {split}: they go from 0 to {count - 1}")
    if len(set(options.ids)) < len(options.ids):
        raise InputError("--ids names an image twice; name each once")
    return np.array(options.ids)


def given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The options with these names that were given, by name; the results depend on them."""
    return {name: getattr(options, name) for name in names if name in options}


@dataclass(frozen=True, kw_only=True, eq=False)
class Job(ABC, Generic[R]):
    """A method applied to each of the chosen images in a norm, whose results a file keeps."""

    noun: ClassVar[str]  # the job in messages, as in "an attack"
    verb: ClassVar[str]  # its activity in messages, as in "attacking"
    kind: ClassVar[type]  # type of its results
    kept: ClassVar[str]  # its results in messages, as in "attack results"

    chosen: Chosen
    method: str
    norm: float
    given: dict[str, Any]  # options that the results depend on
    targets: np.ndarray | None = None  # target class of each image

    @abstractmethod
    def on(self, places: np.ndarray) -> R:
        """The results for the images at `places`, positions in `indices`, as NumPy arrays."""

    @abstractmethod
    def status(self, result: R) -> str:
        """A few words about the results so far, shown beside the progress bar."""

    @abstractmethod
    def summarize(self, record: Record[R]) -> dict[str, Any]:
        """The numbers of the summary."""

    def at_once(self, count: int) -> int:
        """How many of `count` images are worked on between two checks for Ctrl-C: whole chunks of them."""
        return CHUNKS_AT_ONCE * chunk_size(max(count, 1))

    @property
    def indices(self) -> np.ndarray:
        return self.chosen.indices

    @property
    def classifier(self) -> Classifier:
        return self.chosen.subject.classifier

    @cached_property
    def images(self) -> np.ndarray:
        """The chosen images, uint8 `[N, height, width, channels]`."""
        return self.chosen.subject.split.images[self.indices]

    @cached_property
    def labels(self) -> np.ndarray:
        return self.chosen.subject.split.labels[self.indices]

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that the results depend on; results are added to a file only where all of it is the same."""
        subject = self.chosen.subject
        return made_by(
            subject.path,
            subject.classifier,
            self.method,
            self.norm,
            self.given,
            subject.dataset,
            self.chosen.split,
            subject.split,
        )

    @property
    def path(self) -> Path:
        """The file of the results."""
        radius = f"-radius{self.given['radius']:g}" if "radius" in self.given else ""
        stem = self.chosen.subject.path.stem
        return self.chosen.folder / f"{stem}-{self.method}-l{self.norm:g}{radius}-{self.chosen.split}.npz"

    @property
    def figure(self) -> Path:
        return self.path.with_suffix(".png")

    def announce(self) -> None:
        """Prints what will be done. Raises `InputError` where the folder of the results can't be written."""
        files.make_folder(self.chosen.folder)
        subject = self.chosen.subject
        console.note(f"{self.verb} {subject.path}: {len(self.indices)} images of {subject.dataset} {self.chosen.split}")


def carry_out(job: Job[R], options: argparse.Namespace) -> tuple[Record[R], dict[str, Any]]:
    """Runs a job, saving its results while it runs; with --resume only on the images that have no saved result.

    Returns:
      The results of the images that the options ask for, in that order, and a summary of them.

    Raises:
      InputError: the saved results are of another job, or the results can't be written.
      KeyboardInterrupt: Ctrl-C or SIGTERM, after the results so far were saved.
    """
    for path in (job.path, job.figure):
        files.sweep(path)
    before, aside = (_earlier(job), None) if "resume" in options else (None, _room(job))
    began = time.monotonic()
    record, new = _work(job, before, aside)
    seconds = time.monotonic() - began
    place = {index: row for row, index in enumerate(record.indices.tolist())}
    asked = _rows(record, np.array([place[index] for index in job.indices.tolist()]))
    if more := len(record.indices) - len(asked.indices):
        console.note(f"{job.path} keeps the results of {more} more images")
    speed = {"images_per_second": round(new / seconds, 2), "seconds": round(seconds, 2)}
    kept = {"results": str(job.path), "earlier_results": str(aside) if aside else None}
    return asked, job.about | job.summarize(asked) | speed | kept


def _earlier(job: Job[R]) -> Record[R]:
    """The saved results that --resume adds to. Raises `InputError` where there are none, or they are of another job."""
    path = job.path
    if not path.exists():
        raise InputError(f"there is nothing to resume: {path} does not exist; leave --resume out to start anew")
    record = _load(job)
    if different := _differences(job, record):
        raise InputError(f"{path} is of {job.noun} with other {different}; resume with the same")
    return record


def _load(job: Job[R]) -> Record[R]:
    """Reads the file under the name of the results. Raises `InputError` where it holds no results of such a job."""
    record = load(job.path, job.kept)
    if not isinstance(record.result, job.kind):
        raise InputError(f"{job.path} is not a file of {job.kept}")
    check_about(job.path, record)
    return record


def _room(job: Job[R]) -> Path | None:
    """The name to which an earlier file of results is to be moved; None where there is none, or nothing of it is lost.

    Nothing is lost where this job makes the same results again.
    """
    if not job.path.exists():
        return None
    try:
        record = _load(job)
    except InputError:
        what = f"which is not a file of {job.kept}"
    else:
        different = _differences(job, record)
        what = f"of {job.noun} with other {different}" if different else "with more images (--resume would go on)"
        if not different and set(record.indices.tolist()) <= set(job.indices.tolist()):
            return None
    aside = files.free_name(job.path)
    console.note(f"note: {job.path}, {what}, will be kept as {aside}")
    return aside


def _differences(job: Job[R], record: Record[R]) -> str:
    """The respects in which the job differs from the record's, in words; empty where one file may hold both results."""
    ours, theirs = job.about, record.about
    options, were = ours["options"], theirs["options"]
    different = console.different(ours | {"options": were}, theirs)  # all but the options, which are compared below
    changed = sorted(key for key in {*options, *were} - {"targets"} if options.get(key) != were.get(key))
    if changed:
        had = ", ".join(f"{key} {were[key]}" if key in were else f"no {key}" for key in changed)
        different.append(f"options (it had {had})")
    before = targets_of(record)
    if (before is None) != (job.targets is None):
        different.append("targets")
    elif before is not None and job.targets is not None:
        now = dict(zip(job.indices.tolist(), job.targets.tolist(), strict=True))
        # Only the images that both have must have the same target.
        if any(now.get(index, target) != target for index, target in zip(record.indices.tolist(), before, strict=True)):
            different.append("targets")
    return " and ".join(different)


def _work(job: Job[R], record: Record[R] | None, aside: Path | None) -> tuple[Record[R], int]:
    """Works on the images that the record lacks; gives the record with their results, and how many they are.

    The first save moves the earlier file to `aside`, where that is given.
    """
    saved = -math.inf
    done = set() if record is None else set(record.indices.tolist())
    todo = np.array([place for place, index in enumerate(job.indices.tolist()) if index not in done], int)
    count, left, about = len(job.indices), len(todo), job.about
    if record is not None and job.targets is not None:
        targets = [*(targets_of(record) or []), *job.targets[todo].tolist()]
        targets = targets[:1] if len(set(targets)) == 1 else targets
        about = about | {"options": about["options"] | {"targets": targets}}
        record = record._replace(about=about)
    with (
        tqdm(total=count, initial=count - left, unit="image", disable=None) as bar,
        console.Interrupt() as interrupt,
    ):
        bar.set_postfix_str(STARTING if left else "")
        for places in _blocks(todo, job.at_once(left)):
            new = Record(job.indices[places], job.labels[places], job.on(places), about)
            record = new if record is None else _join(record, new)
            left -= len(places)
            if not left or interrupt.wanted or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save(job.path, record, aside)
                if aside and job.figure.exists():
                    job.figure.replace(aside.with_suffix(".png"))
                saved, aside = time.monotonic(), None
            bar.set_postfix_str(job.status(record.result), refresh=False)
            bar.update(len(places))
            if interrupt.wanted and left:
                console.note(f"stopped after {len(record.indices)} images; --resume goes on from there")
                raise interrupt.wanted
    assert record is not None  # there is an image to work on: splits are not empty
    return record, len(todo)


def _blocks(places: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The places in blocks of `size`; the last may be smaller."""
    yield from (places[i : i + size] for i in range(0, len(places), size))


def _join(a: Record[R], b: Record[R]) -> Record[R]:
    result = jax.tree.map(lambda *arrays: np.concatenate(arrays), a.result, b.result)
    return Record(np.concatenate([a.indices, b.indices]), np.concatenate([a.labels, b.labels]), result, a.about)


def _rows(record: Record[R], rows: np.ndarray) -> Record[R]:
    result = jax.tree.map(lambda array: array[rows], record.result)
    return Record(record.indices[rows], record.labels[rows], result, record.about)
