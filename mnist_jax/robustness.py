"""How much of a network's accuracy stands at a radius, by the strongest attacks here together, and whether to trust it.

An accuracy under attack is an upper bound of the robust accuracy; certificates are a lower one, and certified images
need not be attacked.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import losses
from mnist_jax.attack.engine.starts import fixed
from mnist_jax.attack.fixed_radius.auto_attack import auto_attack
from mnist_jax.attack.fixed_radius.pgd import pgd
from mnist_jax.attack.fixed_radius.square import square
from mnist_jax.attack.minimal_norm.nearest import nearest
from mnist_jax.classifier import Classifier
from mnist_jax.evaluation import predict
from mnist_jax.geometry import INF, exact_norm

CLOSE = 1e-5  # relative: perturbations are single precision
PGD_STEPS = 100
# Of the images, by how many more an attack may break than PGD before gradients count as masked. On networks that mask
# nothing the attacks differ by as much: some follow gradients for longer than PGD does.
MASKED = 0.05

Attempt = Callable[[np.ndarray, np.ndarray], ArrayLike]  # images and labels to candidates for adversarial images


class Robustness(NamedTuple):
    """What attacks leave of some images.

    Attributes:
      clean: `[B]`, whether the image is classified correctly as it is.
      robust: `[B]`, whether it is, and no attack broke it.
      broken: by the name of each attack, `[B]`, whether it broke the image, which those before it had not.
    """

    clean: np.ndarray
    robust: np.ndarray
    broken: dict[str, np.ndarray]


def attempts(
    classifier: Classifier,
    radius: float,
    *,
    norm: float = INF,
    surrogate: Classifier | None = None,
    effort: str | int = "standard",
    key: jax.Array | None = None,
) -> dict[str, Attempt]:
    """The attacks by their names, the cheapest first, for `robustness`.

    Args:
      classifier: to be attacked.
      radius: p-norm of the perturbations, at most.
      norm: p, 1, 2 or inf.
      surrogate: another network, whose adversarial images `transfer` tries on this one; without it there is no such
        attack.
      effort: of `nearest`.
      key: for what is random.
    """
    key = fixed(key)
    found: dict[str, Attempt] = {}
    if surrogate is not None:
        found["transfer"] = lambda x, y: pgd(surrogate, x, y, radius, norm=norm, steps=PGD_STEPS, key=key).images
    found["pgd"] = lambda x, y: pgd(classifier, x, y, radius, norm=norm, steps=PGD_STEPS, key=key).images
    found["square"] = lambda x, y: square(classifier, x, y, radius, norm=norm, key=key).images
    found["auto_attack"] = lambda x, y: auto_attack(classifier, x, y, radius, norm=norm, key=key).images
    found["nearest"] = lambda x, y: nearest(classifier, x, y, norm=norm, effort=effort, key=key).images
    return found


def robustness(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    radius: float,
    attacks: Mapping[str, Attempt],
    *,
    norm: float = INF,
    certified: np.ndarray | None = None,
) -> Robustness:
    """Attacks images one attack after another, each on those that the ones before it left.

    Args:
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`.
      radius: p-norm of the perturbations, at most; an attack that goes farther, but for rounding, has broken nothing.
      attacks: `attempts`, or some of them.
      certified: `[B]`, images that no attack can break, which are not attacked; None for none.
    """
    clean = _right(classifier, images, labels)
    robust, broken = clean.copy(), {}
    proved = np.zeros(len(images), bool) if certified is None else np.asarray(certified, bool)
    for name, attempt in attacks.items():
        rows = np.flatnonzero(robust & ~proved)
        broken[name] = np.zeros(len(images), bool)
        if len(rows):
            broken[name][rows] = breaks(classifier, images[rows], labels[rows], radius, attempt, norm=norm)
        robust &= ~broken[name]
    return Robustness(clean, robust, broken)


def breaks(
    classifier: Classifier, images: np.ndarray, labels: np.ndarray, radius: float, attempt: Attempt, *, norm: float
) -> np.ndarray:
    """Whether an attack's images are misclassified, within the radius but for rounding, and in bounds `[B]`."""
    found = np.asarray(attempt(images, labels), images.dtype)  # what is measured is what is classified
    within = exact_norm(found.astype(float) - images, norm) <= radius * (1 + CLOSE)
    low, high = classifier.bounds
    inside = ((found >= low) & (found <= high)).reshape(len(found), -1).all(1)
    return within & inside & ~_right(classifier, found, labels)


def _right(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether images are classified correctly `[B]`, as precisely as attacks and certificates see the classifier."""
    if not len(images):
        return np.zeros(0, bool)
    with jax.default_matmul_precision("highest"):
        return np.asarray(losses.accuracy(predict(classifier, images), labels), bool)


def alone(
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    radius: float,
    attacks: Mapping[str, Attempt],
    *,
    norm: float = INF,
) -> dict[str, float]:
    """The accuracy that each attack by itself leaves."""
    results = {
        name: robustness(classifier, images, labels, radius, {name: attempt}, norm=norm)
        for name, attempt in attacks.items()
    }
    return {name: float(result.robust.mean()) for name, result in results.items()}


def masking(accuracies: Mapping[str, float]) -> list[str]:
    """The attacks that speak of masked gradients: they leave less than `pgd` does, of the figures of `alone`.

    What follows no gradients, or those of another network, should not do better than what follows the network's own
    (Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", 2018, section 3.1). Where it
    does, accuracies under attacks by gradients say little.
    """
    return [name for name, accuracy in accuracies.items() if accuracy < accuracies["pgd"] - MASKED]
