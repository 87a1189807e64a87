"""Programs cut down to the receptive field of a block of neighbouring entries of a value.

An entry of a convolution depends on a few pixels. The program of a block is cut down to those entries of the image, and
of every value in between, on which the block depends. It is the same program for all blocks of one shape, applied to
other parts of each value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_jax.jaxprs import affine, convolution
from mnist_jax.jaxprs.program import Equation, Program

# Affine primitives each of whose result's entries depends on the same entry of the operands, as in all nonlinear ones.
ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "neg"}
WORTH = 0.5  # largest share of all entries that windows may have, for a cut to save time; chosen by hand


class Extent(NamedTuple):
    """A window along one axis: `size` entries from `start + step * corner[axis]` on, some maybe outside of the value.

    Attributes:
      axis: axis of the block with whose corner the window moves.
      step: entries by which the window moves for each entry that the corner moves; 0 where it does not move.
      start: first entry of the window of a block whose corner is 0.
      size: number of entries.
      last: the largest coordinate of the corner along `axis`.
    """

    axis: int
    step: int
    start: int
    size: int
    last: int


Window = tuple[Extent, ...]
Windows = dict[int, Window]  # windows of values, by their numbers


@dataclass
class View:
    """The receptive field of a block, as a program of its own.

    Attributes:
      block: shape of the block.
      program: the equations that the block depends on, of values as large as their windows.
      image: window of the image.
      targets: numbers in this program of the values that the block is cut out of, by their numbers in the whole one.
      steps: nonlinear operations, by their index in this program: their index in the whole one, and the window of the
        result.
      constants: constants that are cut, by their number in this program: their number in the whole one, the window, and
        the shape of the value that it belongs to.
      masks: constants that are 1 inside of a value and 0 outside, by number: the window and the value's shape.
    """

    block: tuple[int, ...]
    program: Program
    image: Window
    targets: dict[int, int] = field(default_factory=dict)
    steps: dict[int, tuple[int, Window]] = field(default_factory=dict)
    constants: dict[int, tuple[int, Window, tuple[int, ...]]] = field(default_factory=dict)
    masks: dict[int, tuple[Window, tuple[int, ...]]] = field(default_factory=dict)


def view(program: Program, place: int, numbers: Sequence[int], most: int) -> View | None:
    """The receptive field of blocks of values; None where it is not known, or is most of the program.

    Args:
      program: the whole program.
      place: index of an equation; the values are results of equations before it.
      numbers: numbers of the values, which have one shape.
      most: largest number of entries in a block, unless an axis along which blocks cannot be cut is longer.
    """
    shape = program.shapes[numbers[0]].shape
    # Blocks are not cut along axes where receptive fields do not move with them, as along channels.
    moving = [i for i in range(len(shape)) if shape[i] > 1 and _seen(program, place, numbers, _changed(shape, i, 1))]
    block = tuple(1 if i in moving else length for i, length in enumerate(shape))
    while 2 * math.prod(block) <= most and (short := [i for i in moving if 2 * block[i] <= shape[i]]):
        axis = min(short, key=block.__getitem__)
        block = _changed(block, axis, 2 * block[axis])
    windows = _seen(program, place, numbers, block)
    if windows is None:
        return None
    part = sum(math.prod(extent.size for extent in window) for window in windows.values())
    whole = sum(math.prod(program.shapes[n].shape) for n in windows)
    return _Cutting(program, windows, block).view(place, numbers) if part <= WORTH * whole else None


def _changed(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    return tuple(length if i == axis else n for i, n in enumerate(shape))


def receptive_fields(program: Program, place: int, numbers: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Which pixels entries of values depend on, for B groups of L entries each; None where it is not known, or is most.

    Arguments are those of `view`.

    Returns:
      flat indices of the entries `[B, L]`, and of the Q pixels that a group may depend on `[B, Q]`, with the number of
      all pixels for those outside of the image.
    """
    if (field_ := view(program, place, numbers, 1)) is None:
        return None
    shape, image = program.shapes[numbers[0]].shape, program.shapes[program.image].shape
    entries = blocks(shape, field_.block)
    corners = np.unravel_index(entries[:, 0], shape)
    pixels, outside = np.zeros((len(entries), 1), int), np.zeros((len(entries), 1), bool)
    for extent, length in zip(field_.image, image, strict=True):
        along = extent.start + extent.step * corners[extent.axis][:, None] + np.arange(extent.size)
        out = (along < 0) | (along >= length)
        pixels = (pixels[:, :, None] * length + along[:, None]).reshape(len(entries), -1)
        outside = (outside[:, :, None] | out[:, None]).reshape(len(entries), -1)
    return entries, np.where(outside, math.prod(image), pixels)


