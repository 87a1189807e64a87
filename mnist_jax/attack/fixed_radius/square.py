"""Square: a random search that asks for logits only."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax import arguments, geometry, losses
from mnist_jax.attack.engine import driver
from mnist_jax.attack.engine.driver import Found
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.problem import CAREFUL, Asked, Problem
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.engine.starts import fixed
from mnist_jax.attack.engine.windows import index_of, plane_of, shrinking, stripes
from mnist_jax.classifier import Classifier

METHOD = Method(
    (1, 2, geometry.INF),
    "a random search that asks for logits only",
    "Andriushchenko et al. 2020",
)

# For p = 1 and 2, as in the authors' implementation:
TILES = 5  # tiles in each direction, a pair of bumps in each, that the starting point is made of
SMALLEST = 3  # least side of a window, in pixels


def square(
    classifier: Classifier,
    images: ArrayLike,
    labels: ArrayLike | None,
    radius: ArrayLike,
    *,
    norm: float = geometry.INF,
    queries: int = 5000,
    share: float = 0.8,
    schedule: int | None = None,
    targets: ArrayLike | None = None,
    key: jax.Array | None = None,
) -> AttackResult:
    """Changes a square window of the perturbation at random, and keeps the change where it lowers the loss.

    For p = inf the perturbation in the window is set to plus or minus the radius, in each channel by a random sign; it
    starts as vertical stripes of plus and minus the radius (Andriushchenko et al., "Square attack: a query-efficient
    black-box adversarial attack via random search", 2020, algorithm 2). For p = 2 two bumps of opposite sign are added
    in the window, where the norm grows by that in a second random window, which is set to zero (algorithm 3); for p = 1
    the same with steeper bumps, as in AutoAttack. The loss is the margin, or with targets the log-odds, which are
    higher exactly where the target's cross-entropy, the paper's loss, is lower.

    Windows are drawn for each image. They may touch the last row and column, which those of the public implementation
    never do; and for p = 2 the perturbation has the whole radius after it is clipped to the box, while the public
    implementation clips last and so loses some of the norm.

    Args:
      classifier, images, labels, radius, targets: see `pgd`. An image `[H, W, ...]` has windows in its first two axes;
        a vector has intervals.
      norm: p, 1, 2 or inf.
      queries: the most evaluations of the classifier for each image.
      share: the share of all pixels that the first windows cover. Later windows are smaller.
      schedule: the number of queries over which windows shrink; None means `queries`.
      key: a `jax.random` key, or one for each image; None means key 0.

    Returns:
      An `AttackResult`. Its `forwards` are the queries that it took to break an image, and two to check it.

    Raises:
      ValueError: an argument is out of its range.
    """
    norm = METHOD.check_norm(norm)
    arguments.counts(queries=queries, schedule=schedule)
    arguments.numbers(0, 1, above=True, share=share)
    asked = Asked(classifier, images, labels, targets, fixed(key))
    how: dict[str, Any] = {"queries": queries, "share": float(share), "schedule": schedule or queries}
    return driver.run(kernel, asked, norm=norm, each={"radius": radius}, **how)


def kernel(classifier, given: Problem, keys, *, norm, radius, queries, share, schedule) -> Found:
    x = given.images
    plane = plane_of(x.shape[1:])
    loss = losses.margin if given.targets is None else losses.log_odds
    start, change = (stripes, _paint) if norm == geometry.INF else (partial(_tiles, norm), partial(_move, norm))
    onto = geometry.scale_to_sphere_in_box if norm == 2 else geometry.project_ball_in_box
    windows = _windows(plane, norm, share, schedule)

    def ask(r):
        logits = classifier(given.at(r))
        return given.objective(logits, loss), given.adversarial(logits, CAREFUL)

    def attempt(state):
        i, r, value, broken, used = state
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        new = jax.vmap(partial(change, windows, i))(here, r.reshape(-1, *plane), radius)
        new = onto(new.reshape(x.shape), x, radius, norm)
        lower, breaks = ask(new)
        take = ~broken & ((lower < value) | breaks)
        used = used + jnp.where(broken, 0, 1)
        return i + 1, given.where(take, new, r), jnp.where(take, lower, value), broken | breaks & take, used

    first = jax.vmap(partial(start, plane))(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), radius)
    r = onto(first.reshape(x.shape).astype(x.dtype), x, radius, norm)
    state = (jnp.int32(1), r, *ask(r), jnp.ones(len(radius), jnp.int32))
    _, r, _, _, used = jax.lax.while_loop(lambda state: (state[0] < queries) & ~state[3].all(), attempt, state)
    return Found(r, gradients=0, forwards=used)


def _windows(plane, norm, share, schedule):
    """The windows in the course of the search.

    Returns:
      The number of queries in which they shrink; height and width of each size `[sizes, 2]`; and for p < inf the bumps
      that fill a window of each size in the corner of a plane, one above the other and side by side
      `[sizes, 2, H, W]`.
    """
    height, width, _ = plane
    sizes = shrinking(plane, share, 1 if norm == geometry.INF else SMALLEST)  # bumps have a middle pixel
    if norm == geometry.INF:
        return schedule, jnp.array(sizes), None
    bumps = np.zeros((len(sizes), 2, height, width))
    for place, (h, w) in zip(bumps, sizes, strict=True):
        place[0, :h, :w], place[1, :h, :w] = _bumps(h, w, norm), _bumps(w, h, norm).T
    return schedule, jnp.array(sizes), jnp.array(bumps, jnp.result_type(float))


def _bumps(h: int, w: int, norm: float) -> np.ndarray:
    """A positive bump above a negative one, together of p-norm 1 `[h, w]`."""
    both = np.concatenate([_bump(h // 2, w, norm), -_bump(h - h // 2, w, norm)])
    return both / np.linalg.norm(both.ravel(), norm)


def _bump(h: int, w: int, norm: float) -> np.ndarray:
    """A bump of p-norm 1 `[h, w]`: the sum of concentric squares of sides 1, 3, 5, ..., the n-th of height 1 / n^2.

    For p = 1 it is of height 1 / n^4.
    """
    down, across = np.abs(np.arange(h) - h // 2), np.abs(np.arange(w) - w // 2)
    sizes = np.arange(1, max(h // 2, w // 2) + 2)
    totals = (1.0 / sizes ** (4 if norm == 1 else 2))[::-1].cumsum()[::-1]
    bump = totals[np.maximum(down[:, None], across[None])]
    return bump / max(np.linalg.norm(bump.ravel(), norm), 1e-12)


def _tiles(norm, plane, key, radius):
    """The first perturbation for p = 1 and 2, `[H, W, C]`: tiles of pairs of bumps, each pair of p-norm 1.

    The direction of each pair and its sign are random. Their norm altogether is not yet the radius.
    """
    height, width, channels = plane
    h, w = max(height // TILES, 1), max(width // TILES, 1)
    down, across = height // h, width // w
    kinds = jnp.array(np.stack([_bumps(h, w, norm), _bumps(w, h, norm).T]), radius.dtype)
    turn, sign = jax.random.split(key)
    tiles = kinds[jax.random.bernoulli(turn, shape=(down, across)).astype(int)]
    signs = jax.random.rademacher(sign, (down, across, channels), radius.dtype)
    whole = jnp.einsum("ijhw,ijc->ihjwc", tiles, signs, precision="highest").reshape(down * h, across * w, channels)
    above, left = (height - down * h) // 2, (width - across * w) // 2
    return jnp.zeros(plane, radius.dtype).at[above : above + down * h, left : left + across * w].set(whole)


def _place(key, plane, size):
    """A random window of this size: its first row and column, and a mask of its pixels `[H, W, 1]`."""
    rows, columns = jnp.arange(plane[0]), jnp.arange(plane[1])
    corner = jax.random.randint(key, (2,), 0, jnp.array(plane[:2]) - size + 1)
    inside = [(line >= at) & (line < at + long) for line, at, long in zip((rows, columns), corner, size, strict=True)]
    return corner, (inside[0][:, None] & inside[1][None])[..., None]


def _paint(windows, i, key, r, radius):
    """The perturbation `r [H, W, C]`, changed for query i, for p = inf: one value for each channel in a window."""
    schedule, sizes, _ = windows
    where, sign = jax.random.split(key)
    _, window = _place(where, r.shape, sizes[index_of(i, schedule)])
    return jnp.where(window, radius * jax.random.rademacher(sign, (1, 1, r.shape[2]), r.dtype), r)


def _move(norm, windows, i, key, r, radius):
    """The perturbation `r [H, W, C]`, changed for query i, for p = 1 and 2.

    The norm of the `source` window and what `r` lacks of the radius are given to the window at `to`, which gets a pair
    of bumps besides; the `source` window is set to zero.
    """
    schedule, sizes, bumps = windows
    now = index_of(i, schedule)
    to, source, turn, sign = jax.random.split(key, 4)
    corner, window = _place(to, r.shape, sizes[now])
    _, emptied = _place(source, r.shape, sizes[now])

    def power(a):  # the p-norm of each channel, to the power p
        return (jnp.abs(a) ** norm).sum((0, 1), keepdims=True)

    def unit(a):
        size = power(a) ** (1 / norm)
        return a / jnp.where(size > 0, size, 1)

    bump = jnp.roll(bumps[now, jax.random.bernoulli(turn).astype(int)], corner, (0, 1))[..., None]
    signs = jax.random.rademacher(sign, (1, 1, r.shape[2]), r.dtype)
    new = unit(bump.astype(r.dtype) * signs + unit(jnp.where(window, r, 0)))
    left = jnp.maximum(radius**norm - power(r).sum(), 0) / r.shape[2]
    new = new * (left + power(jnp.where(window | emptied, r, 0))) ** (1 / norm)
    return jnp.where(window, new, jnp.where(emptied, 0, r))
