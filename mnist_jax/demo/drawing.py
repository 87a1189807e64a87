"""Convert a drawing into an image like those of MNIST, which the networks were trained on."""

import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.networks import IMAGE_SHAPE

BOX = 20  # length in pixels of the longer side of MNIST's digits
CENTRE = 14  # row and column, to half a pixel, of the centre of mass of MNIST's digits


def digit(drawing: np.ndarray) -> np.ndarray:
    """The drawing scaled to a box of 20x20 pixels, with its centre of mass in the middle of 28x28 pixels, as in MNIST.

    LeCun et al., "Gradient-based learning applied to document recognition", 1998, section III.A: the part with strokes
    is cut out, scaled to fit the box with its aspect ratio kept, which makes grey levels, and shifted by whole pixels.
    Each pixel is the mean of the area of the drawing that it covers. An enlarged digit of MNIST gives that digit again.

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
    covered = np.diff(np.clip(ends - np.arange(length), 0, 1), axis=0)  # share of each pixel in each part
    return covered * count / length


def _start(masses: np.ndarray, length: int) -> int:
    """Where the masses must begin in a line of `length` pixels to have their centre at `CENTRE`, or as near as fits."""
    centre = float(masses @ np.arange(len(masses)) / masses.sum())
    return min(max(round(CENTRE - centre), 0), length - len(masses))
