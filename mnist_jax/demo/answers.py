"""Check the page's requests, and answer them by an attack and a certificate, one event after another.

Each answer is a generator of its own, and no request is stored, so that users don't affect each other.
"""

import base64
import binascii
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import softmax

from mnist_jax import attack, certify, data, plot
from mnist_jax.attack.minimal_norm.nearest import EFFORTS, EFFORTS_FOR_1
from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError, first_line, unknown
from mnist_jax.evaluation import predict
from mnist_jax.geometry import INF
from mnist_jax.networks import CLASSES
from mnist_jax.storage import checkpoint, results

NORMS = {"inf": INF, "2": 2.0, "1": 1.0}  # the norms that have certificates, by the page's names
LEAST = 60  # gradients of the first attack of a search, at least; enough for one run of `attack.nearest`
# Networks for which CROWN takes at most a few seconds per image on two cores; the others get interval bounds (IBP).
BY_CROWN = ("MLP", "MLP_d", "MLP_bn", "CNN", "CNN_d", "CNN_bn")
KEYS = {"image", "network", "norm", "effort"}  # of a request

DRAWING = threading.Lock()  # Matplotlib must not draw in two threads at the same time


class Shown(NamedTuple):
    """A network that the page offers."""

    path: Path
    classifier: Classifier
    certificate: Callable[..., certify.CertifyResult]


class Question(NamedTuple):
    """A request that was checked.

    Attributes:
      image: uint8 `[28, 28, 1]`.
      place: its index in val, or None for a drawing.
      network, norm, effort: as the page names them.
    """

    image: np.ndarray
    place: int | None
    network: str
    norm: str
    effort: str


Event = dict[str, Any]  # a message to the page, as JSON; its entry "event" is its kind


class Demo:
    """The networks and the images that the page offers."""

    def __init__(self, paths: Sequence[Path], split: data.Split) -> None:
        """Offers the networks at these paths, by the names of their files, and takes `split` for val."""
        self.paths, self.split = {path.stem: path for path in paths}, split
        self._loaded: dict[str, Shown] = {}
        self._loading = threading.Lock()
        self._ran: set[tuple[Any, ...]] = set()  # programs that were compiled

    def network(self, name: str) -> Shown:
        """The network of that name, loaded when it is asked for first. Raises `InputError` unless it is of MNIST's
        images."""
        with self._loading:
            if name not in self._loaded:
                trained = checkpoint.load(path := self.paths[name])
                if trained.network.shape != self.split.images.shape[1:] or trained.network.classes != CLASSES:
                    raise InputError(f"{path} is not of MNIST's images and classes, which the page is for")
                certificate = certify.crown if trained.network.__name__ in BY_CROWN else certify.ibp
                self._loaded[name] = Shown(path, trained.classifier(), certificate)
            return self._loaded[name]

    def question(self, given: Any) -> Question:
        """The request, an object of JSON with `KEYS`. An image is `{"index": place in val}`, or `{"pixels": the 784
        bytes of a 28x28 image, in base64}`. Raises `InputError`, a line for the person, where it is anything else."""
        if not isinstance(given, dict) or set(given) != KEYS:
            raise InputError(f"a request has {', '.join(sorted(KEYS))}, and nothing else")
        named: dict[str, Any] = {"network": self.paths, "norm": NORMS, "effort": EFFORTS}
        for kind, names in named.items():
            if not isinstance(given[kind], str) or given[kind] not in names:
                raise unknown(kind, given[kind], names)
        image, place = self._image(given["image"])
        return Question(image, place, given["network"], given["norm"], given["effort"])

    def _image(self, given: Any) -> tuple[np.ndarray, int | None]:
        if isinstance(given, dict) and set(given) == {"index"}:
            return self.taken(given["index"])[0], given["index"]
        if not isinstance(given, dict) or set(given) != {"pixels"} or not isinstance(given["pixels"], str):
            raise InputError("an image is an index of val, or pixels")
        shape = self.split.images.shape[1:]
        try:
            pixels = base64.b64decode(given["pixels"], validate=True)
            image = np.frombuffer(pixels, np.uint8).reshape(shape)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"pixels are the {np.prod(shape)} bytes of an image, in base64") from error
        return image, None

    def taken(self, index: Any) -> tuple[np.ndarray, int]:
        """The image at that place in val, and its label. Raises `InputError`."""
        count = len(self.split.labels)
        if type(index) is not int or not 0 <= index < count:
            raise InputError(f"images of val go from 0 to {count - 1}")
        return np.asarray(self.split.images[index]), int(self.split.labels[index])

    def seen(self, asked: Question) -> Event:
        """What the network sees in the image as it is."""
        return {"event": "seen"} | _confidences(self.network(asked.network).classifier, _unit(asked.image))

    def answer(self, asked: Question) -> Iterator[Event]:
        """The events of a search for the nearest adversarial image.

        - `seen`: the `class` that the network predicts of the image, and its `confidences` in all of them;
        - `working`: the next piece of work (`on`), whether its program has to be compiled (`new`), and the `share` of
          the search that is done;
        - `found`: the nearest adversarial image so far, by `attack.nearest` with more and more gradients: `image` and
          `perturbation` as bytes of grey levels and of colours, its `distance`, and as in `seen`;
        - `certified`: the `radius` within which there is none, by `method`; 0, and a `reason`, where nothing is proved;
        - `done`: `files`, a figure and results by their names, and how many `seconds` it took.

        The label is that of val; a drawing's is what the network predicts. An image that is misclassified is its own
        nearest adversarial image, at distance 0.
        """
        began = time.monotonic()
        network, image = self.network(asked.network), _unit(asked.image)
        seen = self.seen(asked)
        yield seen
        label = seen["class"] if asked.place is None else self.taken(asked.place)[1]
        pieces, given = budgets(asked), (network.classifier, image[None], np.array([label]))
        apply, norm, found = network.classifier.apply, NORMS[asked.norm], None
        for number, budget in enumerate(pieces):
            program: tuple[Any, ...] = ("nearest", apply, norm, budget)
            yield self._working(program, sum(pieces[:number]) / sum(pieces))
            found = attack.nearest(*given, norm=norm, effort=budget)
            self._ran.add(program)
            if found.success[0]:
                yield _found(network.classifier, image, found)
            if number == 0:
                program = ("certificate", apply, norm)
                yield self._working(program, pieces[0] / sum(pieces))
                yield _certified(given, network.certificate, norm)
                self._ran.add(program)
        assert found is not None  # there is at least one piece
        yield self._working(("figure",), 1.0)
        files = self._files(asked, label, found)
        self._ran.add(("figure",))
        yield {"event": "done", "files": files, "seconds": time.monotonic() - began}

    def _working(self, program: tuple[Any, ...], share: float) -> Event:
        """The event before a piece of work, whose programs are compiled the first time."""
        return {"event": "working", "on": program[0], "share": share, "new": program not in self._ran}

    def _files(self, asked: Question, label: int, found: attack.AttackResult) -> dict[str, str]:
        """A figure of what was found, and the results as the command `attack` keeps them, in base64 by their names."""
        network, norm, image = self.network(asked.network), NORMS[asked.norm], _unit(asked.image)
        name, split, index = "val", self.split, asked.place
        if index is None:
            name, split, index = "drawn", data.Split(asked.image[None], np.array([label])), 0
        about = results.made_by(
            network.path, network.classifier, "nearest", norm, {"effort": asked.effort}, "mnist", name, split
        )
        record = results.Record(np.array([index]), np.array([label]), jax.tree.map(np.asarray, found), about)
        adversarial = record.result.images[0]
        seen = [_confidences(network.classifier, each) for each in (image, adversarial)]
        before, after = ((str(each["class"]), max(each["confidences"])) for each in seen)
        with DRAWING:
            figure = plot.attack(image, adversarial, before=before, after=after, norm=norm)
        stem = f"{asked.network}-nearest-l{norm:g}-{name}" + (f"-{index}" if name == "val" else "")
        contents = {".png": figure, ".npz": results.packed(record, originals=image[None])}
        return {stem + suffix: text_of(content) for suffix, content in contents.items()}


