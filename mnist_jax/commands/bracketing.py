"""`certify --method bracket`: brackets of the distances from a split's images to their nearest adversarial images."""

import argparse
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mnist_jax import bracket, certify, data, device
from mnist_jax.certify.exact import Bracket
from mnist_jax.commands import certification, console, job
from mnist_jax.commands.job import Job
from mnist_jax.errors import InputError
from mnist_jax.storage.results import Record

METHOD = "bracket"
SECONDS = 60.0  # default of --seconds: the time limit of an image; chosen, not tuned
WITHIN = (0.01, 0.05)  # the summary counts brackets whose width, relative to the upper end, is at most each of these
ROUNDING = 1e-5  # relative slack: both ends are float32, and the lower one is rounded down


@dataclass(frozen=True, kw_only=True, eq=False)
class Bracketing(Job[Bracket]):
    """For each image, an upper end by an attack and a lower end by proofs (`mnist_jax.bracket`)."""

    noun, verb, kind, kept = "a bracketing", "bracketing", Bracket, "brackets"

    def on(self, places: np.ndarray) -> Bracket:
        images, labels = np.asarray(data.normalize(self.images[places])), self.labels[places]
        try:
            found = bracket(self.classifier, images, labels, norm=self.norm, seconds=self.given["seconds"])
        except certify.UnsupportedOperation as error:
            raise certification.unsupported(self.chosen.subject.path, error) from error
        return jax.tree.map(np.asarray, found)

    def at_once(self, count: int) -> int:
        return device.cores()  # an image may take minutes

    def status(self, result: Bracket) -> str:
        right, near = result.upper > 0, within(result, WITHIN[0])
        return f"{(right & near).sum()} within {WITHIN[0]:.0%}, {(right & ~near).sum()} open"

    def summarize(self, record: Record[Bracket]) -> dict[str, Any]:
        """The numbers of the summary: medians and shares are those of the images that are classified correctly."""
        result = record.result
        right = result.upper > 0
        medians = [float(np.median(ends[right])) if right.any() else None for ends in (result.lower, result.upper)]
        shares = [float(within(result, share)[right].mean()) if right.any() else None for share in WITHIN]
        return {
            "images": len(right),
            "misclassified": int((~right).sum()),
            "found": int(np.isfinite(result.upper[right]).sum()),
            "medians": dict(zip(("lower", "upper"), medians, strict=True)),
            "within": {f"{share:g}": of_all for share, of_all in zip(WITHIN, shares, strict=True)},
        }


def within(result: Bracket, share: float) -> np.ndarray:
    """Which brackets are at most `share` of their upper end wide, `[B]`; those without an upper end are not."""
    upper = result.upper.astype(float)
    return np.isfinite(upper) & (result.lower >= (1 - share - ROUNDING) * np.where(np.isfinite(upper), upper, 0))


def prepare(options: argparse.Namespace) -> Bracketing:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    if "radius" in options:
        raise InputError("--radius is not for --method bracket, which brackets each image's own distance")
    norm = certification.norm_of(options)
    chosen, given = job.choose(options), {"seconds": SECONDS} | job.given(options, ["seconds"])
    bracketing = Bracketing(chosen=chosen, method=METHOD, norm=norm, given=given)
    bracketing.announce()
    return bracketing


def carry_out(run: Bracketing, options: argparse.Namespace) -> dict[str, Any]:
    """Brackets the images, draws the figure, and returns the summary."""
    from mnist_jax import plot  # Matplotlib takes a while to import

    record, summary = job.carry_out(run, options)
    lower, upper = (np.asarray(ends) for ends in (record.result.lower, record.result.upper))
    figure = console.draw(run.figure, lambda: plot.brackets(lower, upper, run.norm))
    return summary | {"figure": str(figure) if figure else None}


def text(summary: dict[str, Any]) -> str:
    """The summary as lines for a person."""
    ends, right = summary["medians"], summary["images"] - summary["misclassified"]
    lower, upper = ("-" if end is None else format(end, ".4g") for end in ends.values())
    failed = right - summary["found"]
    near = ", ".join(f"{share:.2%} within {float(of):.0%}" for of, share in summary["within"].items() if right)
    drawn = [f"figure:     {summary['figure']}"] if summary["figure"] else []
    return "\n".join(
        [
            f"bracket:    lower end {lower}, upper end {upper}, medians of {right} images, of norm {summary['norm']:g}",
            f"apart:      {near or '-'}",
            f"others:     {summary['misclassified']} misclassified, {failed} with no adversarial image found",
            f"cost:       {summary['images_per_second']:g} images per second, {summary['seconds']:.4g} s",
            f"results:    {summary['results']}",
            *drawn,
        ]
    )
