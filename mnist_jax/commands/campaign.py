"""An attack on images of a split, as a command's options ask for it: begun, interrupted, gone on with, kept."""

import argparse
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mnist_jax import data
from mnist_jax.attack import methods
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.chunks import chunk_size
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console
from mnist_jax.errors import InputError
from mnist_jax.storage import checkpoint, files
from mnist_jax.storage.results import Record, check_about, load, save, targets_of
from mnist_jax.version import VERSION

CHUNKS_AT_ONCE = 4  # between two looks at Ctrl-C: more of them fill their batches better
SECONDS_BETWEEN_SAVES = 3.0  # every save writes all results so far


def add_options(parser: console.Parser, title: str) -> None:
    """The options of every campaign. Those that are not given are not among what is parsed."""
    group = parser.add_argument_group(title, argument_default=argparse.SUPPRESS)
    group.add_argument("--norm", type=_norm, help="p of the norm: a number from 1, inf, or 0 (default: the attack's)")
    group.add_argument("--radius", type=console.number(float, 0, 1e6), help="largest norm of the perturbations")
    group.add_argument("--split", help=f"one of {', '.join(data.SPLITS)} (default: val)")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--count", type=console.number(int, 1), help="attack the first so many (default: all)")
    which.add_argument("--ids", type=integers, help="attack just these, as in 3,14")
    group.add_argument("--seed", type=console.number(int, 0, 2**32 - 1), help="of what is random in the attack")
    group.add_argument("--resume", action="store_true", help="keep what is done, and attack the rest")


