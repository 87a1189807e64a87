"""Certify the images of a split, at a radius or each at its largest certified radius, and keep the certificates."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.commands import bracketing, certification, console, job, smoothing
from mnist_jax.commands.certification import DEFAULT, DIVIDING, Certification
from mnist_jax.errors import InputError, unknown
from mnist_jax.storage import checkpoint
from mnist_jax.storage.results import Certificates, Record, check_about, load

METHODS = (*certification.METHODS, bracketing.METHOD, smoothing.METHOD)
TIMED = (DIVIDING, bracketing.METHOD)  # the methods that take --seconds

CLOSE = 1e-5  # relative slack when distances and radii are compared: both are float32


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = console.Parser("certify", __doc__)
    parser.add_argument("--model", required=True, help=job.MODELS)
    parser.add_argument("--method", default=DEFAULT, help=f"one of {', '.join(METHODS)}")
    parser.add_argument("--output", type=Path, default=checkpoint.RUNS, help="folder for the results")
    results = "without --radius: results of an attack such as nearest on the same images, for the figure"
    parser.add_argument("--attack-results", type=Path, metavar="FILE", help=results)
    parser.add_data_options(dataset=None)
    job.add_options(parser, "the certificates", verb="certify", norms="1, 2 or inf (default: inf)")
    seconds = f"time limit of an image, with --method {' or '.join(TIMED)} (default: 60)"
    parser.add_argument("--seconds", type=console.number(float, 0, above=True), default=argparse.SUPPRESS, help=seconds)
    smoothing.add_options(parser)
    options = parser.parse_args(argv)
    if options.method not in METHODS:
        raise unknown("method", options.method, METHODS)
    if options.method not in TIMED and "seconds" in options:
        parser.error(f"argument --seconds: only with --method {' or '.join(TIMED)}")
    if options.method == bracketing.METHOD and options.attack_results:
        parser.error("argument --attack-results: not allowed with --method bracket, which attacks the images itself")
    if options.method == smoothing.METHOD and options.attack_results:
        parser.error("argument --attack-results: not allowed with --method smoothing, which is of another classifier")
    if options.method != smoothing.METHOD and (extra := [o for o in smoothing.OPTIONS if o in options]):
        parser.error(f"argument --{extra[0]}: only with --method smoothing")
    if options.attack_results and "radius" in options:
        parser.error("argument --attack-results: not allowed with argument --radius")
    return options


def distances(path: Path, run: Certification) -> np.ndarray:
    """The distances `[B]` that an attack found for the images of the run, from the file of its results.

    Raises:
      InputError: the attack was on another network, split or norm, or had targets or a radius, or lacks an image.
    """
    record = load(path)
    if not isinstance(record.result, AttackResult):
        raise InputError(f"{path} is not a file of attack results")
    check_about(path, record)
    if differ := console.different({key: run.about[key] for key in ("norm", "weights", "split", "data")}, record.about):
        raise InputError(f"{path} is of an attack with other {' and '.join(differ)} than what is certified here")
    if limits := [option for option in ("radius", "targets") if option in record.about["options"]]:
        raise InputError(f"{path} is of an attack with {limits[0]}; attack once more without it, by nearest")
    row = {index: place for place, index in enumerate(record.indices.tolist())}
    if missing := [index for index in run.indices.tolist() if index not in row]:
        raise InputError(f"{path} has no result for image {missing[0]}; attack all images that are certified here")
    return np.asarray(record.result.distance)[[row[index] for index in run.indices.tolist()]]


def contradictions(certificates: Certificates, found: np.ndarray) -> int:
    """Counts the images that have an adversarial image within their certified radius, and warns where there are any."""
    count = int((certificates.certified & (found < certificates.radius * (1 - CLOSE))).sum())
    if count:
        console.note(f"warning: {count} images have an adversarial image within their certified radius")
    return count


def draw(run: Certification, record: Record[Certificates], found: np.ndarray | None) -> Path | None:
    """Draws certified accuracy by radius, and the attack's accuracy where `found` has its distances.

    Returns the figure's path; None where one radius was given for all images, or the figure can't be written.
    """
    if "radius" in run.given:
        return None
    from mnist_jax import plot  # Matplotlib takes a while to import

    return console.draw(run.figure, lambda: plot.certified_by_radius(record.result.radius, run.norm, found))


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a person."""

    def figure(value: float | None) -> str:
        return "-" if value is None else format(value, ".4g")

    wrong, radius, drawn = "misclassified", [], []
    if "radius" in summary["options"]:
        wrong, at = "fooled", f"at radius {summary['options']['radius']:g} of norm {summary['norm']:g}"
    else:
        at = "each at a radius of its own"
        median, mean, low, high = map(figure, (summary["median"], summary["mean"], *summary["quartiles"]))
        radius = [f"radius:     median {median}, mean {mean}, quartiles {low} and {high}, of norm {summary['norm']:g}"]
    if summary["figure"]:
        drawn = [f"figure:     {summary['figure']}"]
    return "\n".join(
        [
            f"certified:  {summary['certified_accuracy']:.2%} of {summary['images']} images, {at}",
            f"others:     {summary['fooled']} {wrong}, {summary['open']} open",
            *radius,
            f"cost:       {summary['images_per_second']:g} images per second",
            f"results:    {summary['results']}",
            *drawn,
        ]
    )


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    console.start()
    if options.method == smoothing.METHOD:
        _, summary = job.carry_out(smoothing.prepare(options), options)
        console.report(summary, smoothing.text(summary), as_json=options.json)
        return
    if options.method == bracketing.METHOD:
        summary = bracketing.carry_out(bracketing.prepare(options), options)
        console.report(summary, bracketing.text(summary), as_json=options.json)
        return
    run = certification.prepare(options)
    found = distances(options.attack_results, run) if options.attack_results else None
    record, summary = job.carry_out(run, options)
    if found is not None:
        summary |= {"attack_results": str(options.attack_results), "contradicted": contradictions(record.result, found)}
    drawn = draw(run, record, found)
    summary |= {"figure": str(drawn) if drawn else None}
    console.report(summary, text(summary), as_json=options.json)
