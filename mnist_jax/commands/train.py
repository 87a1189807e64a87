"""Train a network; keep its weights with the settings that made them, and a figure of loss and accuracy by epoch."""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from mnist_jax import data, defend, losses, networks, training
from mnist_jax.certify import UnsupportedOperation
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console, job, own_file, own_objective
from mnist_jax.defend import DEFENSES
from mnist_jax.errors import InputError, first_line
from mnist_jax.evaluation import accuracy, mean, predict
from mnist_jax.geometry import INF
from mnist_jax.networks import NETWORKS, Network
from mnist_jax.recipe import OF_DEFENCES, RECIPES, Recipe
from mnist_jax.storage import checkpoint, files
from mnist_jax.version import VERSION

SECONDS_BETWEEN_SAVES = 3.0  # at least; a save takes a fraction of a second, and a killed process loses little


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = console.Parser("train", __doc__)
    parser.add_argument("--model", required=True, help=f"one of {', '.join(NETWORKS)}")
    recipes = f"one of {', '.join(RECIPES)} (default: original); with --defense also {OF_DEFENCES[-1]} (default: best)"
    parser.add_argument("--recipe", default=argparse.SUPPRESS, help=recipes)
    defense = f"one of {', '.join(DEFENSES)}, or FILE.py:NAME for an objective of your own"
    parser.add_argument("--defense", default=argparse.SUPPRESS, help=defense)
    norm = "p of the norm of the perturbations that --defense is against (default: inf)"
    parser.add_argument("--norm", type=job.norm_of, default=argparse.SUPPRESS, help=norm)
    radius = console.number(float, 0, above=True)
    largest = "largest norm of these perturbations"
    parser.add_argument("--radius", type=radius, default=argparse.SUPPRESS, help=largest)
    own = "in place of the recipe's"
    parser.add_argument("--epochs", type=console.number(int, 1, 100_000), default=argparse.SUPPRESS, help=own)
    parser.add_argument("--batch-size", type=console.number(int, 1), default=argparse.SUPPRESS, help=own)
    rate = console.number(float, 0, 10, above=True)
    parser.add_argument("--learning-rate", type=rate, default=argparse.SUPPRESS, help=own)
    parser.add_argument("--seed", type=console.number(int, 0, 2**32 - 1), default=0, help="seed of the random numbers")
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder for the results")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write to --output")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted training of this name")
    parser.add_data_options()
    options = parser.parse_args(argv)
    if "defense" in options and "radius" not in options:
        parser.error("--defense needs --radius, the largest norm of the perturbations that it is against")
    for option in ("norm", "radius"):
        if option in options and "defense" not in options:
            parser.error(f"--{option} is only for --defense")
    return options


class Defended(NamedTuple):
    """The defence as names of files contain it, and the SHA-256 of the user's own file that defines it; or empty."""

    name: str
    file: str


class Run(NamedTuple):
    """A training run that the options describe: network, recipe, data, seed, and where it is saved."""

    network: type[Network]
    recipe: Recipe
    dataset: data.Dataset
    defense: Defended
    seed: int
    output: Path
    save: bool
    resume: bool

    @property
    def name(self) -> str:
        return str(checkpoint.Name(self.network.__name__, self.defense.name, self.recipe.name, self.dataset.name))

    def path(self, suffix: str) -> Path:
        return self.output / (self.name + suffix)

    def about(self) -> dict[str, Any]:
        """Everything that the trained network depends on; a resumed training must have the same as the interrupted."""
        return {
            "recipe": self.recipe.name,
            "defense": self.defense.name,
            "objective_file": self.defense.file,
            "dataset": self.dataset.name,
            "data": {split: data.fingerprint(getattr(self.dataset, split)) for split in data.SPLITS},
            "seed": self.seed,
            "hyperparameters": self.recipe.hyperparameters(),
            "precision": jnp.result_type(float).name,
            "platform": jax.default_backend(),
            "version": VERSION,
        }


def choose(options: argparse.Namespace, network: type[Network]) -> tuple[Defended, Recipe]:
    """The defence and the recipe that the options name. Raises `InputError` where one of them does not exist."""
    if "defense" not in options:
        return Defended("", ""), network.recipe(getattr(options, "recipe", "original"))
    norm, name = getattr(options, "norm", INF), getattr(options, "recipe", "best")
    if own_file.is_meant(options.defense):
        own = own_objective.load(options.defense, norm, options.radius)
        defense, file = own.name, own.file
        recipe = replace(network.recipe(name), objective=own.objective)
    else:
        defense, file = options.defense, ""
        recipe = defend.recipe(defense, network, norm, options.radius, name)
    return Defended(f"{defense}-{norm:g}-{options.radius:g}", file), recipe


