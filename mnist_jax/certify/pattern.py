"""Linear programs over the images of one activation pattern, for which a network of ramps is an affine function.

What they say proves nothing, as they solve in floating point what was rounded already: their multipliers are for
`domains.bounded`, whose bound holds whatever they are, and their images are tried.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize

from mnist_jax.geometry import INF

ITERATIONS = (
    20_000  # of the simplex method, after which there is no solution: not seconds, so that it is the same again
)


class Affine(NamedTuple):
    """Affine functions of an image, `at + coefficients . (x - image)`.

    Attributes:
      coefficients: `[N, pixels]`.
      at: `[N]`, at the image.
    """

    coefficients: np.ndarray
    at: np.ndarray


def least_lead(
    lead: Affine, steps: Affine, signs: np.ndarray, image: np.ndarray, radius: float, norm: float
) -> tuple[np.ndarray | None, np.ndarray] | None:
    """The image of least lead within the radius for which the steps have these signs `[N]`, none for a sign of 0.

    Returns:
      the image `[pixels]`, or None where there is no such image, and a multiplier of at least 0 for each step `[N]`;
      None where no solution was found.
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
    if found.status == 2 and count:  # how far at least the worst of the signs is missed, and by which of them
        missed = np.concatenate([-np.ones((count, 1)), np.zeros((len(sums), 1))])
        farthest = max(0.0, -float((signed.at[needed] - reach[needed]).min()))
        found = _solved(
            np.eye(1, len(cost) + 1, len(cost))[0], np.hstack([rows, missed]), most, np.append(room, farthest)
        )
        if found.status or found.fun <= 0:
            return None
        # Such a combination of them is negative everywhere; so much of it makes up for the least lead there could be.
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
    """The nearest image with a lead of `-below` at most for which the steps have these signs; None if there is none
    within the radius."""
    signed = _signed(steps, signs)
    needed = np.flatnonzero((signs != 0) & (signed.at < _reach(signed.coefficients, image, radius)))
    pixels = len(image)
    a = np.concatenate([-signed.coefficients[needed], lead.coefficients])
    rows = np.concatenate([a, -a, np.zeros((len(a), 1))], 1)
    most = np.concatenate([signed.at[needed], [-lead.at[0] - below]])
    room = np.minimum(np.concatenate([1 - image, image, [radius]]), radius)
    cost = np.ones(2 * pixels + 1)
    if norm == INF:  # the last variable bounds the others
        eye = np.eye(pixels)
        rows = np.concatenate([rows, np.concatenate([eye, eye, -np.ones((pixels, 1))], 1)])
        most = np.concatenate([most, np.zeros(pixels)])
        cost[:-1] = 0
    else:
        room[-1] = 0
    found = _solved(cost, rows, most, room)
    return None if found.status else image + found.x[:pixels] - found.x[pixels : 2 * pixels]


def _solved(cost: np.ndarray, rows: np.ndarray, most: np.ndarray, room: np.ndarray) -> optimize.OptimizeResult:
    """Of variables from 0 to their room, whose rows are at most so much, those of least cost."""
    bounds = np.stack([np.zeros_like(room), room], 1)
    return optimize.linprog(cost, rows, most, bounds=bounds, options={"maxiter": ITERATIONS})


def _signed(steps: Affine, signs: np.ndarray) -> Affine:
    return Affine(steps.coefficients * signs[:, None], steps.at * signs)


def _reach(coefficients: np.ndarray, image: np.ndarray, radius: float) -> np.ndarray:
    """By how much affine functions fall at most, in the box of the radius."""
    up, down = np.minimum(1 - image, radius), np.minimum(image, radius)
    return np.maximum(-coefficients, 0) @ up + np.maximum(coefficients, 0) @ down
