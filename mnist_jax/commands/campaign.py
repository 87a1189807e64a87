"""A campaign: an attack on images of a split, with its options, progress line and summary (`attack`, `--robust`)."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mnist_jax import data
from mnist_jax.attack import methods
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.commands import console, job
from mnist_jax.commands.job import Job, carry_out
from mnist_jax.errors import InputError, unknown
from mnist_jax.storage.results import Record

__all__ = ["Campaign", "add_options", "carry_out", "cost", "prepare"]


def add_options(parser: console.Parser, title: str) -> None:
    """Adds the options of every campaign. Options that are not given are absent from the parsed namespace."""
    norms = "a number from 1, inf, or 0 (default: the attack's)"
    group = job.add_options(parser, title, verb="attack", norms=norms)
    group.add_argument("--seed", type=console.number(int, 0, 2**32 - 1), help="seed of the attack's random numbers")


@dataclass(frozen=True, kw_only=True, eq=False)
class Campaign(Job[AttackResult]):
    """An attack on some images of a split."""

    noun, verb, kind, kept = "an attack", "attacking", AttackResult, "attack results"

    attack: Callable[..., AttackResult]
    key: jax.Array | None  # folded with an image's index: its random numbers don't depend on the other images

    def on(self, places: np.ndarray) -> AttackResult:
        more: dict[str, Any] = {} if self.targets is None else {"targets": self.targets[places]}
        if self.key is not None:
            more["key"] = jax.vmap(jax.random.fold_in, (None, 0))(self.key, self.indices[places])
        images = np.asarray(data.normalize(self.images[places]))
        result = self.attack(self.classifier, images, self.labels[places], norm=self.norm, **more)
        return jax.tree.map(np.asarray, result)

    def status(self, result: AttackResult) -> str:
        return f"median {_median(result):.4g}"

    def summarize(self, record: Record[AttackResult]) -> dict[str, Any]:
        """The numbers of the summary. Success, distances and costs are of the images that were not adversarial already
        (those that an attack does not return unchanged, at distance 0)."""
        result = record.result
        attacked = result.distance > 0
        reached = ~attacked & (False if self.targets is None else record.labels == self.targets)
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
        }


def prepare(options: argparse.Namespace, method: str) -> Campaign:
    """Checks the options, loads network and images. Raises `InputError` before anything is written."""
    given = job.given(options, methods.OPTIONS)
    attack, norm = methods.prepare(method, getattr(options, "norm", None), given)
    chosen = job.choose(options)
    if "targets" in given:
        given["targets"] = [_class(name, chosen.subject.class_names) for name in given["targets"]]
    campaign = Campaign(
        chosen=chosen,
        method=method,
        norm=norm,
        given=given,
        targets=_targets(given.get("targets"), len(chosen.indices)),
        attack=attack,
        key=jax.random.key(given["seed"]) if "seed" in given else None,
    )
    campaign.announce()
    return campaign


def _class(name: str, class_names: tuple[str, ...]) -> int:
    """The label of a class given by its name, or by its number where no class has that name."""
    if name in class_names:
        return class_names.index(name)
    if not name.removeprefix("-").isdecimal():
        raise unknown("class", name, class_names)
    if not 0 <= int(name) < len(class_names):
        raise InputError(f"--targets {name} is not a class: they go from 0 to {len(class_names) - 1}")
    return int(name)


def _targets(targets: list[int] | None, count: int) -> np.ndarray | None:
    if targets is None:
        return None
    if len(targets) not in (1, count):
        raise InputError(f"--targets must be one class, or one for each of the {count} images")
    return np.broadcast_to(np.array(targets), (count,)).copy()


def _median(result: AttackResult) -> float:
    """The median distance over the images that were not adversarial already; 0 where there are none."""
    attacked = result.distance[result.distance > 0]
    return float(np.median(attacked.astype(float))) if len(attacked) else 0.0


def cost(summary: dict[str, Any]) -> str:
    """The means of gradients and forward passes per image, and the speed, in words."""
    return (
        f"{summary['gradients']:.0f} gradients and {summary['forwards']:.0f} forwards an image, "
        f"{summary['images_per_second']:g} images per second"
    )