def blocks(shape: Sequence[int], block: Sequence[int]) -> np.ndarray:
    """Flat indices `[K, L]` of the L entries of each of K blocks that together cover a value of a shape."""
    starts = [np.minimum(np.arange(0, n, b), n - b) for n, b in zip(shape, block, strict=True)]
    corner = np.ravel_multi_index(np.meshgrid(*starts, indexing="ij"), shape).reshape(-1, 1)
    return corner + np.ravel_multi_index(np.indices(block), shape).reshape(1, -1)


def cut(x: Any, window: Window, shape: Sequence[int], corner: jax.Array) -> Any:
    """The part of an array in the window of a block at a corner `[rank]`.

    Args:
      x: numbers for each entry of a value of shape `shape`; it may be a scalar, or have length 1 along some axes, and
        it may have axes after the value's. Outside of the value, the nearest number is given.
    """
    if not jnp.ndim(x):
        return x
    for axis, (extent, length) in enumerate(zip(window, shape, strict=True)):
        if x.shape[axis] != length or extent == _all_of(length):
            continue
        low, high = max(-extent.start, 0), max(extent.start + extent.step * extent.last + extent.size - length, 0)
        if low or high:
            x = jnp.pad(x, [(low, high) if i == axis else (0, 0) for i in range(x.ndim)], "edge")
        x = lax.dynamic_slice_in_dim(x, extent.start + low + extent.step * corner[extent.axis], extent.size, axis)
    return x


def inside(window: Window, shape: Sequence[int], corner: jax.Array, dtype: Any) -> jax.Array:
    """A mask of the window's size, for a block at a corner: 1 for entries inside of a value of a shape, 0 outside."""
    mask = jnp.ones([extent.size for extent in window], dtype)
    for axis, (extent, length) in enumerate(zip(window, shape, strict=True)):
        at = lax.broadcasted_iota(jnp.int32, mask.shape, axis) + extent.start + extent.step * corner[extent.axis]
        mask = jnp.where((at >= 0) & (at < length), mask, 0)
    return mask


def _seen(program: Program, place: int, numbers: Sequence[int], block: Sequence[int]) -> Windows | None:
    """The windows of all values that a block of values depends on; None where one of them is not known."""
    shape = program.shapes[numbers[0]].shape
    last = [n - b for n, b in zip(shape, block, strict=True)]
    own = tuple(Extent(i, 1, 0, b, n) if n else _all_of(b) for i, (b, n) in enumerate(zip(block, last, strict=True)))
    windows = dict.fromkeys(numbers, own)
    for equation in reversed(program.equations[:place]):
        window = windows.get(equation.results[0])
        if window is None:
            if any(n in windows for n in equation.results):
                return None
            continue
        needed = _needed(program, equation, window)
        if needed is None:
            return None
        for n in {n for n in equation.operands if n in program.depends}:
            both = _both(windows[n], needed) if n in windows else needed
            if both is None:
                return None
            windows[n] = both
    return windows if program.image in windows else None


def _all_of(length: int) -> Extent:
    return Extent(0, 0, 0, length, 0)


def _both(one: Window, other: Window) -> Window | None:
    """The smallest window that contains both; None where they move differently."""
    extents = []
    for a, b in zip(one, other, strict=True):
        if (a.axis, a.step) != (b.axis, b.step) and (a.step or b.step):
            return None
        start, end = min(a.start, b.start), max(a.start + a.size, b.start + b.size)
        extents.append(a._replace(start=start, size=end - start))
    return tuple(extents)


def _needed(program: Program, equation: Equation, window: Window) -> Window | None:
    """The window of an equation's operands on which a window of its result depends; None where that is not known."""
    shapes = [program.shapes[n].shape for n in equation.operands]
    dependent, params = affine.dependent(program, equation), equation.params
    result = program.shapes[equation.results[0]].shape
    if _elementwise(program, equation):
        alike = all(shape == result for shape, depends in zip(shapes, dependent, strict=True) if depends)
        return window if alike else None
    if equation.name == "slice":
        strides = params["strides"] or [1] * len(window)
        return tuple(map(_stretched, window, params["start_indices"], strides, [1] * len(window)))
    if equation.name == "pad" and dependent == (True, False):
        (low, high, between) = zip(*params["padding_config"], strict=True)
        return tuple(map(_moved, window, low)) if not any(between) and min(low + high) >= 0 else None
    if equation.name == "conv_general_dilated" and dependent[0] and convolution.is_plain(params, shapes[0]):
        return _under_kernel(window, result, shapes, params)
    return None


def _elementwise(program: Program, equation: Equation) -> bool:
    return equation.name in ELEMENTWISE or not affine.is_affine(program, equation)


