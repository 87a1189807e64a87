"""The outermost layer of every attack: it converts units, and splits the images into blocks to report progress.

Callers give images, radii and distances in the units of the classifier's bounds; attacks compute with images in [0, 1].
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, progress, unstable
from mnist_jax.attack.engine.problem import Asked, Problem, problem
from mnist_jax.attack.engine.result import AttackResult, finish
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import UNIT
from mnist_jax.device import precisely
from mnist_jax.units import Units

Settings = Mapping[str, ArrayLike]

LENGTHS = {"radius", "step_size", "low", "high", "initial"}  # names of the settings that are p-norms, in these units
# Names of the settings that are images. Other arrays are perturbations of which only the direction is used.
IMAGES = {"begin"}


def at_edge(
    attack: Callable[[Asked, Settings, Settings], AttackResult],
    asked: Asked,
    *,
    norm: float,
    each: Settings | None = None,
    arrays: Settings | None = None,
    keys_apart: bool = False,
) -> AttackResult:
    """Runs an attack that computes with images in [0, 1] on images in the units of the classifier's bounds.

    Where a callback for progress is set (`mnist_jax.progress`), the images are attacked in blocks.

    Args:
      attack: `attack(asked, each, arrays)`, all in units of [0, 1].
      asked: the arguments that all attacks have, in the caller's units.
      each: settings with a value for each image: numbers of at least 0, or `[B]`.
      arrays: settings that are arrays like the images, `[B, *shape]`.
      norm: p.
      keys_apart: whether a single key is split into one for each image, here, before the images are split into blocks.

    Returns:
      An `AttackResult`, in the caller's units.

    Raises:
      ValueError: see `problem.problem`, `arguments.radii` and `arguments.keys_of`.
    """
    each, arrays = each or {}, arrays or {}
    scaled = asked.classifier.bounds != UNIT
    with precisely():
        if not scaled and not progress.wanted():
            return attack(asked, each, arrays)
        given = problem(asked)
        x, key = given.images, asked.key
        lengths = {name: arguments.radii(value, x, name) for name, value in each.items()}
        others = {name: jnp.asarray(value, x.dtype) for name, value in arrays.items()}
        key = arguments.keys_of(key, len(x)) if keys_apart and key is not None else key
        asked = Asked(asked.classifier, *given, key)
        if not scaled:
            return _in_blocks(attack, asked, lengths, others)
        units = Units.of(asked.classifier.bounds, x.dtype)
        lengths = {name: units.length(v, norm) if name in LENGTHS else v for name, v in lengths.items()}
        others = {name: units.inside(v) if name in IMAGES else v for name, v in others.items()}
        inner = asked._replace(classifier=asked.classifier.in_unit_box, images=units.inside(x))
        result = _in_blocks(attack, inner, lengths, others)
        return in_chunks(partial(_outside, norm), (given, inner.images, result), asked.classifier)


@partial(jax.jit, static_argnums=0)
def _outside(norm, classifier, given: Problem, inner: jax.Array, result: AttackResult) -> AttackResult:
    """The result in the caller's units, with success and distance recomputed from the images in these units."""
    found = Units.of(classifier.bounds, inner.dtype).outside(given.images, result.images - inner)
    outside = finish(classifier, given, found, norm, result.gradients, result.forwards)
    return outside.only(result.success)


def _in_blocks(attack: Callable[..., AttackResult], asked: Asked, each: Settings, arrays: Settings) -> AttackResult:
    """Runs the attack on one block of images after another if a callback for progress is set, else on all at once."""
    classifier, images, labels, targets, key = asked
    own = key if key is not None and arguments.is_one_for_each(key) else None

    def work(places: slice) -> AttackResult:
        x, y, goals, keys, *settings = jax.tree.map(lambda a: a[places], (images, labels, targets, own, each, arrays))
        return attack(Asked(classifier, x, y, goals, key if keys is None else keys), *settings)

    return (
        work(slice(None)) if unstable.staged((classifier, images)) else progress.by_blocks(work, jnp.shape(images)[0])
    )