def prepare(options: argparse.Namespace) -> Run:
    """Checks the options and loads the data. Raises `InputError` before anything is written but an empty folder."""
    network = networks.by_name(options.model)
    given = {k: v for k, v in vars(options).items() if k in ("epochs", "batch_size", "learning_rate")}
    defense, recipe = choose(options, network)
    recipe = replace(recipe, **given)
    dataset = data.load(options.dataset, options.data_dir)
    network = network.of(dataset.shape, len(dataset.class_names))
    networks.shapes(network)  # raises an InputError where the images are too small for the network
    if recipe.batch_size > len(dataset.train.labels):
        raise InputError(
            f"--batch-size {recipe.batch_size} is larger than the training set of {len(dataset.train.labels)} images"
        )
    if options.resume and not options.save:
        raise InputError("--resume continues from a saved state, and --no-save saves none; leave one of them out")
    if options.save:
        try:
            str(options.output.absolute()).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the name {str(options.output)!a} is not UTF-8; choose another --output") from error
        files.make_folder(options.output)
    return Run(network, recipe, dataset, defense, options.seed, options.output, options.save, options.resume)


def begin(run: Run) -> tuple[training.State, list[dict[str, Any]]]:
    """The state to start from, new or of the interrupted training, and the history so far, a dict for each epoch."""
    if run.save:
        for suffix in (".safetensors", ".png", ".state"):
            files.sweep(run.path(suffix))
    steps = run.recipe.steps(len(run.dataset.train.labels))
    state = training.start(run.network, run.recipe, jax.random.key(run.seed), steps)
    if run.resume:
        if not run.path(".state").is_dir():
            raise InputError(
                f"there is nothing to resume: {run.path('.state')} does not exist; leave --resume out to start anew"
            )
        saved, was = checkpoint.load_state(run.path(".state"), pack(state))
        history, wanted = was.pop("history"), run.about()
        if different := console.different(wanted, was):
            changed = {k: v for k, v in was["hyperparameters"].items() if wanted["hyperparameters"].get(k) != v}
            hint = f" (it had {', '.join(f'{k} {v}' for k, v in changed.items())})" if changed else ""
            raise InputError(
                f"the interrupted training had other {' and '.join(different)}{hint}; resume with the same"
            )
        console.note(f"resuming {run.name} after epoch {len(history)}")
        return unpack(saved), history
    if run.save and run.path(".state").is_dir():
        console.note(f"note: starting anew; an interrupted training of {run.name} is replaced (--resume would go on)")
        files.remove(run.path(".state"))
    return state, []


def pack(state: training.State) -> dict[str, Any]:
    """The state as a dict of plain arrays, which a file can hold (a key can't be saved as it is)."""
    return state._replace(key=jax.random.key_data(state.key))._asdict()


def unpack(saved: dict[str, Any]) -> training.State:
    """The inverse of `pack`."""
    state = training.State(**saved)
    return state._replace(key=jax.random.wrap_key_data(state.key))


class Keeper:
    """Saves the training's state to disk every few seconds; an epoch can take less time than a save."""

    def __init__(self, run: Run, kept: int) -> None:
        # `kept`: epochs in the saved state; `last`: time of the last save, so that the first epoch is saved at once.
        self.run, self.kept, self.last = run, kept, -math.inf
        self.about = run.about()  # computed once, as it hashes all images

    def keep(self, state: training.State, history: list[dict[str, Any]]) -> None:
        if self.run.save and len(history) > self.kept:
            about = self.about | {"history": history}
            checkpoint.save_state(self.run.path(".state"), len(history), pack(state), about)
        self.kept, self.last = len(history), time.monotonic()

    def keep_now_and_then(self, state: training.State, history: list[dict[str, Any]]) -> None:
        if time.monotonic() - self.last > SECONDS_BETWEEN_SAVES:
            self.keep(state, history)


def fit(run: Run, state: training.State, history: list[dict[str, Any]], interrupt: console.Interrupt) -> training.State:
    """Trains all epochs, with a progress bar and a line for each epoch, and appends each epoch's record to `history`.

    Raises:
      KeyboardInterrupt: Ctrl-C or SIGTERM, after the state of the last whole epoch was saved.
    """
    keeper, began = Keeper(run, len(history)), time.monotonic()
    earlier = history[-1]["seconds"] if history else 0.0
    split = data.Split(*map(jnp.asarray, run.dataset.train))
    total = run.recipe.steps(len(split.labels))
    # With disable=None the bar appears on a terminal only: in a file the lines of the epochs are enough.
    with tqdm(total=total, initial=int(state.step), unit="step", disable=None, dynamic_ncols=True) as bar:
        while len(history) < run.recipe.epochs:
            number = len(history) + 1
            bar.set_description(f"epoch {number}/{run.recipe.epochs}")
            for progress in training.epoch(run.network, run.recipe, split, state):
                bar.set_postfix_str(f"loss {progress.loss:.4f}, accuracy {progress.accuracy:.2%}", refresh=False)
                bar.update(int(progress.state.step) - bar.n)
                if interrupt.wanted:
                    keeper.keep(state, history)  # the state after the last whole epoch
                    raise interrupt.wanted
            state = progress.state
            record = measure(run, classify(run, state, split)) | {
                "train_loss": progress.loss,
                "train_accuracy": progress.accuracy,
            }
            history.append({"epoch": number, "seconds": round(earlier + time.monotonic() - began, 3)} | record)
            console.note(epoch_line(history[-1], run.recipe.epochs))
            keeper.keep_now_and_then(state, history)
    return state