def _moved(extent: Extent, by: int) -> Extent:
    return extent._replace(start=extent.start - by)


def _stretched(extent: Extent, start: int, stride: int, length: int) -> Extent:
    """The entries of an operand on which an extent of a result depends, where each entry has a sliding window.

    The windows have `length` entries; the first begins at `start`, and they move by the stride.
    """
    return extent._replace(
        step=stride * extent.step, start=start + stride * extent.start, size=stride * (extent.size - 1) + length
    )


def _under_kernel(window: Window, result: Sequence[int], shapes: Sequence[Sequence[int]], params: Any) -> Window | None:
    numbers = params["dimension_numbers"]
    (batch, channel, *spatial), (_, _, *sizes), (_, made, *results) = numbers
    if any(low or high for low, high in params["padding"]) or window[made] != _all_of(result[made]):
        return None
    extents = {batch: window[numbers.out_spec[0]], channel: _all_of(shapes[0][channel])}
    for axis, size, at, stride in zip(spatial, sizes, results, params["window_strides"], strict=True):
        extents[axis] = _stretched(window[at], 0, stride, shapes[1][size])
    return tuple(extents[axis] for axis in range(len(extents)))


class _Cutting:
    """Builds the program of a `View`."""

    def __init__(self, program: Program, windows: Windows, block: tuple[int, ...]):
        self.whole, self.windows = program, windows
        part = replace(program, equations=[], shapes=list(program.shapes), depends=set(windows))
        for n, window in windows.items():
            part.shapes[n] = self._shape(window, n)
        self.made = View(block, part, windows[program.image])

    def view(self, place: int, numbers: Sequence[int]) -> View:
        for at, equation in enumerate(self.whole.equations[:place]):
            if equation.results[0] in self.windows:
                self._equation(at, equation)
        for n in numbers:
            own = tuple(s._replace(start=0, size=b) for s, b in zip(self.windows[n], self.made.block, strict=True))
            self.made.targets[n] = self._part(n, own)
        return self.made

    def _shape(self, window: Window, like: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(tuple(extent.size for extent in window), self.whole.shapes[like].dtype)

    def _new(self, window: Window, like: int) -> int:
        self.made.program.shapes.append(self._shape(window, like))
        return len(self.made.program.shapes) - 1

    def _sliced(self, number: int, window: Window, strides: Sequence[int], line: str) -> Equation:
        """An equation, without results yet, that slices a window out of the window that is kept of a value."""
        starts = tuple(b.start - a.start for a, b in zip(self.windows[number], window, strict=True))
        limits = tuple(start + extent.size for start, extent in zip(starts, window, strict=True))
        params = {"start_indices": starts, "limit_indices": limits, "strides": tuple(strides)}
        return Equation("slice", lax.slice_p, (number,), (), params, line)

    def _part(self, number: int, window: Window) -> int:
        """The number of a part of a value: a window inside of the one that is kept of it."""
        if self.windows[number] == window:
            return number
        result = self._new(window, number)
        self.made.program.depends.add(result)
        equation = self._sliced(number, window, [1] * len(window), "a part of a window")
        self.made.program.equations.append(replace(equation, results=(result,)))
        return result

    def _equation(self, at: int, equation: Equation) -> None:
        (result,), depends = equation.results, self.whole.depends
        first, window = equation.operands[0], self.windows[result]
        needed = _needed(self.whole, equation, window)
        assert needed is not None
        if equation.name == "slice":
            strides = equation.params["strides"] or [1] * len(window)
            equation = replace(self._sliced(first, needed, strides, equation.line), results=(result,))
        elif equation.name == "pad":  # the padding is constant: its coefficients are masked
            mask = self._new(window, result)
            self.made.masks[mask] = needed, self.whole.shapes[first].shape
            operands = (self._part(first, needed), mask)
            equation = replace(equation, name="mul", primitive=lax.mul_p, operands=operands, params={})
        else:
            elementwise = _elementwise(self.whole, equation)
            parts = [
                self._part(n, needed) if n in depends else self._constant(n, result) if elementwise else n
                for n in equation.operands
            ]
            if not affine.is_affine(self.whole, equation):
                self.made.steps[len(self.made.program.equations)] = at, window
            equation = replace(equation, operands=tuple(parts))
        self.made.program.equations.append(equation)

    def _constant(self, number: int, result: int) -> int:
        """The number of a constant operand, cut to the window of the result with which it is added or multiplied."""
        if not self.whole.shapes[number].shape:
            return number
        new = self._new(self.windows[result], number)
        self.made.constants[new] = number, self.windows[result], self.whole.shapes[result].shape
        return new
