"""Attack the images of a split, and keep the adversarial images found."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax import startup
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.methods import DEFAULT, METHODS
from mnist_jax.commands import campaign, console, job, prompt
from mnist_jax.commands.campaign import Campaign
from mnist_jax.errors import InputError
from mnist_jax.evaluation import predict
from mnist_jax.storage import checkpoint
from mnist_jax.storage.results import Record
from mnist_jax.unstable import compile_quickly

SHOWN = 24  # images in the figure
FEW = 4  # images, see `_few`


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = console.Parser("attack", __doc__)
    parser.add_argument("--model", required=True, help=job.MODELS)
    parser.add_argument("--method", default=DEFAULT, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder for the results")
    parser.add_data_options(dataset=None)
    campaign.add_options(parser, "the attack")
    more = parser.add_argument_group("options that only some methods have", argument_default=argparse.SUPPRESS)
    own = "(default: the method's)"
    more.add_argument(
        "--targets", type=job.parts, help="target class, or one for each image, by name or number, as in 3,5"
    )
    more.add_argument("--effort", type=_effort, help=f"fast, standard, thorough, or a number of gradients {own}")
    more.add_argument("--steps", type=console.number(int, 1, console.MANY), help=f"gradients of one run {own}")
    more.add_argument("--restarts", type=console.number(int, 1, console.MANY), help=f"largest number of runs {own}")
    queries = f"largest number of evaluations of the network for an image {own}"
    more.add_argument("--queries", type=console.number(int, 1, console.MANY), help=queries)
    rate = console.number(float, 0, 10, above=True)
    more.add_argument("--learning-rate", type=rate, help=f"step size, in the method's own units {own}")
    return parser.parse_args(argv)


def _effort(text: str) -> int | str:
    """The option's type: a number of gradients, or a name, which the attack checks."""
    try:
        int(text)
    except ValueError:
        return text
    return console.number(int, 1, console.MANY)(text)


def draw(run: Campaign, record: Record[AttackResult]) -> Path | None:
    """Draws the first images with a success (without any, the first images), and returns the figure's path."""
    from mnist_jax import plot  # Matplotlib takes a while to import

    worth = np.flatnonzero((record.result.distance > 0) & record.result.success)
    first = (worth if len(worth) else np.arange(len(record.indices)))[:SHOWN]
    originals = run.images[first] / np.float32(255)
    found, distances = (np.asarray(a)[first] for a in (record.result.images, record.result.distance))
    named = np.array(run.chosen.subject.class_names)
    predictions = named[predict(run.classifier, found, chunk=len(found)).argmax(1)]
    labels = named[record.labels[first]]
    return console.draw(run.figure, lambda: plot.attacks(originals, found, labels, predictions, distances, run.norm))


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a person."""

    def figure(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    low, high = summary["quartiles"]
    easy = [f"{summary['misclassified']} more were misclassified from the start"]
    if summary["already_of_target_class"]:
        easy.append(f"{summary['already_of_target_class']} were already of the target class")
    attacked = summary["images"] - summary["misclassified"] - summary["already_of_target_class"]
    return "\n".join(
        [
            f"success:   {figure(summary['success'], '.2%')} of {attacked} images ({', '.join(easy)})",
            f"distance:  median {figure(summary['median'])}, mean {figure(summary['mean'])}, "
            f"quartiles {figure(low)} and {figure(high)}",
            f"cost:      {campaign.cost(summary)}",
            f"results:   {summary['results']}",
            *([f"figure:    {summary['figure']}"] if summary["figure"] else []),
        ]
    )


def _few(options: argparse.Namespace) -> bool:
    """Whether so few images are attacked that compiling takes longer than all else."""
    images = len(options.ids) if "ids" in options else getattr(options, "count", FEW + 1)
    return images <= FEW


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if _few(options):
        compile_quickly()
    console.start()
    run = campaign.prepare(options, options.method)
    record, summary = campaign.carry_out(run, options)
    drawn = draw(run, record)
    summary |= {"figure": str(drawn) if drawn else None}
    console.report(summary, text(summary), as_json=options.json)


def open_prompt() -> tuple[Callable[..., prompt.Answer], ...]:
    """The functions that the prompt of `python -i -m mnist_jax.attack` offers; bad input ends the process instead."""
    startup.over()
    try:
        options = parse(None)
        compile_quickly()
        console.start()
        return prompt.prepare(options)
    except InputError as error:
        console.complain(error)
        os._exit(console.BAD_INPUT)  # an ordinary exit would open the prompt
