"""The original project's three attack functions at Python's prompt: each attacks one image and draws a figure.

`python -i -m mnist_jax.attack --model MLP` opens it.
"""

import argparse
import math
import operator
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
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
from mnist_jax.commands.job import subject
from mnist_jax.errors import InputError
from mnist_jax.geometry import exact_norm
from mnist_jax.storage import files

STEPS = 1000  # gradient steps of an attack; the original project's
MOST = 1e6  # largest norm or learning rate that is accepted; larger ones have no use and could overflow float32
CLOSE = 1e-5  # relative slack when a norm is compared with a bound, for the rounding of float32 images


class Answer(NamedTuple):
    """The result of an attack on one image; after a failure, its last attempt.

    Attributes:
      success: whether the image found is misclassified, at an allowed distance.
      image, r, adv: the image, the perturbation and their sum, `[H, W]`, or `[H, W, 3]` in colour.
    """

    success: bool
    image: np.ndarray
    r: np.ndarray
    adv: np.ndarray

    def __repr__(self) -> str:  # short, as the prompt would print thousands of numbers otherwise
        return f"(success={self.success}, and image, r, adv: arrays {list(self.image.shape)})"


class Prompt(NamedTuple):
    """A network and a split, with the functions that attack one of its images."""

    name: str
    classifier: Classifier
    class_names: tuple[str, ...]
    split: data.Split
    output: Path  # folder of the figures
    drawing: threading.Thread  # runs `_draw_once`

    def attack(self, img_id: int, lr: float = 0.005, div: float = 0.2, p: float = 2) -> Answer:
        """Looks for an adversarial image whose perturbation has p-norm `div`, in 1000 steps of Adam at rate `lr`.

        Returns `(success, image, r, adv)`; where it failed, the last attempt.
        """
        p, div = _number("p", p), _finite("div", _number("div", div))
        run = partial(fixed_norm, radius=div, norm=p, steps=STEPS, learning_rate=_rate(lr))
        return self._answer("attack", img_id, p, run)

    def minimal_attack_dichotomy(
        self, img_id: int, p: float = 2, a: float = 0, b: float = 4, lr: float = 0.005
    ) -> Answer:
        """Looks for the smallest norm between `a` and `b` at which `attack` succeeds, by bisection; see `dichotomy`."""
        p, a, b, lr = _search(p, a, b, lr)
        run = partial(dichotomy, norm=p, low=a, high=b, steps=STEPS // 20, learning_rate=lr)
        return self._answer("dichotomy", img_id, p, run, a, b)

    def minimal_attack(self, img_id: int, p: float = 2, a: float = 0, b: float = 4, lr: float = 0.005) -> Answer:
        """Minimizes the confidence in the label and the norm together; see `automatic`.

        It succeeds if the norm of the perturbation found is between `a` and `b`.
        """
        p, a, b, lr = _search(p, a, b, lr)
        run = partial(automatic, norm=p, steps=STEPS, learning_rate=lr)
        return self._answer("automatic", img_id, p, run, a, b)

    def _answer(
        self,
        method: str,
        img_id: int,
        p: float,
        run: Callable[..., AttackResult],
        a: float = 0,
        b: float = math.inf,
    ) -> Answer:
        """Runs an attack on one image, draws the figure, prints a line, and returns the answer.

        It succeeds if the perturbation fools the network and its norm is from `a` to `b`.
        """
        number, count = _index(img_id), len(self.split.labels)
        if number is None or not 0 <= number < count:
            raise InputError(f"img_id must be from 0 to {count - 1}, a whole number, not {img_id!r}")
        from mnist_jax import plot  # see `_draw_once`

        images = np.asarray(data.normalize(self.split.images[number][None]))
        label = self.split.labels[number]
        try:
            result = jax.tree.map(np.asarray, run(self.classifier, images, label[None]))
        except ValueError as error:  # the attack does not accept the norm or another argument
            raise InputError(f"{method}: {error}") from error
        image, found = images[0], result.images[0]
        (before, sure_before), (after, sure_after) = describe(
            self.classifier, np.stack([image, found]), self.class_names
        )
        length = float(exact_norm(found[None].astype(float) - image[None], p)[0])
        fools = bool(result.success[0])
        success = fools and a * (1 - CLOSE) <= length <= b * (1 + CLOSE)
        if fools and length == 0:
            verdict = f"{self.class_names[label]} is taken for {before} as it is"
        else:
            verdict = f"{before} is taken for {after}" if fools else f"no success, still taken for {after}"
        if fools and not success:
            verdict = f"no success between {a:g} and {b:g}: {verdict}"
        self.drawing.join()  # Matplotlib must not draw in two threads at the same time
        files.make_folder(self.output)
        path = console.draw(
            self.output / f"{self.name}-{number}-{method}-l{p:g}.png",
            lambda: plot.attack(image, found, before=(before, sure_before), after=(after, sure_after), norm=p),
        )
        print(f"{verdict}; the perturbation has norm {length:.4g}" + (f"; {path}" if path else ""))
        image, r, found = (a[..., 0] if a.shape[-1] == 1 else a for a in (image, found - image, found))
        return Answer(success, image, r, found)


def _index(value: object) -> int | None:
    """`value` as an int if it is a whole number of Python or NumPy (booleans are not), else None."""
    try:
        return None if isinstance(value, bool | np.bool_) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _number(name: str, value: object) -> float:
    """`value`, a number or its text such as "inf", as a float. Raises `InputError`, which calls it `name`."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or isinstance(value, bool):
        raise InputError(f"{name} must be a number, not {value!r}")
    return number


def _finite(name: str, value: float) -> float:
    if not 0 <= value <= MOST:
        raise InputError(f"{name} must be at least 0 and at most {MOST:.0f}, not {value:g}")
    return value


def _search(p: float, a: float, b: float, lr: float) -> tuple[float, float, float, float]:
    """Checks the arguments of a search for a norm between `a` and `b`. Raises `InputError`."""
    p, a, b = _number("p", p), _finite("a", _number("a", a)), _number("b", b)
    if a > b:
        raise InputError(f"a must be at most b, not {a:g} and {b:g}")
    return p, a, b, _rate(lr)


def _rate(value: object) -> float:
    if not _number("lr", value) > 0:
        raise InputError(f"lr must be above 0, not {value!r}")
    return _finite("lr", _number("lr", value))


def _draw_once(shape: tuple[int, ...]) -> None:
    """Imports Matplotlib and draws an empty figure, both slow the first time, while the user types or JAX compiles."""
    from mnist_jax import plot

    nothing = np.zeros(shape, np.float32)
    plot.attack(nothing, nothing, before=("0", 1.0), after=("0", 1.0), norm=2)


def describe(classifier: Classifier, images: np.ndarray, class_names: tuple[str, ...]) -> list[tuple[str, float]]:
    """The name of the predicted class of each image `[B, *shape]`, and the confidence in it (softmax)."""
    probabilities = np.asarray(_probabilities(classifier, images))
    return [(class_names[row.argmax()], float(row.max())) for row in probabilities]


@jax.jit
def _probabilities(classifier: Classifier, images: jax.Array) -> jax.Array:
    return jax.nn.softmax(classifier(images))


def prepare(options: argparse.Namespace) -> tuple[Callable[..., Answer], Callable[..., Answer], Callable[..., Answer]]:
    """Loads the network and the split that the options name; gives the three functions. Raises `InputError`."""
    name = getattr(options, "split", "val")
    about = subject(options.model, name, options)
    shape = about.split.images.shape[1:]
    drawing = threading.Thread(target=_draw_once, args=(shape,), daemon=True)
    prompt = Prompt(about.path.stem, about.classifier, about.class_names, about.split, options.output, drawing)
    prompt.drawing.start()
    sys.excepthook = _one_line
    console.note(
        f"{about.path}, images of {name}. Try attack(0, div=2), minimal_attack_dichotomy(0) or minimal_attack(0)."
    )
    return prompt.attack, prompt.minimal_attack_dichotomy, prompt.minimal_attack


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The prompt's `sys.excepthook`: prints an `InputError` as one line, other exceptions with their traceback."""
    if isinstance(error, InputError):
        console.complain(error)
    else:
        sys.__excepthook__(kind, error, trace)