def _norm(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value == 0 or value >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, a number of at least 1, or inf")
    return value


def integers(text: str) -> list[int]:
    """An option's type: whole numbers, as in 3,14."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 3,14") from error


class Subject(NamedTuple):
    """A trained network, and images to try it on."""

    path: Path  # of the network
    classifier: Classifier
    dataset: str
    split: data.Split


def subject(model: str, split: str, options: argparse.Namespace, dataset: str | None = None) -> Subject:
    """The network of that name or path, and a split of the dataset: that of the options, else the one named here, else
    the one that the network was trained for. Raises `InputError`."""
    path = checkpoint.find(model, options.output)
    trained = checkpoint.load(path)
    name = options.dataset or dataset or trained.about.get("dataset", "mnist")
    return Subject(path, trained.classifier(), name, data.load_split(split, name, options.data_dir))


class Campaign(NamedTuple):
    """An attack on some images of a split."""

    classifier: Classifier
    attack: Callable[..., AttackResult]
    indices: np.ndarray  # of the images, in the split
    images: np.ndarray  # uint8
    labels: np.ndarray
    targets: np.ndarray | None
    norm: float
    key: jax.Array | None  # of which every image has its own, whatever is attacked beside it
    about: dict[str, Any]
    path: Path  # of the results

    @property
    def figure(self) -> Path:
        return self.path.with_suffix(".png")

    def on(self, places: np.ndarray) -> AttackResult:
        """Attacks the images at these places."""
        more: dict[str, Any] = {} if self.targets is None else {"targets": self.targets[places]}
        if self.key is not None:
            more["key"] = jax.vmap(jax.random.fold_in, (None, 0))(self.key, self.indices[places])
        images = np.asarray(data.normalize(self.images[places]))
        result = self.attack(self.classifier, images, self.labels[places], norm=self.norm, **more)
        return jax.tree.map(np.asarray, result)


def prepare(options: argparse.Namespace, method: str) -> Campaign:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    given = {option: getattr(options, option) for option in methods.OPTIONS if option in options}
    attack, norm = methods.prepare(method, getattr(options, "norm", None), given)
    name = getattr(options, "split", "val")
    path, classifier, dataset, split = subject(options.model, name, options)
    indices = _chosen(options, name, len(split.labels))
    targets = _targets(given.get("targets"), len(indices))
    # All that the results depend on: it is compared before others join them.
    about = {
        "model": path.stem,
        "weights": hashlib.sha256(path.read_bytes()).hexdigest(),
        "method": method,
        "norm": norm,
        "dataset": dataset,
        "split": name,
        "data": data.fingerprint(split),
        "options": given,
        "precision": jnp.result_type(float).name,
        "platform": jax.default_backend(),
        "version": VERSION,
    }
    files.make_folder(options.output)
    console.note(f"attacking {path}: {len(indices)} images of {dataset} {name}")
    radius = f"-radius{given['radius']:g}" if "radius" in given else ""
    return Campaign(
        classifier,
        attack,
        indices,
        split.images[indices],
        split.labels[indices],
        targets,
        norm,
        jax.random.key(given["seed"]) if "seed" in given else None,
        about,
        options.output / f"{path.stem}-{method}-l{norm:g}{radius}-{name}.npz",
    )


def _chosen(options: argparse.Namespace, split: str, count: int) -> np.ndarray:
    """The indices of the images to attack."""
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


def _targets(targets: list[int] | None, count: int) -> np.ndarray | None:
    if targets is None:
        return None
    if len(targets) not in (1, count):
        raise InputError(f"--targets must be one class, or one for each of the {count} images")
    if outside := [t for t in targets if not 0 <= t < 10]:
        raise InputError(f"--targets {outside[0]} is not a class: they go from 0 to 9")
    return np.broadcast_to(np.array(targets), (count,)).copy()


def carry_out(campaign: Campaign, options: argparse.Namespace) -> tuple[Record, dict[str, Any]]:
    """Attacks what was not attacked before the --resume; keeps the results now and then. Gives those of the images that
    were asked for, in their order, and a summary of them."""
    for path in (campaign.path, campaign.figure):
        files.sweep(path)
    before, aside = (_earlier(campaign), None) if "resume" in options else (None, _room(campaign))
    began = time.monotonic()
    record, new = _attack(campaign, before, aside)
    place = {index: row for row, index in enumerate(record.indices.tolist())}
    asked = _rows(record, np.array([place[index] for index in campaign.indices.tolist()]))
    if more := len(record.indices) - len(asked.indices):
        console.note(f"{campaign.path} keeps the results of {more} more images")
    summary = campaign.about | summarize(asked, campaign.targets, new, time.monotonic() - began)
    return asked, summary | {"results": str(campaign.path), "earlier_results": str(aside) if aside else None}


def _earlier(campaign: Campaign) -> Record:
    """The results of the interrupted attack to go on with."""
    path = campaign.path
    if not path.exists():
        raise InputError(f"there is nothing to resume: {path} does not exist; leave --resume out to start anew")
    record = load(path)
    check_about(path, record)
    if different := _differences(campaign, record):
        raise InputError(f"{path} is of an attack with other {different}; resume with the same")
    return record


def _room(campaign: Campaign) -> Path | None:
    """Where to keep what is there under the name of the results, unless it is what will be there again."""
    if not campaign.path.exists():
        return None
    try:
        record = load(campaign.path)
        check_about(campaign.path, record)
    except InputError:
        what = "which is none of this attack"
    else:
        different = _differences(campaign, record)
        what = f"of an attack with other {different}" if different else "with more images (--resume would go on)"
        if not different and set(record.indices.tolist()) <= set(campaign.indices.tolist()):
            return None
    aside = files.free_name(campaign.path)
    console.note(f"note: {campaign.path}, {what}, will be kept as {aside}")
    return aside


def _differences(campaign: Campaign, record: Record) -> str:
    """In what the attack differs from that of the record, in words; nothing where their results belong together."""
    ours, theirs = campaign.about, record.about
    options, were = ours["options"], theirs["options"]
    different = console.different(ours | {"options": were}, theirs)  # options apart, below
    changed = sorted(key for key in {*options, *were} - {"targets"} if options.get(key) != were.get(key))
    if changed:
        had = ", ".join(f"{key} {were[key]}" if key in were else f"no {key}" for key in changed)
        different.append(f"options (it had {had})")
    before = targets_of(record)
    if (before is None) != (campaign.targets is None):
        different.append("targets")
    elif before is not None and campaign.targets is not None:
        now = dict(zip(campaign.indices.tolist(), campaign.targets.tolist(), strict=True))
        # Images that only one of them has may have any.
        if any(now.get(index, target) != target for index, target in zip(record.indices.tolist(), before, strict=True)):
            different.append("targets")
    return " and ".join(different)


def _attack(campaign: Campaign, record: Record | None, aside: Path | None) -> tuple[Record, int]:
    """All results, with those of the record, and how many are new."""
    saved = -math.inf
    done = set() if record is None else set(record.indices.tolist())
    todo = np.array([place for place, index in enumerate(campaign.indices.tolist()) if index not in done], int)
    count, left, about = len(campaign.indices), len(todo), campaign.about
    if record is not None and campaign.targets is not None:
        targets = [*(targets_of(record) or []), *campaign.targets[todo].tolist()]
        targets = targets[:1] if len(set(targets)) == 1 else targets
        about = about | {"options": about["options"] | {"targets": targets}}
        record = record._replace(about=about)
    with (
        tqdm(total=count, initial=count - left, unit="image", disable=None) as bar,
        console.Interrupt() as interrupt,
    ):
        for places in _blocks(todo):
            new = Record(campaign.indices[places], campaign.labels[places], campaign.on(places), about)
            record = new if record is None else _join(record, new)
            left -= len(places)
            if not left or interrupt.wanted or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save(campaign.path, record, aside)
                if aside and campaign.figure.exists():
                    campaign.figure.replace(aside.with_suffix(".png"))
                saved, aside = time.monotonic(), None
            bar.set_postfix_str(f"median {_median(record.result):.4g}", refresh=False)
            bar.update(len(places))
            if interrupt.wanted and left:
                console.note(f"stopped after {len(record.indices)} images; --resume goes on from there")
                raise interrupt.wanted
    assert record is not None  # there is an image to attack: splits are not empty
    return record, len(todo)


def _blocks(places: np.ndarray) -> Iterator[np.ndarray]:
    """The places, some at a time: as many as fill the chunks that an attack works on."""
    size = CHUNKS_AT_ONCE * chunk_size(max(len(places), 1))
    yield from (places[i : i + size] for i in range(0, len(places), size))


def _join(a: Record, b: Record) -> Record:
    result = jax.tree.map(lambda *arrays: np.concatenate(arrays), a.result, b.result)
    return Record(np.concatenate([a.indices, b.indices]), np.concatenate([a.labels, b.labels]), result, a.about)


def _rows(record: Record, rows: np.ndarray) -> Record:
    result = jax.tree.map(lambda array: array[rows], record.result)
    return Record(record.indices[rows], record.labels[rows], result, record.about)


def _median(result: AttackResult) -> float:
    """Of the distances of the images that had to be attacked."""
    attacked = result.distance[result.distance > 0]
    return float(np.median(attacked.astype(float))) if len(attacked) else 0.0


def summarize(record: Record, targets: np.ndarray | None, new: int, seconds: float) -> dict[str, Any]:
    """The numbers of the summary: of the images that had to be attacked, those that an attack does not give back as
    they were, at distance 0."""
    result = record.result
    attacked = result.distance > 0
    reached = ~attacked & (False if targets is None else record.labels == targets)
    found = result.distance[attacked & result.success].astype(float)
    quartiles = np.quantile(found, [0.25, 0.75]).tolist() if len(found) else [None, None]
    return {
        "images": len(attacked),
        "misclassified": int((~attacked & ~reached).sum()),
        "already_of_target_class": int(reached.sum()),
        "success": float(result.success[attacked].mean()) if attacked.any() else None,
        "median": _median(result) if attacked.any() and np.isfinite(_median(result)) else None,
        "mean": float(found.mean()) if len(found) else None,
        "quartiles": quartiles,
        "gradients": float(result.gradients[attacked].mean()) if attacked.any() else 0.0,
        "forwards": float(result.forwards[attacked].mean()) if attacked.any() else 0.0,
        "images_per_second": round(new / seconds, 2),
        "seconds": round(seconds, 2),
    }


def cost(summary: dict[str, Any]) -> str:
    return (
        f"{summary['gradients']:.0f} gradients and {summary['forwards']:.0f} forwards an image, "
        f"{summary['images_per_second']:g} images per second"
    )
