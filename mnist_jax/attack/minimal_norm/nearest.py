"""The nearest adversarial image: along averaged linearizations of the boundary, from one start after another."""

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

EFFORTS = {"fast": 100, "standard": 350, "thorough": 4000}  # gradients for each image
EFFORTS_FOR_1 = {"fast": 200, "standard": 600, "thorough": 8000}  # where many runs come to nothing


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
    """Looks for the adversarial image of least p-norm, as near to the nearest there is as the effort allows:

        minimize norm_p(r)  such that  classifier(x + r) is not the label  and  x + r in [0, 1]

    A step linearizes the margin m at r, averages with the linearizations of the steps before, and goes a part α of the
    way to the perturbation of least norm that crosses the averaged boundary inside the box:

        c <- β c + (1 - β) (m(r) - <grad m(r), r>),   g <- β g + (1 - β) grad m(r)
        r <- r + α (s - r),   s = argmin norm_p(s)  such that  c + <g, s> <= 0  and  x + s in [0, 1]

    The average is what makes it converge: margins of networks have kinks at their nearest points, where the last
    linearization alone points now here, now there (as in dual averaging, Nesterov 2009, which averages the gradients of
    a convex objective). α falls from 0.9 to 0.1. A run of 20 steps ends by a search along the line through its last
    perturbation. More of them follow from other starts (`descents.search`), and more effort never gives a farther
    image.

    Args:
      classifier, images, labels: see `fixed_norm`.
      norm: p, in [1, inf].
      effort: `"fast"`, `"standard"`, `"thorough"` (at most 100, 350, 4000 gradients for each image; for p = 1 200, 600,
        8000), or how many gradients at most; the first steps and one run, 59 gradients for ten classes, are always
        taken.
      key: a `jax.random` key for the disturbances, or one for each image; None means a fixed one.
      targets: `[B]`, the classes to reach; None means any but the label.

    Returns:
      An `AttackResult`; its `gradients` are what each image used.

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
    found = descents.search(classifier, given, key, norm=norm, budget=budget, walks=True)
    return Found(found.r, found.gradients, found.forwards, allowed=found.best.found)
