"""Auto-PGD: projected gradient descent with momentum and a step size that is halved when progress stops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.best import Best
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Loss, Problem, loss_function
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import fixed, normal, random_start, restarted
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "gradient descent with momentum, whose step size is halved when progress stops",
    "Croce & Hein 2020 and, for the 1-norm, 2021",
)

# Constants of Croce & Hein 2020 (see `apgd`):
ALPHA = 0.75  # weight of the new step in the update; the rest is momentum
RHO = 0.75  # share of the steps between two checkpoints that have to lower the loss, or the step size is halved
# Constants for p = 1, of Croce & Hein 2021 and their implementation:
STARTING_SHARE = 0.2  # share of all pixels that the first steps change
SHRINK = 1.5  # divisor of the step size at checkpoints; a step moves the number of changed pixels divided by this
SMALLEST = 0.1  # least step size, relative to the radius
FEWER = 0.95  # if the number of changed pixels falls below this share of the last checkpoint's, the step size is reset
STAGES = ((3, 0.3), (2, 0.3), (1, 0.4))  # with `large_radius`: multiples of the radius, and shares of the steps


class Walk(NamedTuple):
    """The state of a descent: the current perturbation, and the best ones so far."""

    r: jax.Array
    best: Best  # the perturbation of the lowest loss
    slope: jax.Array  # the gradient at `best`
    hit: Best  # the adversarial perturbation of the lowest loss


def apgd(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    steps: int = 100,
    restarts: int = 1,
    loss: str | Loss = "cross_entropy",
    large_radius: bool = False,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Auto-PGD: projected gradient descent with momentum, whose step size adapts itself:

        z  = P(r - eta d),   d = argmax <gradient, d>  such that  norm_p(d) = 1
        r' = P(r + alpha (z - r) + (1 - alpha) (r - previous r)),   alpha = 3/4

    with P the projection onto the intersection of ball and box. The step size eta starts at `2 * radius`. At
    checkpoints, at shorter and shorter intervals, eta is halved and r goes back to the best so far if the loss fell in
    less than 3/4 of the steps since the last checkpoint, or if neither eta nor the lowest loss has changed since then
    (Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    2020, algorithm 1).

    For p = 1 there is no momentum. A step changes the k pixels of the largest gradients by the same amount, where k is
    2/3 of the number of pixels that the best perturbation so far changes; eta falls from `radius` to a tenth of it for
    as long as that number does not decrease (Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks on
    image classifiers", 2021, algorithm 1). P is exact for every p; for p = 2 the public implementations project onto
    the ball and then clip, which is not the projection onto both.

    Args:
      classifier, images, labels, radius, restarts: see `pgd`.
      norm: p, 1, 2 or inf.
      steps: gradients for each image and run.
      loss: see `pgd`; for `"dlr"` with targets, `losses.dlr_targeted`.
      large_radius: for p = 1, whether the first 30 % of the steps use three times the radius and the next 30 % twice
        the radius ("Mind the box", section 3.2).
      targets: `[B]`, the classes to reach; None means any but the label.
      key: a `jax.random` key, or one for each image; with one, every run starts at random. Without, the first run
        starts at the image, and the others use a fixed key.

    Returns:
      An `AttackResult`, with the adversarial image of the lowest loss in the first run that found one.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = check(norm, steps, restarts, large_radius)
    asked = Asked(classifier, images, labels, targets, fixed(key))
    how: dict[str, Any] = {"steps": steps, "restarts": restarts, "large_radius": large_radius, "at_image": key is None}
    return driver.run(kernel, asked, norm=norm, each={"radius": radius}, loss=loss_function(loss), **how)


def check(norm: float, steps: int, restarts: int, large_radius: bool) -> float:
    """The norm as a float, after a check of all these arguments. Raises `ValueError` where one is out of its range."""
    norm = METHOD.check_norm(norm)
    arguments.counts(least=len(STAGES) if large_radius else 1, steps=steps)
    arguments.counts(restarts=restarts)
    if large_radius and norm != 1:
        raise ValueError(f"large_radius is for norm 1, not {norm:g}")
    return norm


def kernel(classifier, given: Problem, keys, *, norm, radius, steps, restarts, loss, large_radius, at_image) -> Found:
    if loss is losses.dlr and given.targets is not None:

        def loss(logits, targets):  # negative, since `Problem.objective` minimizes minus the loss of the targets
            return -losses.dlr_targeted(logits, given.labels, targets)

    def run(i, keys):
        start = start_of(given, keys, radius, norm, large_radius, at_image & (i == 0))
        return descend(classifier, given, start, radius, loss, norm, steps, large_radius)

    r, runs = restarted(given, keys, restarts, run)
    return Found(r, gradients=runs * steps, forwards=runs)


def start_of(given: Problem, keys, radius, norm, large_radius, at_image):
    """The perturbations `[B, *shape]` at which a run starts: random ones, or zero where `at_image`."""
    if norm == 1:  # normal noise that is projected is sparse; a uniform sample of the ball changes every pixel a little
        start = geometry.project_ball_in_box(
            normal(given, keys), given.images, (STAGES[0][0] if large_radius else 1) * radius, norm
        )
    else:
        start = random_start(given, keys, radius, norm)
    return jnp.where(at_image, 0, start)


def descend(classifier, given: Problem, start, radius, loss, norm, steps, large_radius):
    """One run from `start`: perturbations `[B, *shape]`, and whether they are adversarial `[B]`."""
    if norm != 1:
        walk = _descend(classifier, given, start, radius, loss, norm, steps)
    elif not large_radius:
        walk = _descend_sparsely(classifier, given, start, radius, loss, steps, first=True)
    else:
        first, second = (-int(-share * steps // 1) for _, share in STAGES[:-1])
        lengths = jnp.array([first, second, steps - first - second])
        factors = jnp.array([factor for factor, _ in STAGES], start.dtype)

        def stage(r, how):
            within = how[0] * radius
            r = geometry.project_ball_in_box(r, given.images, within, norm)
            walk = _descend_sparsely(classifier, given, r, within, loss, how[1], first=False)
            return walk.best.r, walk

        walk = jax.tree.map(lambda a: a[-1], jax.lax.scan(stage, start, (factors, lengths))[1])
    return given.where(walk.hit.found, walk.hit.r, walk.best.r), walk.hit.found


def _begin(start) -> Walk:
    none = Best.none(start)
    return Walk(start, none, jnp.zeros_like(start), none)


def _look(classifier, given: Problem, loss, walk: Walk) -> tuple[Walk, jax.Array, jax.Array]:
    """The state after an evaluation at its perturbations; the objective `[B]` and its gradient there."""
    images = given.at(walk.r)
    logits, objective, gradient = given.gradient(classifier, images, loss)
    slope = given.where(objective < walk.best.value, gradient, walk.slope)
    return _kept(given, walk._replace(slope=slope), logits, objective), objective, gradient


def _kept(given: Problem, walk: Walk, logits, objective) -> Walk:
    return walk._replace(
        best=walk.best.keep(given, walk.r, objective),
        hit=walk.hit.keep(given, walk.r, objective, given.adversarial(logits, CAREFUL)),
    )


def _last_look(classifier, given: Problem, loss, walk: Walk) -> Walk:
    logits = classifier(given.at(walk.r))
    return _kept(given, walk, logits, given.objective(logits, loss))


def checkpoints(steps: int) -> list[int]:
    """The numbers of steps after which the step size may be halved, in increasing order: w_j of the paper."""
    places, length = [0, 22], 22  # in percent of all steps; intervals get shorter by 3 down to 6
    while places[-1] < 100:
        length = max(length - 3, 6)
        places.append(places[-1] + length)
    return sorted({-(-place * steps // 100) for place in places if 0 < place < 100} - {steps})


def _descend(classifier, given: Problem, start, radius, loss, norm, steps) -> Walk:
    """The descent for p = 2 and inf: momentum, and a step size that is halved at checkpoints."""
    marks = checkpoints(steps)
    length = jnp.zeros(steps, int).at[jnp.array(marks, int)].set(jnp.diff(jnp.array([0, *marks])))

    def onto(r):
        return geometry.project_ball_in_box(r, given.images, radius, norm)

    def advance(i, state):
        walk, previous, eta, last, falls, value, halved = state
        walk, objective, gradient = _look(classifier, given, loss, walk)
        now, falls = length[i] > 0, falls + (objective < last)
        halve = now & ((falls < RHO * length[i]) | (~halved & (walk.best.value == value)))
        eta = jnp.where(halve, eta / 2, eta)
        r = given.where(halve, walk.best.r, walk.r)
        step = given.per_image(eta) * geometry.dual_direction(given.where(halve, walk.slope, gradient), norm)
        z, alpha = onto(r - step), jnp.where(i == 0, 1, ALPHA).astype(r.dtype)
        new = onto(r + alpha * (z - r) + (1 - alpha) * (r - previous))
        falls, value, halved = (
            jnp.where(now, a, b) for a, b in ((0, falls), (walk.best.value, value), (halve, halved))
        )
        return walk._replace(r=new), r, eta, objective, falls, value, halved

    lowest = jnp.full_like(radius, -jnp.inf)
    falls = jnp.zeros(len(radius), int)
    state = (_begin(start), start, 2 * radius, lowest, falls, lowest, falls > 0)
    walk = jax.lax.fori_loop(0, steps, advance, state)[0]
    return _last_look(classifier, given, loss, walk)


def _descend_sparsely(classifier, given: Problem, start, radius, loss, steps, *, first) -> Walk:
    """The descent for p = 1: steps of few pixels, without momentum.

    With `first`, the number of pixels that `start` changes is ignored: first steps change STARTING_SHARE of all pixels.
    """
    pixels, period = start[0].size, jnp.maximum(4 * steps // 100, 1)
    different = geometry.norm(start, 0)
    known = jnp.zeros_like(different, bool) if first else different > 0

    def advance(i, state):
        walk, eta, count, before = state
        walk, _, gradient = _look(classifier, given, loss, walk)
        now, different = (i > 0) & (i % period == 0), geometry.norm(walk.best.r, 0)
        fewer = now & (different < FEWER * before)
        smaller = jnp.where(now, jnp.maximum(eta / SHRINK, SMALLEST * radius), eta)
        eta = jnp.where(fewer, radius, smaller)
        count, before = jnp.where(now, different / SHRINK, count), jnp.where(now, different, before)
        r = given.where(fewer, walk.best.r, walk.r)
        direction = geometry.sparse_direction(given.where(fewer, walk.slope, gradient), count)
        r = geometry.project_ball_in_box(r - given.per_image(eta) * direction, given.images, radius, 1)
        return walk._replace(r=r), eta, count, before

    count = jnp.where(known, different / SHRINK, STARTING_SHARE * pixels)
    state = (_begin(start), radius, count, jnp.where(known, different, pixels))
    walk = jax.lax.fori_loop(0, steps, advance, state)[0]
    return _last_look(classifier, given, loss, walk)
