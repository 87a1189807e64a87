"""Attack the images of a split, and keep what was found, image by image."""

import argparse
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mnist_jax import checkpoint, command, data, files
from mnist_jax.attack import AttackResult, automatic, dichotomy, fixed_norm, prompt
from mnist_jax.attack.chunks import chunk_size
from mnist_jax.attack.result import Record, load, save
from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError, unknown

METHODS: dict[str, Callable[..., AttackResult]] = {
    "fixed_norm": fixed_norm,
    "dichotomy": dichotomy,
    "automatic": automatic,
}
SPLITS = ("train", "test", "val")
CHUNKS_AT_ONCE = 2  # between two looks at Ctrl-C: more of them fill their batches better
SECONDS_BETWEEN_SAVES = 3.0  # every save writes all results so far
SHOWN = 24  # images in the figure


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command.Parser("attack", __doc__)
    parser.add_argument("--model", required=True, help="a checkpoint's path, or a name such as CNN or CNN-original")
    parser.add_argument("--method", default="dichotomy", help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--norm", type=_norm, default=2.0, help="p of the norm: a number from 1, or inf")
    parser.add_argument("--split", default="val", help=f"one of {', '.join(SPLITS)}")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--count", type=command.number(int, 1), help="attack the first so many (default: all)")
    which.add_argument("--ids", type=_integers, help="attack just these, as in 3,14")
    parser.add_argument("--radius", type=command.number(float, 0), help="norm of the perturbation (fixed_norm)")
    parser.add_argument("--steps", type=command.number(int, 1), help="gradients (of fixed_norm: at every radius)")
    parser.add_argument("--learning-rate", type=command.number(float, 0, 10, above=True), help="of Adam, in pixels")
    parser.add_argument("--targets", type=_integers, help="class to reach, or one for each image, as in 3,5")
    parser.add_argument("--seed", type=command.number(int, 0, 2**32 - 1), help="start at random (default: don't)")
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder for the results")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted attack of this name")
    parser.add_data_options(dataset=None)
    return parser.parse_args(argv)


