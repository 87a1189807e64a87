"""The robust accuracy of a network at a radius, under several attacks together, and signs of masked gradients.

The accuracy under attack is an upper bound of the robust accuracy, the certified accuracy a lower one. Images that are
certified need not be attacked.
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

CLOSE = 1e-5  # relative tolerance for a distance at the radius: perturbations are rounded to single precision
PGD_STEPS = 100  # steps of `pgd`, on the network itself and on the surrogate. Chosen
# The share of all images that an attack may fool in excess of PGD before gradients count as masked. On networks that
# mask nothing, attacks differ by as much, since some use more gradients than PGD.
MASKED = 0.05

Attempt = Callable[[np.ndarray, np.ndarray], ArrayLike]  # an attack: images and labels to candidate images


class Robustness(NamedTuple):
    """Which images are classified correctly, and which of them still are under attack.

    Attributes:
      clean: `[B]`, whether the image is classified correctly without an attack.
      robust: `[B]`, whether it is, and no attack fooled the classifier.
      broken: by the name of each attack, `[B]`, whether it was the first to fool the classifier on the image.
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
    """The attacks by name, the cheapest first, as `robustness` takes them.

    They are `transfer`, `pgd`, `square`, `auto_attack` and `nearest`.

    Args:
      classifier: the network to attack.
      radius: the largest p-norm of the perturbations.
      norm: p, 1, 2 or inf.
      surrogate: another network, whose adversarial images by `pgd` are tried on this one; without it there is no attack
        `transfer`.
      effort: of `nearest`.
      key: a `jax.random` key for all that is random; None means a fixed key.
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
    """Runs attacks one after another, each on the images on which none before it fooled the classifier.

    Args:
      classifier: the network to attack.
      images: `[B, *shape]` between the classifier's bounds.
      labels: `[B]`.
      radius: the largest p-norm of the perturbations; an image that is farther away, by more than rounding, does not
        count.
      attacks: those of `attempts`, or some of them.
      norm: p.
      certified: `[B]`, whether it is proved that no attack can succeed; such images are not attacked. None for none.
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
    """Whether an attack's images are misclassified, within the radius up to rounding, and within the bounds `[B]`."""
    found = np.asarray(attempt(images, labels), images.dtype)  # the same rounded values are measured and classified
    within = exact_norm(found.astype(float) - images, norm) <= radius * (1 + CLOSE)
    low, high = classifier.bounds
    inside = ((found >= low) & (found <= high)).reshape(len(found), -1).all(1)
    return within & inside & ~_right(classifier, found, labels)


def _right(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether images are classified correctly `[B]`, computed in the highest precision of matrix products."""
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
    """The accuracy under each attack alone, by the attack's name; arguments as those of `robustness`."""
    results = {
        name: robustness(classifier, images, labels, radius, {name: attempt}, norm=norm)
        for name, attempt in attacks.items()
    }
    return {name: float(result.robust.mean()) for name, result in results.items()}


def masking(accuracies: Mapping[str, float]) -> list[str]:
    """The names of attacks that indicate masked gradients: the accuracy under them is below that under `pgd`.

    `accuracies` are those of `alone`; differences up to MASKED are ignored. An attack without gradients, or with those
    of another network, should not do better than one with the network's own gradients (Athalye, Carlini & Wagner,
    "Obfuscated gradients give a false sense of security", 2018, section 3.1). Where it does, accuracies under
    gradient-based attacks say little.
    """
    return [name for name, accuracy in accuracies.items() if accuracy < accuracies["pgd"] - MASKED]
