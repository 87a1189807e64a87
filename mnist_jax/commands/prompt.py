"""The original project's three functions for the interactive prompt: one image, one figure.

python -i -m mnist_jax.attack --model MLP
"""

import argparse
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mnist_jax import data
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.fixed_radius.fixed_norm import fixed_norm
from mnist_jax.attack.minimal_norm.automatic import automatic
from mnist_jax.attack.minimal_norm.dichotomy import dichotomy
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console
from mnist_jax.commands.campaign import subject
from mnist_jax.errors import InputError
from mnist_jax.networks import IMAGE_SHAPE
from mnist_jax.storage import files

FIGURES = Path("docs/images/attack_results")
STEPS = 1000  # of one attack, at most

# success, image, r, adv: the arrays are [28, 28]
Answer = tuple[bool, np.ndarray, np.ndarray, np.ndarray]


class Prompt(NamedTuple):
    """A network and a split, and the attacks on one of its images."""

    name: str
    classifier: Classifier
    split: data.Split
    drawing: threading.Thread  # see `_draw_once`

    def attack(self, img_id: int, lr: float = 0.005, div: float = 0.2, p: float = 2) -> Answer:
        """Looks for an adversarial image whose perturbation has p-norm `div`, in 1000 steps of Adam at rate `lr`.

        Returns `(success, image, r, adv)`; where it failed, the last attempt.
        """
        run = partial(fixed_norm, radius=div, norm=p, steps=STEPS, learning_rate=lr)
        return self._answer("attack", img_id, p, run)

    def minimal_attack_dichotomy(
        self, img_id: int, p: float = 2, a: float = 0, b: float = 4, lr: float = 0.005
    ) -> Answer:
        """Looks for the smallest norm between `a` and `b` at which `attack` succeeds; see `dichotomy`."""
        run = partial(dichotomy, norm=p, low=a, high=b, steps=STEPS // 20, learning_rate=lr)
        return self._answer("dichotomy", img_id, p, run)

    def minimal_attack(self, img_id: int, p: float = 2, a: float = 0, b: float = 4, lr: float = 0.005) -> Answer:
        """Descends on confidence and norm at once; see `automatic`. Success is a distance between `a` and `b`."""

        def run(*arrays) -> AttackResult:
            result = automatic(*arrays, norm=p, steps=STEPS, learning_rate=lr)
            return result._replace(success=result.success & (result.distance >= a) & (result.distance <= b))

        return self._answer("automatic", img_id, p, run)

    def _answer(self, method: str, img_id: int, p: float, run: Callable[..., AttackResult]) -> Answer:
        if not 0 <= img_id < len(self.split.labels):
            raise InputError(f"img_id must be from 0 to {len(self.split.labels) - 1}, not {img_id}")
        from mnist_jax import plot  # see `_draw_once`

        images = np.asarray(data.normalize(self.split.images[img_id][None]))
        result = jax.tree.map(np.asarray, run(self.classifier, images, self.split.labels[img_id][None]))
        image, found = images[0], result.images[0]
        seen = describe(self.classifier, np.stack([image, found]))
        self.drawing.join()  # Matplotlib's settings are those of all threads
        path = FIGURES / f"{self.name}-{img_id}-{method}-l{p:g}.png"
        files.make_folder(FIGURES)
        files.write(path, plot.attack(image, found, before=seen[0], after=seen[1], norm=p))
        success = bool(result.success[0])
        length = np.linalg.norm((found - image).ravel(), p)
        verdict = f"{seen[0][0]} is taken for {seen[1][0]}" if success else f"no success, still taken for {seen[1][0]}"
        print(f"{verdict}; the perturbation has norm {length:.4g}; {path}")
        return success, image[..., 0], (found - image)[..., 0], found[..., 0]


def _draw_once() -> None:
    """Matplotlib takes a while to import and to draw for the first time: until the first attack is compiled."""
    from mnist_jax import plot

    nothing = np.zeros(IMAGE_SHAPE, np.float32)
    plot.attack(nothing, nothing, before=("0", 1.0), after=("0", 1.0), norm=2)


def describe(classifier: Classifier, images: np.ndarray) -> list[tuple[str, float]]:
    """The class that the classifier sees in each of a few images `[B, *shape]`, and its confidence in it."""
    probabilities = np.asarray(_probabilities(classifier, images))
    return [(str(row.argmax()), float(row.max())) for row in probabilities]


@jax.jit
def _probabilities(classifier: Classifier, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(classifier(images))


def prepare(options: argparse.Namespace) -> tuple[Callable[..., Answer], Callable[..., Answer], Callable[..., Answer]]:
    """The three functions for the network and the split that the options name. Raises `InputError`."""
    name = getattr(options, "split", "val")
    path, classifier, _, split = subject(options.model, name, options)
    prompt = Prompt(path.stem, classifier, split, threading.Thread(target=_draw_once, daemon=True))
    prompt.drawing.start()
    console.note(f"{path}, images of {name}. Try attack(0, div=2), minimal_attack_dichotomy(0) or minimal_attack(0).")
    return prompt.attack, prompt.minimal_attack_dichotomy, prompt.minimal_attack
