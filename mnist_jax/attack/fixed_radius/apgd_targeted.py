"""Targeted Auto-PGD: Auto-PGD runs towards each of the likeliest other classes, one after another."""

from typing import Any

import jax
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import fixed, restarted
from mnist_jax.attack.fixed_radius.apgd import apgd, check, descend, start_of
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "`apgd` towards each of the likeliest other classes in turn",
    "Croce & Hein 2020",
)


def apgd_targeted(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    steps: int = 100,
    restarts: int = 1,
    classes: int = 9,
    large_radius: bool = False,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Targeted Auto-PGD: runs `apgd` on the targeted DLR loss (`losses.dlr_targeted`) towards each of the likeliest
    other classes in turn, until the image is misclassified, as whatever class (Croce & Hein, "Reliable evaluation of
    adversarial robustness with an ensemble of diverse parameter-free attacks", 2020, section 5).

    Args:
      classifier, images, labels, radius, norm, steps, large_radius: see `apgd`.
      restarts: runs towards each class, at most.
      classes: how many other classes to run towards, at most all.
      targets: `[B]`, the classes to reach; with them, all runs go towards these, and only these count as a success.
      key: see `apgd`. Without one, the first run towards each class starts at the image.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = check(norm, steps, restarts, large_radius)
    arguments.counts(classes=classes)
    how: dict[str, Any] = {"norm": norm, "steps": steps, "restarts": restarts, "large_radius": large_radius}
    if targets is not None:
        return apgd(classifier, images, labels, radius, loss="dlr", targets=targets, key=key, **how)
    asked = Asked(classifier, images, labels, None, fixed(key))
    return driver.run(kernel, asked, each={"radius": radius}, classes=classes, at_image=key is None, **how)


def kernel(
    classifier, given: Problem, keys, *, norm, radius, steps, restarts, classes, large_radius, at_image
) -> Found:
    others = losses.label_and_others(classifier(given.images), given.labels)[1]
    classes = min(classes, others.shape[1] - 1)
    towards = jax.lax.top_k(others, classes)[1]

    def run(i, keys):
        target = towards[:, i // restarts]
        start = start_of(given, keys, radius, norm, large_radius, at_image & (i % restarts == 0))

        def loss(logits, labels):
            return losses.dlr_targeted(logits, labels, target)

        return descend(classifier, given, start, radius, loss, norm, steps, large_radius)

    r, runs = restarted(given, keys, classes * restarts, run)
    return Found(r, gradients=runs * steps, forwards=runs + 1)
