"""EAD: Carlini & Wagner's loss plus the 1-norm of the perturbation, minimized by iterative shrinkage-thresholding."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import small_start
from mnist_jax.attack.engine.tradeoff import Attempt, found_by, search_weight
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1,),
    "Carlini & Wagner's loss plus the 1-norm of the perturbation",
    "Chen et al. 2018",
)

RULES = ("en", "l1")  # which adversarial image is the best: least elastic-net norm, or least 1-norm


def ead(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 1,
    steps: int = 1000,
    searches: int = 9,
    learning_rate: float = 0.01,
    beta: float = 1e-3,
    weight: float = 1e-3,
    confidence: float = 0.0,
    rule: str = "en",
    stop_early: bool = True,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """EAD: minimizes the sum of the weighted margin and the elastic-net norm of the perturbation,

        c max(margin(x + r) + κ, 0) + norm_2(r)^2 + β norm_1(r)        such that  x + r  in [0, 1]

    by FISTA: r is a gradient step on the first two terms from a point s, shrunk towards zero by β in every pixel and
    clipped to the box; the next s is r plus a share of r's last change. c is searched for each image: multiplied by ten
    until there is a success, then bisected. The best misclassified image of all these descents is kept.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: 1, the norm of the distances in the result.
      steps: the most gradients for each image in the descent at one value of c.
      searches: how many values of c are tried.
      learning_rate: the first one; it falls as sqrt(1 - i / steps).
      beta: β, by which every pixel of the perturbation is shrunk in each step, in units of pixel values.
      weight: the first c.
      confidence: κ, how far below zero the margin has to be.
      rule: which image is best: that of least norm_2(r)^2 + β norm_1(r), `"en"`, or of least norm_1(r), `"l1"`.
      stop_early: whether a descent ends once a tenth of its steps lowers the loss of the image by less than 0.01 %.
      targets: `[B]`, classes to reach; the margin is then the largest other logit minus the target's.
      key: a `jax.random` key, or one for each image; with one, the start is a small random perturbation, without one
        nothing is random.

    Returns:
      An `AttackResult`.

    Raises:
      ValueError: an argument is out of its range.

    Chen, Sharma, Zhang, Yi & Hsieh, "EAD: elastic-net attacks to deep neural networks via adversarial examples", 2018,
    algorithm 1.
    """
    METHOD.check_norm(norm)
    if rule not in RULES:
        raise ValueError(f"rule must be {' or '.join(RULES)}, not {rule!r}")
    arguments.counts(steps=steps, searches=searches)
    arguments.numbers(0, confidence=confidence)
    arguments.numbers(0, above=True, learning_rate=learning_rate, weight=weight, beta=beta)
    numbers = {"learning_rate": learning_rate, "beta": beta, "confidence": confidence, "weight": weight}
    asked = Asked(classifier, images, labels, targets, key)
    how: dict[str, Any] = {"steps": steps, "rounds": searches, "stop_early": bool(stop_early)}
    return driver.run(kernel, asked, norm=1, numbers=numbers, rule=rule, **how)


def kernel(classifier, given: Problem, keys, *, norm, learning_rate, beta, confidence, weight, rule, **how) -> Found:
    del norm
    steps = how["steps"]
    x, start = given.images, small_start(given, keys)

    def step(i, state, c):
        before, s = state
        _, margin, gradient = given.gradient(classifier, x + s, losses.margin)
        pull = given.per_image(jnp.where(margin + confidence > 0, c, 0)) * gradient
        z = s - learning_rate * jnp.sqrt(1 - i / steps) * (2 * s + pull)
        r = given.inside(jnp.sign(z) * jnp.maximum(jnp.abs(z) - beta, 0))
        # The gradient was taken at s, but the perturbation to keep is r, which needs an evaluation of its own.
        logits = classifier(x + r)
        lacking = given.objective(logits) + confidence
        one = geometry.norm(r, 1)
        net = geometry.norm(r, 2) ** 2 + beta * one
        adversarial = given.adversarial(logits, CAREFUL) & (lacking <= 0)
        attempt = Attempt(r, one if rule == "l1" else net, adversarial, c * jnp.maximum(lacking, 0) + net)
        return (r, r + i / (i + 3) * (r - before)), attempt

    found = search_weight(given, step, (start, start), weight=weight, **how)
    return found_by(given, found, found.gradients)
