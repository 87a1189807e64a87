"""Sliding windows along one axis, as in convolutions and pooling."""

from typing import NamedTuple

import jax
import numpy as np
from jax import lax


class Span(NamedTuple):
    """Sliding windows along an axis.

    Attributes:
      axis: the axis of the array.
      size: number of pixels in a window.
      stride: distance in pixels from one window to the next.
      dilation: distance in pixels from one pixel of a window to the next.
    """

    axis: int
    size: int
    stride: int = 1
    dilation: int = 1

    def count(self, length: int) -> int:
        """The number of windows in an axis of a length."""
        return (length - self.dilation * (self.size - 1) - 1) // self.stride + 1

    def at(self, x: jax.Array, place: int) -> jax.Array:
        """The pixels at one position of every window."""
        start = place * self.dilation
        end = start + self.stride * (self.count(x.shape[self.axis]) - 1) + 1
        return lax.slice_in_dim(x, start, end, self.stride, self.axis)

    def apart(self, x: jax.Array) -> jax.Array | None:
        """The array with its axis split into windows and their pixels; None where windows overlap or are dilated."""
        length = x.shape[self.axis]
        count = self.count(length)
        if self.dilation > 1 or (self.size > self.stride and count > 1):
            return None
        step = self.stride if count > 1 else self.size
        pads = [(0, step * count - length if axis == self.axis else 0, 0) for axis in range(x.ndim)]
        x = lax.pad(x, np.zeros((), x.dtype), pads)
        x = x.reshape(*x.shape[: self.axis], count, step, *x.shape[self.axis + 1 :])
        return lax.slice_in_dim(x, 0, self.size, axis=self.axis + 1)