def classify(run: Run, state: training.State, train: data.Split) -> Classifier:
    """The network with the weights that the training has reached, as a classifier."""
    return Classifier(run.network.apply, training.result(run.network, state, train))


def measure(run: Run, classifier: Classifier) -> dict[str, float]:
    """Mean loss and accuracy on the split `test`."""
    logits, labels = predict(classifier, run.dataset.test.images), run.dataset.test.labels
    return {
        "test_loss": mean(run.recipe.loss(logits, labels)),
        "test_accuracy": mean(losses.accuracy(logits, labels)),
    }


def epoch_line(record: dict[str, Any], epochs: int) -> str:
    """The line that is printed after an epoch."""
    train, test = (
        f"{split} loss {record[f'{split}_loss']:.4f}, accuracy {record[f'{split}_accuracy']:.2%}"
        for split in ("train", "test")
    )
    return f"epoch {record['epoch']:3d}/{epochs}  {train}  |  {test}  |  {record['seconds']:.1f} s"


def finish(run: Run, state: training.State, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Measures the accuracies, saves the weights and the figure, and returns what --json prints."""
    classifier = classify(run, state, run.dataset.train)
    accuracies = {split: accuracy(classifier, getattr(run.dataset, split)) for split in ("train", "test", "val")}
    more = {"class_names": list(run.dataset.class_names), "accuracies": accuracies, "history": history}
    about = run.about() | more
    result = {"model": run.network.__name__, **about, "weights": None, "figure": None}
    if run.save:
        from mnist_jax import plot  # Matplotlib takes a while to import

        weights, figure = run.path(".safetensors"), run.path(".png")
        # The file has no times in it, so that two trainings with the same seed give the same file.
        untimed = [{k: v for k, v in record.items() if k != "seconds"} for record in history]
        trained = checkpoint.Checkpoint(run.network, classifier.params, about | {"history": untimed})
        aside = room(run)
        checkpoint.save(weights, trained, aside)
        if aside and figure.exists():
            figure.replace(aside.with_suffix(".png"))
        title = f"{run.name}: val accuracy {accuracies['val']:.2%}"
        drawn = console.draw(figure, lambda: plot.history(history, title))
        if run.path(".state").exists():
            files.remove(run.path(".state"))
        result |= {"weights": str(weights), "figure": str(drawn) if drawn else None}
        result |= {"earlier_weights": str(aside) if aside else None}
    return result


def room(run: Run) -> Path | None:
    """The name to which an earlier network under this one's name is to be moved; None where there is none, or it was
    trained with the same settings."""
    path, about = run.path(".safetensors"), run.about()
    if not path.exists():
        return None
    try:
        was = checkpoint.load(path).about
    except InputError:
        what = "which can't be read"
    else:
        different = console.different(about, was)
        if not different:
            return None
        what = f"with other {' and '.join(different)}"
    aside = files.free_name(path)
    console.note(f"note: the earlier {path}, {what}, will be kept as {aside}")
    return aside


def summary(result: dict[str, Any]) -> str:
    """The result as lines for a person."""
    accuracies = "  ".join(f"{split} {value:.2%}" for split, value in result["accuracies"].items())
    lines = [f"accuracy: {accuracies}"]
    if result["weights"]:
        lines.append(f"weights:  {result['weights']}")
    if result["figure"]:
        lines.append(f"history:  {result['figure']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    console.start()
    run = prepare(options)
    console.note(f"training {run.name}: {describe(run)}")
    # Signals are only noted from here on: a KeyboardInterrupt raised inside a library's call could get lost in it.
    with console.Interrupt() as interrupt:
        state, history = begin(run)
        try:
            state = fit(run, state, history, interrupt)
        except KeyboardInterrupt:
            kept = run.save and history
            console.note(
                f"stopped after epoch {len(history)}; " + ("--resume goes on from there" if kept else "nothing kept")
            )
            raise
        except UnsupportedOperation as error:  # raised by a certified defence when its first step is compiled
            raise InputError(
                f"{options.model} can't be trained by {options.defense}, which needs bounds of it: {first_line(error)}"
            ) from error
        result = finish(run, state, history)
    console.report(result, summary(result), as_json=options.json)


def describe(run: Run) -> str:
    """The sizes and the settings of the training, in words."""
    recipe = run.recipe
    return (
        f"{recipe.epochs} epochs of {len(run.dataset.train.labels)} images ({run.dataset.name}), "
        f"batches of {recipe.batch_size}, learning rate {recipe.learning_rate:g}, seed {run.seed}"
    )