def _norm(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1, or inf")
    return value


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 3,14") from error


class Run(NamedTuple):
    """An attack on some images, as the options ask for it."""

    classifier: Classifier
    attack: Callable[..., AttackResult]
    indices: np.ndarray  # of the images, in the split
    images: np.ndarray  # uint8
    labels: np.ndarray
    targets: np.ndarray | None
    norm: float
    about: dict[str, Any]
    path: Path  # of the results

    def on(self, places: np.ndarray) -> AttackResult:
        """Attacks the images at these places."""
        targets = {} if self.targets is None else {"targets": self.targets[places]}
        images = np.asarray(data.normalize(self.images[places]))
        result = self.attack(self.classifier, images, self.labels[places], norm=self.norm, **targets)
        return jax.tree.map(np.asarray, result)


def prepare(options: argparse.Namespace) -> Run:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    if (options.radius is None) == (options.method == "fixed_norm"):
        raise InputError(
            "--method fixed_norm needs a --radius" if options.radius is None else "--radius is for --method fixed_norm"
        )
    path = checkpoint.find(options.model, options.output)
    trained = checkpoint.load(path)
    dataset = options.dataset or trained.about.get("dataset", "mnist")
    split = images_of(data.load(dataset, options.data_dir), options.split)
    indices = chosen(options, len(split.labels))
    targets = targets_of(options, len(indices))
    given = {
        k: getattr(options, k) for k in ("radius", "steps", "learning_rate", "seed") if getattr(options, k) is not None
    }
    about = {
        "model": path.stem,
        "weights": hashlib.sha256(path.read_bytes()).hexdigest(),
        "method": options.method,
        "norm": options.norm,
        "dataset": dataset,
        "split": options.split,
        "options": given | ({} if targets is None else {"targets": options.targets}),
    }
    more = {k: v for k, v in given.items() if k != "seed"} | (
        {"key": jax.random.key(options.seed)} if options.seed is not None else {}
    )
    name = f"{path.stem}-{options.method}-l{options.norm:g}-{options.split}.npz"
    files.make_folder(options.output)
    command.note(f"attacking {path}: {len(indices)} images of {dataset} {options.split}")
    return Run(
        trained.classifier(),
        partial(METHODS[options.method], **more),
        indices,
        split.images[indices],
        split.labels[indices],
        targets,
        options.norm,
        about,
        options.output / name,
    )


def images_of(dataset: data.Dataset, split: str) -> data.Split:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return getattr(dataset, split)


def chosen(options: argparse.Namespace, count: int) -> np.ndarray:
    """The indices of the images to attack."""
    if options.ids is None:
        if (options.count or 0) > count:
            raise InputError(f"--count {options.count} is more than the {count} images of {options.split}")
        return np.arange(options.count or count)
    if outside := [i for i in options.ids if not 0 <= i < count]:
        raise InputError(f"--ids {outside[0]} is not an image of {options.split}: they go from 0 to {count - 1}")
    if len(set(options.ids)) < len(options.ids):
        raise InputError("--ids names an image twice; name each once")
    return np.array(options.ids)


def targets_of(options: argparse.Namespace, count: int) -> np.ndarray | None:
    if options.targets is None:
        return None
    if len(options.targets) not in (1, count):
        raise InputError(f"--targets must be one class, or one for each of the {count} images")
    if outside := [t for t in options.targets if not 0 <= t < 10]:
        raise InputError(f"--targets {outside[0]} is not a class: they go from 0 to 9")
    return np.broadcast_to(np.array(options.targets), (count,)).copy()


def earlier(run: Run, resume: bool) -> Record | None:
    """The results of the interrupted attack to go on with."""
    if not resume:
        return None
    if not run.path.exists():
        raise InputError(f"there is nothing to resume: {run.path} does not exist; leave --resume out to start anew")
    record = load(run.path)
    wanted = run.about
    if different := [key for key in wanted if record.about.get(key) != wanted[key]]:
        raise InputError(f"{run.path} is of an attack with other {' and '.join(different)}; resume with the same")
    return record


def blocks(places: np.ndarray) -> Iterator[np.ndarray]:
    """The places, some at a time: as many as fill the chunks that an attack works on."""
    size = CHUNKS_AT_ONCE * chunk_size(max(len(places), 1))
    yield from (places[i : i + size] for i in range(0, len(places), size))


def attack_all(run: Run, record: Record | None) -> tuple[Record, float]:
    """Attacks what the record does not have yet; keeps the results now and then. Gives them, and the seconds."""
    interrupt, began, saved = command.Interrupt(), time.monotonic(), -math.inf
    done = set() if record is None else set(record.indices.tolist())
    todo = np.array([place for place, index in enumerate(run.indices) if index not in done], int)
    with tqdm(total=len(run.indices), initial=len(run.indices) - len(todo), unit="image", disable=None) as bar:
        for places in blocks(todo):
            new = Record(run.indices[places], run.labels[places], run.on(places), run.about)
            record = new if record is None else join(record, new)
            whole = len(record.indices) == len(run.indices)
            if whole or time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save(run.path, record)
                saved = time.monotonic()
            bar.set_postfix_str(f"median {median(record.result):.4g}", refresh=False)
            bar.update(len(places))
            if interrupt.wanted and not whole:
                save(run.path, record)
                command.note(f"stopped after {len(record.indices)} images; --resume goes on from there")
                raise KeyboardInterrupt
    if record is None:
        raise InputError("there are no images to attack")
    return record, time.monotonic() - began


def join(a: Record, b: Record) -> Record:
    result = jax.tree.map(lambda *arrays: np.concatenate(arrays), a.result, b.result)
    return Record(np.concatenate([a.indices, b.indices]), np.concatenate([a.labels, b.labels]), result, a.about)


def median(result: AttackResult) -> float:
    """Of the distances of the images that had to be attacked."""
    attacked = result.distance[result.distance > 0]
    return float(np.median(attacked)) if len(attacked) else 0.0


def summarize(record: Record, new: int, seconds: float) -> dict[str, Any]:
    """The numbers of the summary, of the images that were classified correctly to begin with."""
    result = record.result
    attacked = result.distance > 0
    found = result.distance[attacked & result.success]
    quartiles = np.quantile(found, [0.25, 0.75]).tolist() if len(found) else [None, None]
    return {
        "images": len(attacked),
        "misclassified": int((~attacked).sum()),
        "success": float(result.success[attacked].mean()) if attacked.any() else None,
        "median": median(result) if attacked.any() and np.isfinite(median(result)) else None,
        "mean": float(found.mean()) if len(found) else None,
        "quartiles": quartiles,
        "gradients": float(result.gradients[attacked].mean()) if attacked.any() else 0.0,
        "forwards": float(result.forwards[attacked].mean()) if attacked.any() else 0.0,
        "images_per_second": round(new / seconds, 2),
        "seconds": round(seconds, 2),
    }


def draw(run: Run, record: Record) -> Path:
    """The figure of the first few images that were attacked with success."""
    from mnist_jax import plot  # Matplotlib takes a while to import

    order = {index: place for place, index in enumerate(run.indices.tolist())}
    worth = np.flatnonzero((record.result.distance > 0) & record.result.success)
    first = (worth if len(worth) else np.arange(len(record.indices)))[:SHOWN]
    originals = run.images[[order[i] for i in record.indices[first].tolist()]] / np.float32(255)
    found, distances = (np.asarray(a)[first] for a in (record.result.images, record.result.distance))
    predictions = np.asarray(run.classifier(jnp.asarray(found))).argmax(1)
    path = run.path.with_suffix(".png")
    files.write(path, plot.attacks(originals, found, record.labels[first], predictions, distances, run.norm))
    return path


def text(summary: dict[str, Any]) -> str:
    def figure(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    low, high = summary["quartiles"]
    return "\n".join(
        [
            f"success:   {figure(summary['success'], '.2%')} of {summary['images'] - summary['misclassified']} images"
            f" ({summary['misclassified']} more were misclassified from the start)",
            f"distance:  median {figure(summary['median'])}, mean {figure(summary['mean'])}, "
            f"quartiles {figure(low)} and {figure(high)}",
            f"cost:      {summary['gradients']:.0f} gradients and {summary['forwards']:.0f} forwards an image, "
            f"{summary['images_per_second']:g} images per second",
            f"results:   {summary['results']}",
            f"figure:    {summary['figure']}",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    command.start()
    run = prepare(options)
    before = earlier(run, options.resume)
    record, seconds = attack_all(run, before)
    new = len(record.indices) - (0 if before is None else len(before.indices))
    summary = run.about | summarize(record, new, seconds)
    summary |= {"results": str(run.path), "figure": str(draw(run, record))}
    command.report(summary, text(summary), as_json=options.json)


if __name__ == "__main__":
    if sys.flags.interactive:  # python -i: only prepare the prompt
        try:
            options = parse(None)
            command.start()
            attack, minimal_attack_dichotomy, minimal_attack = prompt.prepare(options)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(command.BAD_INPUT)  # an ordinary exit would open the prompt
    else:
        command.run(main)
