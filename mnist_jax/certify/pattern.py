"""Linear programs over the images of one activation pattern, on which a network of ramps is an affine function.

A solver's result is not a proof, because it solves a rounded problem in floating point. Its multipliers are passed to
`domains.bounded`, whose bound holds for any multipliers, and its images are judged by the classifier.
"""

from typing import Any, NamedTuple

import numpy as np

from mnist_jax.geometry import INF

# Iterations of HiGHS after which a program counts as unsolved; chosen. A limit in seconds would not be reproducible.
ITERATIONS = 20_000


class Affine(NamedTuple):
    """Affine functions of an image x, as `at + coefficients @ (x - image)` with the original image.

    Attributes:
      coefficients: `[N, pixels]`.
      at: `[N]`, the values at the original image.
    """

    coefficients: np.ndarray
    at: np.ndarray


def least_lead(
    lead: Affine, steps: Affine, signs: np.ndarray, image: np.ndarray, radius: float, norm: float
) -> tuple[np.ndarray | None, np.ndarray] | None:
    """Minimizes the lead over the images within the radius at which ramps have given signs.

    Args:
      lead: one affine function.
      steps: the differences of the ramps, N affine functions.
      signs: `[N]`, 1, -1, or 0 for any.
      image: the original, `[pixels]`.
      radius, norm: the ball; norm is 1 or inf.

    Returns:
      None where the solver found no solution; else the image `[pixels]`, and multipliers `[N]` of at least 0 for the
      signs. Where no image has these signs, the image is None, and with the multipliers the bound of the lead is
      positive.
    """
    signed = _signed(steps, signs)
    reach = _reach(signed.coefficients, image, radius)
    needed = np.flatnonzero((signs != 0) & (signed.at < reach))
    a = signed.coefficients[needed]
    sums = [np.ones((1, 2 * len(image)))] if norm == 1 else []
    rows = np.concatenate([np.concatenate([-a, a], 1), *sums])
    most = np.concatenate([signed.at[needed], [radius] * len(sums)])
    room = np.minimum(np.concatenate([1 - image, image]), radius)
    cost = np.concatenate([lead.coefficients[0], -lead.coefficients[0]])
    found = _solved(cost, rows, most, room)
    multipliers, count = np.zeros(len(signs)), len(needed)
    if found.status == 2 and count:  # infeasible: minimize the largest violation of a sign; its multipliers show why
        missed = np.concatenate([-np.ones((count, 1)), np.zeros((len(sums), 1))])
        farthest = max(0.0, -float((signed.at[needed] - reach[needed]).min()))
        found = _solved(
            np.eye(1, len(cost) + 1, len(cost))[0], np.hstack([rows, missed]), most, np.append(room, farthest)
        )
        if found.status or found.fun <= 0:
            return None
        # This combination of the differences is negative everywhere; enough of it outweighs the least possible lead.
        enough = 2 * max(0.0, float(_reach(lead.coefficients, image, radius)[0] - lead.at[0])) / found.fun
        multipliers[needed] = -enough * found.ineqlin.marginals[:count]
        return None, np.maximum(multipliers, 0)
    if found.status:
        return None
    multipliers[needed] = np.maximum(-found.ineqlin.marginals[:count], 0)
    return image + found.x[: len(image)] - found.x[len(image) :], multipliers


def nearest(
    lead: Affine, steps: Affine, signs: np.ndarray, image: np.ndarray, radius: float, norm: float, below: float
) -> np.ndarray | None:
    """The image nearest to the original with a lead of at most `-below` at which the ramps have given signs.

    Arguments as in `least_lead`. None if there is no such image within the radius, or the solver found none.
    """
    signed = _signed(steps, signs)
    needed = np.flatnonzero((signs != 0) & (signed.at < _reach(signed.coefficients, image, radius)))
    pixels = len(image)
    a = np.concatenate([-signed.coefficients[needed], lead.coefficients])
    rows = np.concatenate([a, -a, np.zeros((len(a), 1))], 1)
    most = np.concatenate([signed.at[needed], [-lead.at[0] - below]])
    room = np.minimum(np.concatenate([1 - image, image, [radius]]), radius)
    cost = np.ones(2 * pixels + 1)
    if norm == INF:  # the last variable bounds the change of every pixel
        eye = np.eye(pixels)
        rows = np.concatenate([rows, np.concatenate([eye, eye, -np.ones((pixels, 1))], 1)])
        most = np.concatenate([most, np.zeros(pixels)])
        cost[:-1] = 0
    else:
        room[-1] = 0
    found = _solved(cost, rows, most, room)
    return None if found.status else image + found.x[:pixels] - found.x[pixels : 2 * pixels]


def _solved(cost: np.ndarray, rows: np.ndarray, most: np.ndarray, room: np.ndarray) -> Any:
    """SciPy's result of minimizing `cost @ v` over variables `0 <= v <= room` with `rows @ v <= most`, by HiGHS."""
    from scipy import optimize  # here, as it would be a fifth of the time of `import mnist_jax`

    bounds = np.stack([np.zeros_like(room), room], 1)
    return optimize.linprog(cost, rows, most, bounds=bounds, options={"maxiter": ITERATIONS})


def _signed(steps: Affine, signs: np.ndarray) -> Affine:
    return Affine(steps.coefficients * signs[:, None], steps.at * signs)


def _reach(coefficients: np.ndarray, image: np.ndarray, radius: float) -> np.ndarray:
    """The most by which affine functions fall below their value at the image, over the Linf ball and the box."""
    up, down = np.minimum(1 - image, radius), np.minimum(image, radius)
    return np.maximum(-coefficients, 0) @ up + np.maximum(coefficients, 0) @ down
