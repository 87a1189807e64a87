"""The driver, which runs an attack's kernel on any number of images: it checks, splits, compiles and verifies.

A kernel is a pure function of a classifier, a `Problem`, keys (one for each image, or None) and settings by name; it
returns a `Found`. It runs inside any transformation of JAX, so that training can call it inside its own step. A public
attack checks its numbers and calls `run(kernel, ...)`, which splits the images into chunks, and recomputes success and
distance from the images that the kernel found.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments
from mnist_jax.attack.engine.edge import Settings, at_edge
from mnist_jax.attack.engine.problem import Asked, Problem, check_direction, problem
from mnist_jax.attack.engine.result import AttackResult, finish
from mnist_jax.chunks import in_chunks
from mnist_jax.classifier import Classifier


class Found(NamedTuple):
    """What a kernel returns: a perturbation for each image, and the work it took.

    Attributes:
      r: perturbations `[B, *shape]`, adversarial, or the last ones that were tried.
      gradients, forwards: gradients and evaluations without a gradient that were used, a number or `[B]`.
      allowed: `[B]` or True; False where `r` must not count as a success even if the image is misclassified, because it
        breaks a limit of the method (a radius, a confidence).
    """

    r: jax.Array
    gradients: ArrayLike
    forwards: ArrayLike
    allowed: ArrayLike = True


def run(
    kernel: Callable[..., Found],
    asked: Asked,
    *,
    norm: float,
    each: Settings | None = None,
    arrays: Settings | None = None,
    numbers: Settings | None = None,
    **how: Any,
) -> AttackResult:
    """Runs a kernel on any number of images, and recomputes success and distance from the images that it found.

    Args:
      kernel: called with `norm` and all settings below as keyword arguments.
      asked: the arguments that all attacks have; without a key, the kernel's keys are None.
      norm: p; an exponent that the attack allows.
      each: settings with a value for each image: numbers of at least 0, or `[B]`.
      arrays: settings that are arrays like the images, `[B, *shape]`.
      numbers: settings that are traced numbers: the program is not compiled again for another value.
      how: settings that are static in the compiled program; hashable.

    Returns:
      An `AttackResult`, in the units of the classifier's bounds.

    Raises:
      ValueError: see `problem.problem`, `arguments.radii` and `arguments.keys_of`.
    """
    inside = partial(_inside, kernel, norm, numbers, how)
    return at_edge(inside, asked, norm=norm, each=each, arrays=arrays, keys_apart=True)


def _inside(kernel, norm, numbers, how, asked: Asked, each: Settings, arrays: Settings) -> AttackResult:
    given = problem(asked)
    keys = None if asked.key is None else arguments.keys_of(asked.key, len(given.images))
    x = given.images
    own = {name: arguments.radii(value, x, name) for name, value in each.items()}
    own |= {name: _like(x, value, name) for name, value in arrays.items()}
    traced = {name: jnp.asarray(value, x.dtype) for name, value in (numbers or {}).items()}
    if not len(x):
        return _nothing(given)
    if "loss" in how:
        check_direction(how["loss"], asked.classifier, x)
    program = partial(_run, kernel, norm, tuple(sorted(how.items())))
    return in_chunks(program, (given, keys, own), asked.classifier, traced)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(kernel, norm, how, classifier, numbers, given: Problem, keys, own) -> AttackResult:
    found = kernel(classifier, given, keys, norm=norm, **own, **numbers, **dict(how))
    return judge(classifier, given, found, norm)


def in_stages(search: Callable[..., Found], asked: Asked, *, norm: float, each: Settings | None = None) -> AttackResult:
    """As `run`, for a search that consists of several compiled programs, between which finished images are removed.

    `search(classifier, given, key, **each)` is called once with all images; it splits them into chunks itself, and gets
    the key as the caller gave it.
    """
    return at_edge(partial(_stages, search, norm), asked, norm=norm, each=each)


def _stages(search, norm, asked: Asked, each: Settings, _: Settings) -> AttackResult:
    given = problem(asked)
    if asked.key is not None:
        arguments.check_key(asked.key, len(given.images))
    own = {name: arguments.radii(value, given.images, name) for name, value in each.items()}
    if not len(given.images):
        return _nothing(given)
    found = search(asked.classifier, given, asked.key, **own)
    return in_chunks(partial(_judge, norm), (given, found), asked.classifier)


@partial(jax.jit, static_argnums=0)
def _judge(norm, classifier, given: Problem, found: Found) -> AttackResult:
    return judge(classifier, given, found, norm)


def judge(classifier: Classifier, given: Problem, found: Found, norm: float) -> AttackResult:
    """The `AttackResult` of what a kernel found, with success and distance recomputed from the images."""
    result = finish(classifier, given, given.images + found.r, norm, found.gradients, found.forwards)
    return result.only(jnp.asarray(found.allowed))


def present(**settings: ArrayLike | None) -> dict[str, ArrayLike]:
    """The settings that are not None: for the others, kernels have defaults."""
    return {name: value for name, value in settings.items() if value is not None}


def _like(images: jax.Array, value: ArrayLike, name: str) -> jax.Array:
    """The value as an array of the images' type. Raises `ValueError` where its shape is not that of the images."""
    if jnp.shape(value) != images.shape:
        raise ValueError(f"{name} must be an array {list(images.shape)} like the images, not {list(jnp.shape(value))}")
    return jnp.asarray(value, images.dtype)


def _nothing(given: Problem) -> AttackResult:
    """The result of an attack on no images, which only checks its arguments."""
    zeros = jnp.zeros(0, jnp.int32)
    return AttackResult(given.images, jnp.zeros(0, given.images.dtype), zeros > 0, zeros, zeros)
