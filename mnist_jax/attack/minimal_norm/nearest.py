"""The nearest adversarial image: steps to averaged linearizations of the decision boundary, and a random search."""

from functools import partial

import jax
from jax.typing import ArrayLike

from mnist_jax import arguments
from mnist_jax.attack.engine import descents, driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.classifier import Classifier

METHOD = Method(
    None,
    "along averaged linearizations of the boundary, from one start after another (`--effort`)",
)

EFFORTS = {"fast": 100, "standard": 350, "thorough": 4000}  # the most gradients for each image; chosen, not tuned
EFFORTS_FOR_1 = {
    "fast": 200,
    "standard": 600,
    "thorough": 8000,
}  # the same for p = 1, where many runs find no nearer image


def nearest(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    norm: float = 2,
    effort: str | int = "standard",
    key: jax.Array | None = None,
    targets: ArrayLike | None = None,
) -> AttackResult:
    """Searches for the adversarial image at the least distance from the image, in the p-norm:

        minimize norm_p(r)  such that  classifier(x + r) is not the label  and  x + r in [0, 1]

    A step linearizes the margin m at the perturbation r, averages this linearization with those of the steps before,
    and moves r by the share α towards the perturbation of least norm, inside the box, that crosses the averaged
    boundary:

        c <- β c + (1 - β) (m(r) - <grad m(r), r>),   g <- β g + (1 - β) grad m(r)
        r <- r + α (s - r),   s = argmin norm_p(s)  such that  c + <g, s> <= 0  and  x + s in [0, 1]

    Without the average the steps would not converge: the margin of a network often has a kink at the nearest point of
    its boundary, around which the gradient jumps (compare dual averaging, Nesterov 2009, which averages the gradients
    of a convex objective). α falls from 0.9 to 0.1. A run is 20 such steps and a search for the boundary along the
    line through the last perturbation. More runs follow from other starting points (`descents.run_all`). Where the runs
    of an image disagree, as where gradients are masked, a random search of square windows, as in `square`, takes a
    share of the effort (`windows.search`), unless it finds nothing nearer: of windows of the best perturbation, and for
    p = inf, after 5 and 48 runs, also from stripes. More effort never gives a farther image.
    For small networks `mnist_jax.bracket` starts at the image found here and looks for nearer ones exactly.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      effort: `"fast"`, `"standard"`, `"thorough"` (at most 100, 350, 4000 gradients for each image; for p = 1 200, 600,
        8000), or the largest number of gradients. Three evaluations of the random search count as one gradient; those
        of a search from stripes that begins well, up to 3,000 each, are taken besides. The first steps and one run, 59
        gradients for ten classes, are always taken.
      key: a `jax.random` key for what is random, or one for each image; None means a fixed one.
      targets: `[B]`, the classes to reach; None means any but the label.

    Returns:
      An `AttackResult`; its `gradients` and `forwards` are what each image used.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    if isinstance(effort, str) and effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, or a number of gradients, not {effort!r}")
    budget = (EFFORTS_FOR_1 if norm == 1 else EFFORTS)[effort] if isinstance(effort, str) else effort
    arguments.counts(effort=budget)
    asked = Asked(classifier, images, labels, targets, key)
    return driver.in_stages(partial(_search, norm=norm, budget=budget), asked, norm=norm)


def _search(classifier: Classifier, given: Problem, key: jax.Array | None, *, norm: float, budget: int) -> Found:
    found = descents.run_all(classifier, given, key, norm=norm, budget=budget, walks=True)
    return Found(found.r, found.gradients, found.forwards, allowed=found.best.found)
