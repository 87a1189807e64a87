"""A drawing made into an image like those of MNIST, which is what the networks know."""

import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.networks import IMAGE_SHAPE

BOX = 20  # pixels, the longer side of a digit of MNIST
CENTRE = 14  # row and column of MNIST's centres of mass, to half a pixel


def digit(drawing: np.ndarray) -> np.ndarray:
    """The drawing as an image of MNIST: anti-aliased in a box of 20x20 pixels, its centre of mass amid 28x28.

    LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III.A: what is drawn is cut
    out, scaled to fit the box with its aspect ratio kept, which leaves grey levels, and shifted by whole pixels. Each
    pixel gets the mean of the area of the drawing that it covers. A digit of MNIST drawn larger becomes itself again.

    Args:
      drawing: uint8 `[H, W]`, bright strokes on black, of any size.

    Returns:
      uint8 `[28, 28, 1]`.

    Raises:
      InputError: nothing is drawn.
    """
    rows, columns = (np.flatnonzero(drawing.any(axis)) for axis in (1, 0))
    if not len(rows):
        raise InputError("nothing is drawn yet: draw a digit, or take one of val")
    cut = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(BOX * side / max(cut.shape))) for side in cut.shape)
    small = _means(height, cut.shape[0]) @ cut @ _means(width, cut.shape[1]).T
    image = np.zeros(IMAGE_SHAPE[:2], np.uint8)
    top, left = (_start(small.sum(1 - axis), image.shape[axis]) for axis in (0, 1))
    image[top : top + height, left : left + width] = np.rint(small)
    return image[..., None]


def _means(count: int, length: int) -> np.ndarray:
    """The matrix `[count, length]` that takes means over `count` equal parts of a line of `length` pixels."""
    ends = np.linspace(0, length, count + 1)[:, None]
    covered = np.diff(np.clip(ends - np.arange(length), 0, 1), axis=0)  # of each pixel by each part
    return covered * count / length


def _start(masses: np.ndarray, length: int) -> int:
    """Where along a line of `length` pixels these begin, so that their centre of mass is at `CENTRE`, if they fit."""
    centre = float(masses @ np.arange(len(masses)) / masses.sum())
    return min(max(round(CENTRE - centre), 0), length - len(masses))
