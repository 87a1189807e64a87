"""Method A of the original project at one radius: Adam on the pixels of a perturbation of exactly that norm."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, Loss, Problem, loss_function
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import disturb
from mnist_jax.classifier import Classifier

METHOD = Method(
    None,
    "Adam on the pixels of a perturbation of exactly the given norm, in the box",
)

DECAYS = (0.9, 0.99)  # Adam's decay rates of the two moments: the second is below the usual 0.999, as runs are short


def fixed_norm(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = 2,
    steps: int = 100,
    learning_rate: ArrayLike = 0.005,
    loss: str | Loss = "margin",
    start: ArrayLike | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Looks for an adversarial image at exactly the distance `radius`.

        minimize loss(classifier(x + r), label)  such that  norm_p(r) = radius  and  x + r in [0, 1]

    Each step is one of Adam (Kingma & Ba 2015) on the component of the gradient along the sphere, with a learning rate
    that falls to zero along a cosine, followed by `geometry.project_sphere_in_box` (or, for p in (1, inf), by
    `geometry.scale_to_sphere_in_box`, which is cheaper). So every perturbation is on the sphere and in the box; that of
    the lowest loss is returned. For p = 1, where few pixels should change by large amounts, a step is one of gradient
    descent with momentum instead, scaled so that the pixel that changes most changes by the learning rate.

    Args:
      classifier: see `Classifier`.
      images: `[B, *shape]` in [0, 1].
      labels: `[B]`; None means the classifier's own predictions.
      radius: p-norm of the perturbations, a number or `[B]`. The attack fails for an image for which the radius is
        larger than that of any perturbation in the box.
      norm: p, in [1, inf].
      steps: gradients for each image.
      learning_rate: of Adam, in units of pixels; a number or `[B]`.
      loss: `"margin"`, `"confidence"` (the original project's; its gradient vanishes where it saturates), `"log_odds"`,
        or a function of logits `[B, C]` and labels `[B]`, to be minimized.
      start: perturbations `[B, *shape]` in whose direction to start. Where one is zero, or without any, the start is
        the step of steepest descent from the image.
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, the start is disturbed at random, else
        nothing is random.

    Returns:
      An `AttackResult`. An image that is misclassified before the attack is returned unchanged, at distance 0.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(steps=steps)
    asked = Asked(classifier, images, labels, targets, key)
    each = {"radius": radius, "learning_rate": learning_rate}
    how: dict[str, Any] = {"steps": steps, "loss": loss_function(loss)}
    return driver.run(kernel, asked, norm=norm, each=each, arrays=driver.present(start=start), **how)


def kernel(classifier, given: Problem, keys, *, norm, radius, learning_rate, steps, loss, start=None) -> Found:
    x = given.images
    start = jnp.zeros_like(x) if start is None else start
    if keys is not None:
        start = disturb(given, start, keys, 0.1 * radius, norm)
    best = adam_on_sphere(classifier, given, radius, learning_rate, start, norm=norm, steps=steps, loss=loss)
    # The projection lowers a radius above the largest norm in the box to this norm: the result is then no success.
    within_reach = radius <= geometry.largest(x, norm) * (1 + 1e-6)
    return Found(best.r, gradients=steps, forwards=1, allowed=within_reach)


def adam_on_sphere(classifier, given: Problem, radius, learning_rate, start, *, norm, steps, loss) -> Best:
    """The perturbation of the lowest loss on the sphere, by Adam from `start`: `steps` gradients and one evaluation."""
    x = given.images
    optimizer, schedule = optax.scale_by_adam(*DECAYS), optax.cosine_decay_schedule(1.0, steps)
    if norm == 1:
        optimizer = optax.chain(optax.trace(DECAYS[0]), optax.stateless(_largest_one))
    # For p = 1 the projection keeps perturbations sparse. For p in (1, inf) scaling does as well and is cheaper.
    onto = geometry.project_sphere_in_box if norm in (1, geometry.INF) else geometry.scale_to_sphere_in_box
    nowhere = geometry.norm(start, norm) == 0

    def advance(step, state):
        point, moments, best = state
        straight = nowhere & (step == 0)  # a start of zero: the first gradient is taken at the image itself
        r = given.where(straight, start, onto(point, x, radius, norm))
        image = given.at(r)
        objective, gradient = jax.lax.cond(
            step < steps,
            lambda: given.gradient(classifier, image, loss)[1:],
            lambda: (given.objective(classifier(image), loss), jnp.zeros_like(r)),
        )
        best = best.keep(given, r, objective, ~straight)
        update, moments = optimizer.update(geometry.along_sphere(gradient, r, x, norm), moments)
        moved = r - given.per_image(learning_rate * schedule(step)) * update

        def first():
            steepest = -given.per_image(radius) * geometry.dual_direction(gradient, max(norm, 2))
            return given.where(straight, steepest, moved)

        return jax.lax.cond(step == 0, first, lambda: moved), moments, best

    point = given.where(nowhere, jnp.ones_like(x), start)
    return jax.lax.fori_loop(0, steps + 1, advance, (point, optimizer.init(x), Best.none(x)))[2]


def _largest_one(updates: jax.Array, params: None = None) -> jax.Array:
    """The update of every image, scaled so that its largest entry has the absolute value 1."""
    del params
    largest = geometry.norm(updates, geometry.INF).reshape(-1, *[1] * (updates.ndim - 1))
    return updates / jnp.where(largest > 0, largest, 1)
