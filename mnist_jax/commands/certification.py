"""`certify` with a deterministic method: certificates of a split's images at a radius, or at each image's largest."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax import certify, data, device
from mnist_jax.certify.driver import NORMS
from mnist_jax.commands import job
from mnist_jax.commands.job import Job
from mnist_jax.errors import InputError, first_line
from mnist_jax.geometry import check_norm
from mnist_jax.storage.results import Certificates, Record

METHODS: dict[str, Callable[..., certify.CertifyResult]] = {
    name: function
    for name, function in inspect.getmembers(certify, inspect.isfunction)
    if "radius" in inspect.signature(function).parameters
}
DEFAULT = "crown"
DIVIDING = "branch_and_bound"  # the only one of METHODS that takes --seconds

EACH = 8  # images per core between two checks for Ctrl-C: enough to keep every core busy; chosen, not tuned


@dataclass(frozen=True, kw_only=True, eq=False)
class Certification(Job[Certificates]):
    """Certificates at the radius given, or without one at the largest certified radius of each image."""

    noun, verb, kind, kept = "a certification", "certifying", Certificates, "certificates"

    def on(self, places: np.ndarray) -> Certificates:
        images, labels = np.asarray(data.normalize(self.images[places])), self.labels[places]
        method = partial(METHODS[self.method], **{k: v for k, v in self.given.items() if k == "seconds"})
        try:
            if "radius" in self.given:
                radius = np.full(len(places), self.given["radius"])
            else:
                radius = certify.largest_radius(self.classifier, images, labels, norm=self.norm, method=method)
            result = method(self.classifier, images, labels, radius, norm=self.norm)
        except certify.UnsupportedOperation as error:
            raise unsupported(self.chosen.subject.path, error) from error
        certified, fooled, margin, shown = map(np.asarray, result)
        if "radius" not in self.given:  # the second proof can fail where a device rounds differently each time
            radius = np.where(certified, radius, 0)
        return Certificates(radius, certified, fooled, margin, shown)

    def at_once(self, count: int) -> int:
        if self.method == DIVIDING:
            return device.cores()  # an image may take minutes
        return EACH * device.cores()

    def status(self, result: Certificates) -> str:
        return f"{result.certified.sum()} certified, {_open(result).sum()} open"

    def summarize(self, record: Record[Certificates]) -> dict[str, Any]:
        """The numbers of the summary; without a radius, also statistics of the certified images' largest radii."""
        result = record.result
        numbers = {
            "images": len(result.certified),
            "certified": int(result.certified.sum()),
            "fooled": int(result.fooled.sum()),
            "open": int(_open(result).sum()),
            "certified_accuracy": float(result.certified.mean()),
        }
        if "radius" in self.given:
            return numbers
        radii = result.radius[result.certified].astype(float)
        low, median, high = np.quantile(radii, [0.25, 0.5, 0.75]).tolist() if len(radii) else [None] * 3
        return numbers | {
            "median": median,
            "mean": float(radii.mean()) if len(radii) else None,
            "quartiles": [low, high],
        }


def _open(result: Certificates) -> np.ndarray:
    """Which images are neither certified nor fooled, `[B]`."""
    return ~(result.certified | result.fooled)


def unsupported(path: Path, error: certify.UnsupportedOperation) -> InputError:
    """The error for the network at `path`, which has an operation that no bound is known for."""
    return InputError(f"{path} can't be certified: {first_line(error)}")


def prover(path: Path, record: Record[Certificates]) -> Callable[..., certify.CertifyResult]:
    """The certification method that made the record at `path`.

    Raises:
      InputError: the method or the norm is unknown; calling the method raises it for a network that has no bounds.
    """
    name, norm = record.about["method"], record.about["norm"]
    if name not in METHODS or norm not in NORMS:
        raise InputError(f"{path} is of {name} in norm {norm:g}, which is unknown here; a newer mnist_jax may know it")

    def prove(*arguments: Any, **how: Any) -> certify.CertifyResult:
        try:
            return METHODS[name](*arguments, **how)
        except certify.UnsupportedOperation as error:
            raise unsupported(path, error) from error

    return prove


def norm_of(options: argparse.Namespace) -> float:
    """The norm p that the options name, by default inf. Raises `InputError` where certificates don't support it."""
    try:
        return check_norm(getattr(options, "norm", np.inf), NORMS)
    except ValueError as error:
        raise InputError(f"--norm {options.norm:g} does not apply to {options.method} ({error})") from error


def prepare(options: argparse.Namespace) -> Certification:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    norm = norm_of(options)
    if options.method == DIVIDING and "radius" not in options:
        raise InputError(f"--method {DIVIDING} needs a --radius; --method bracket brackets each image's own distance")
    chosen, given = job.choose(options), job.given(options, ["radius", "seconds"])
    certification = Certification(chosen=chosen, method=options.method, norm=norm, given=given)
    certification.announce()
    return certification
