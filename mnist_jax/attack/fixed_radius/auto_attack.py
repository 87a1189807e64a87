"""AutoAttack: the standard ensemble of four attacks for the robust accuracy at a radius."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, unstable
from mnist_jax.attack.engine.edge import Settings, at_edge
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import fixed
from mnist_jax.attack.engine.windows import SCHEDULE
from mnist_jax.attack.fixed_radius.apgd import apgd
from mnist_jax.attack.fixed_radius.apgd_targeted import apgd_targeted
from mnist_jax.attack.fixed_radius.square import square
from mnist_jax.attack.minimal_norm.fab import fab
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "`apgd`, `apgd_targeted`, `fab` and `square` in turn, for robust accuracy",
    "Croce & Hein 2020 and 2021",
)

ROUNDING = 1e-5  # relative: a distance may exceed the radius by this, as float32 rounds sums of image and perturbation


def auto_attack(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """AutoAttack: runs four attacks in turn, each on the images for which the ones before it found nothing:

        apgd            on the cross-entropy, 100 steps; for p = 1 five runs, each at larger radii first
        apgd_targeted   towards the 9 likeliest other classes, 100 steps; for p = 1 the 5 likeliest, larger radii first
        fab             towards the 9 likeliest other classes, 100 steps; a success where it finds one within the radius
        square          5,000 queries

    The attacks and their settings are those of the "standard" version of Croce & Hein, "Reliable evaluation of
    adversarial robustness with an ensemble of diverse parameter-free attacks", 2020, and for p = 1 of Croce & Hein,
    "Mind the box", 2021. The robust accuracy is 1 minus the share of successes.

    Args:
      classifier, images, labels, radius: see `pgd`.
      norm: p, 1, 2 or inf.
      targets: see `pgd`. The ensemble is designed for None; with targets, every attack runs towards these only.
      key: a `jax.random` key, or one for each image; None means key 0.

    Returns:
      An `AttackResult`. Its gradients and forwards are sums over all attacks that ran on the image.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    asked = Asked(classifier, images, labels, targets, fixed(key))
    return at_edge(partial(_in_turn, norm), asked, norm=norm, each={"radius": radius}, keys_apart=True)


def _in_turn(norm: float, asked: Asked, each: Settings, _: Settings) -> AttackResult:
    classifier, given = asked.classifier, problem(asked)
    assert asked.key is not None
    arrays = (given, arguments.radii(each["radius"], given.images), arguments.keys_of(asked.key, len(given.images)))
    traced = unstable.staged((classifier, arrays))
    zeros = jnp.zeros(len(given.labels), jnp.int32)
    result = AttackResult(given.images, jnp.full(len(zeros), jnp.inf, given.images.dtype), zeros > 0, zeros, zeros)
    for attack in _ensemble(classifier, norm):
        # Under a transformation it is not known which images are fooled, so all stay; the first success is kept.
        places: Any = slice(None) if traced else np.flatnonzero(~np.asarray(result.success))
        if not traced and not len(places):
            break
        before, (chosen, *rest) = jax.tree.map(lambda a, places=places: a[places], (result, arrays))
        new = _joined(before, attack(chosen, *rest), *rest[:1])
        result = jax.tree.map(lambda a, b, places=places: a.at[places].set(b), result, new)
    return result


def _ensemble(classifier: Classifier, norm: float) -> Iterator[Callable[..., AttackResult]]:
    """The four attacks with their settings, as functions of problem, radii `[B]` and keys `[B]`."""
    sparse = norm == 1
    settings = (
        partial(apgd, steps=100, restarts=5 if sparse else 1, large_radius=sparse),
        partial(apgd_targeted, steps=100, classes=5 if sparse else 9, large_radius=sparse),
        _fab,
        partial(square, queries=5000, schedule=SCHEDULE),
    )
    for number, attack in enumerate(settings):

        def run(given, radius, keys, number=number, attack=attack):
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            return attack(classifier, given.images, given.labels, radius, norm=norm, targets=given.targets, key=keys)

        yield run


def _fab(classifier, images, labels, radius, *, norm, targets, key) -> AttackResult:
    del radius, key  # FAB minimizes the distance, and its only run starts at the image
    return fab(classifier, images, labels, norm=norm, steps=100, classes=9, targets=targets)


def _joined(before: AttackResult, new: AttackResult, radius: jax.Array) -> AttackResult:
    """For each image the earlier result where it was a success, else the new one, a success only within the radius."""
    new = new.only(new.distance <= radius * (1 + ROUNDING))

    def choose(old, new):
        return jnp.where(before.success.reshape(-1, *[1] * (old.ndim - 1)), old, new)

    joined = jax.tree.map(choose, before, new)
    used = [jnp.where(before.success, a, a + b) for a, b in zip(before[3:], new[3:], strict=True)]
    return joined._replace(gradients=used[0], forwards=used[1])