def budgets(asked: Question) -> list[int]:
    """The numbers of gradients of the attacks of a search, each twice the one before, up to the effort.

    Each attack by `attack.nearest` begins anew; with more gradients it never ends farther away.
    """
    pieces = [(EFFORTS_FOR_1 if asked.norm == "1" else EFFORTS)[asked.effort]]
    while pieces[0] >= 2 * LEAST:
        pieces.insert(0, pieces[0] // 2)
    return pieces


def _found(classifier: Classifier, image: np.ndarray, found: attack.AttackResult) -> Event:
    """The event `found`."""
    adversarial = np.asarray(found.images)[0]
    r = np.subtract(adversarial, image, dtype=np.float64)
    limit = float(np.abs(r).max()) or 1.0
    colors = np.rint(255 * plot.signed(r, limit)).astype(np.uint8)
    return {
        "event": "found",
        "image": text_of(np.rint(255 * adversarial).astype(np.uint8)),
        "perturbation": text_of(colors),
        "limit": limit,
        "distance": float(found.distance[0]),
        **_confidences(classifier, adversarial),
    }


def _certified(given: tuple[Any, ...], method: Callable[..., certify.CertifyResult], norm: float) -> Event:
    """The event `certified`."""
    event = {"event": "certified", "method": method.__name__, "radius": 0.0}
    try:
        radius = certify.largest_radius(*given, norm=norm, method=method)[0]
    except certify.UnsupportedOperation as error:
        return event | {"reason": first_line(error)}
    return event | {"radius": float(radius)}


def _confidences(classifier: Classifier, image: np.ndarray) -> Event:
    """The class predicted of an image in [0, 1], and the confidences (softmax) in all classes."""
    probabilities = softmax(predict(classifier, image[None], 1)[0].astype(float))
    return {"class": int(probabilities.argmax()), "confidences": probabilities.tolist()}


def _unit(image: np.ndarray) -> np.ndarray:
    """The image in [0, 1], from grey levels."""
    return np.asarray(data.normalize(image))


def text_of(content: bytes | np.ndarray) -> str:
    """Bytes as text in base64."""
    return base64.b64encode(bytes(content)).decode()
