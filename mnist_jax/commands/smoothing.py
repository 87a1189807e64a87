"""`certify --method smoothing`: certificates of the smoothed classifier for images of a split."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax import certify, data
from mnist_jax.certify.smoothing import LARGEST_SIGMA, LEAST_SIGMA
from mnist_jax.commands import console, job
from mnist_jax.commands.job import Job
from mnist_jax.errors import InputError
from mnist_jax.storage.results import Record, Smoothed

METHOD = "smoothing"
OPTIONS = ("sigma", "samples", "failure", "seed")


def add_options(parser: console.Parser) -> None:
    """Adds the options of --method smoothing. Options that are not given are absent from the parsed namespace."""
    group = parser.add_argument_group("with --method smoothing", argument_default=argparse.SUPPRESS)
    sigma = "standard deviation of the noise"
    group.add_argument("--sigma", type=console.number(float, LEAST_SIGMA, LARGEST_SIGMA), help=sigma)
    samples = "noisy copies of each image (default: 10000); 100000 are usual, and allow larger radii"
    group.add_argument("--samples", type=console.number(int, 1, console.MANY), help=samples)
    failure = "largest probability, for each image, that its certificate is wrong (default: 0.001)"
    group.add_argument("--failure", type=console.number(float, 0, 0.5, above=True), help=failure)
    group.add_argument("--seed", type=console.number(int, 0, 2**32 - 1), help="seed of the noise (default: 0)")


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothing(Job[Smoothed]):
    """Certificates of the smoothed classifier, in the 2-norm."""

    noun, verb, kind, kept = "a certification", "smoothing", Smoothed, "certificates by smoothing"

    def on(self, places: np.ndarray) -> Smoothed:
        images, key = np.asarray(data.normalize(self.images[places])), jax.random.key(self.given["seed"])
        # The key depends on the image's index in the split alone, so its noise does not depend on the other images.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, self.indices[places])
        how = {name: self.given[name] for name in ("sigma", "samples", "failure")}
        return Smoothed(*certify.smoothing(self.classifier, images, key=keys, **how))

    def at_once(self, count: int) -> int:
        return 1

    def status(self, result: Smoothed) -> str:
        return f"{(result.radius > 0).sum()} certified, {result.abstained.sum()} abstained"

    @property
    def path(self) -> Path:
        stem = f"{self.chosen.subject.path.stem}-{METHOD}-l2-sigma{self.given['sigma']:g}-{self.chosen.split}"
        return self.chosen.folder / f"{stem}.npz"

    def summarize(self, record: Record[Smoothed]) -> dict[str, Any]:
        """The numbers of the summary. An image is certified at r where its class is right and its radius exceeds r."""
        result, right = record.result, record.result.classes == record.labels
        radii = np.where(right, result.radius, 0.0)
        numbers = {
            "images": len(radii),
            "accuracy": float(right.mean()),
            "abstained": int(result.abstained.sum()),
            "certified_accuracies": {f"{r:g}": float((radii > r).mean()) for r in (0.5, 1.0, 1.5, 2.0)},
            "median": float(np.median(radii[right])) if right.any() else None,
        }
        return numbers


def prepare(options: argparse.Namespace) -> Smoothing:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    if "sigma" not in options:
        raise InputError("--method smoothing needs --sigma, the standard deviation of the noise in the training")
    if "radius" in options:
        raise InputError("--radius is not for --method smoothing, which certifies a radius for each image")
    if getattr(options, "norm", 2) != 2:
        raise InputError(f"--norm {options.norm:g} does not apply to smoothing, which certifies in norm 2")
    chosen = job.choose(options)
    given = {"samples": 10_000, "failure": 0.001, "seed": 0} | job.given(options, OPTIONS)
    smoothing = Smoothing(chosen=chosen, method=METHOD, norm=2.0, given=given)
    smoothing.announce()
    return smoothing


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a person."""
    median = "-" if summary["median"] is None else f"{summary['median']:.4g}"
    certified = ", ".join(f"{value:.2%} at {radius}" for radius, value in summary["certified_accuracies"].items())
    options = summary["options"]
    return "\n".join(
        [
            f"certified:  {certified}, of {summary['images']} images, in norm 2, of the smoothed classifier",
            f"accuracy:   {summary['accuracy']:.2%} of the smoothed classifier, {summary['abstained']} abstained",
            f"radius:     median {median} of the images classified correctly",
            f"how:        sigma {options['sigma']:g}, {options['samples']} samples an image, "
            f"each wrong with probability {options['failure']:g} at most",
            f"cost:       {summary['images_per_second']:g} images per second",
            f"results:    {summary['results']}",
        ]
    )
