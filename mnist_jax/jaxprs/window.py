"""What a block of neighbouring entries of a value sees of the image, and of every value on the way to it.

An entry of a convolution is made of a few pixels. A program that is cut down to these, and to what is made of them on
the way to the entry, is a small one, and the same for blocks anywhere: it only lies elsewhere in each value.
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

# Equations whose every entry is made of the same entries of their operands, besides all that are not affine.
ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "neg"}
WORTH = 0.5  # share of all entries that windows have at most, to be less work than the whole


class Span(NamedTuple):
    """Along one axis, `size` entries from `start + step * corner[axis]` on; some of them may be outside of the value.

    Attributes:
      axis: of the block, by whose corner it moves.
      step: 0 where it doesn't.
      last: the largest place of the corner.
    """

    axis: int
    step: int
    start: int
    size: int
    last: int


Window = tuple[Span, ...]
Windows = dict[int, Window]  # by the number of the value


@dataclass
class View:
    """What a block sees, as a program of its own.

    Attributes:
      block: its shape.
      program: the equations that matter, of values as large as their windows.
      targets: in it, numbers of the values that the block is cut out of, by their numbers in the whole.
      image: window of the image.
      steps: of nonlinear steps, by their place in it, the place in the whole and the window of the result.
      constants: those that are cut, by their number in it: the number in the whole, the window, and of what shape.
      masks: numbers of constants that are 1 inside of a value and 0 outside, with the window and the value's shape.
    """

    block: tuple[int, ...]
    program: Program
    image: Window
    targets: dict[int, int] = field(default_factory=dict)
    steps: dict[int, tuple[int, Window]] = field(default_factory=dict)
    constants: dict[int, tuple[int, Window, tuple[int, ...]]] = field(default_factory=dict)
    masks: dict[int, tuple[Window, tuple[int, ...]]] = field(default_factory=dict)


def view(program: Program, place: int, numbers: Sequence[int], most: int) -> View | None:
    """What blocks see, of about so many entries of values before an equation; None where it is nearly everything.

    Args:
      numbers: of the values, which have one shape.
    """
    shape = program.shapes[numbers[0]].shape
    # Blocks are as long as the value where what they see does not move along with them, as over channels.
    moving = [i for i in range(len(shape)) if shape[i] > 1 and _seen(program, place, numbers, _changed(shape, i, 1))]
    block = tuple(1 if i in moving else length for i, length in enumerate(shape))
    while 2 * math.prod(block) <= most and (short := [i for i in moving if 2 * block[i] <= shape[i]]):
        axis = min(short, key=block.__getitem__)
        block = _changed(block, axis, 2 * block[axis])
    windows = _seen(program, place, numbers, block)
    if windows is None:
        return None
    part = sum(math.prod(span.size for span in window) for window in windows.values())
    whole = sum(math.prod(program.shapes[n].shape) for n in windows)
    return _Cutting(program, windows, block).view(place, numbers) if part <= WORTH * whole else None


def _changed(shape: Sequence[int], axis: int, length: int) -> tuple[int, ...]:
    return tuple(length if i == axis else n for i, n in enumerate(shape))


def blocks(shape: Sequence[int], block: Sequence[int]) -> np.ndarray:
    """Places `[K, L]` of the entries of K blocks that together are a value of that shape, in its row of entries."""
    starts = [np.minimum(np.arange(0, n, b), n - b) for n, b in zip(shape, block, strict=True)]
    corner = np.ravel_multi_index(np.meshgrid(*starts, indexing="ij"), shape).reshape(-1, 1)
    return corner + np.ravel_multi_index(np.indices(block), shape).reshape(1, -1)


def cut(x: Any, window: Window, shape: Sequence[int], corner: jax.Array) -> Any:
    """What is in the window of a block at that corner, of numbers for each entry of a value of that shape.

    `x` may be one number for all, or 1 long along some axes, and may have axes after the value's. Outside of the value
    it has what is nearest.
    """
    if not jnp.ndim(x):
        return x
    for axis, (span, length) in enumerate(zip(window, shape, strict=True)):
        if x.shape[axis] != length or span == _all_of(length):
            continue
        low, high = max(-span.start, 0), max(span.start + span.step * span.last + span.size - length, 0)
        if low or high:
            x = jnp.pad(x, [(low, high) if i == axis else (0, 0) for i in range(x.ndim)], "edge")
        x = lax.dynamic_slice_in_dim(x, span.start + low + span.step * corner[span.axis], span.size, axis)
    return x


def inside(window: Window, shape: Sequence[int], corner: jax.Array, dtype: Any) -> jax.Array:
    """1 where the window of a block at that corner is inside of a value of that shape, 0 outside: of its size."""
    mask = jnp.ones([span.size for span in window], dtype)
    for axis, (span, length) in enumerate(zip(window, shape, strict=True)):
        at = lax.broadcasted_iota(jnp.int32, mask.shape, axis) + span.start + span.step * corner[span.axis]
        mask = jnp.where((at >= 0) & (at < length), mask, 0)
    return mask


def _seen(program: Program, place: int, numbers: Sequence[int], block: Sequence[int]) -> Windows | None:
    """Windows of all that a block is made of; None where one of them is not known."""
    shape = program.shapes[numbers[0]].shape
    last = [n - b for n, b in zip(shape, block, strict=True)]
    own = tuple(Span(i, 1, 0, b, n) if n else _all_of(b) for i, (b, n) in enumerate(zip(block, last, strict=True)))
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


def _all_of(length: int) -> Span:
    return Span(0, 0, 0, length, 0)


def _both(one: Window, other: Window) -> Window | None:
    """The window that has both, if they move together."""
    spans = []
    for a, b in zip(one, other, strict=True):
        if (a.axis, a.step) != (b.axis, b.step) and (a.step or b.step):
            return None
        start, end = min(a.start, b.start), max(a.start + a.size, b.start + b.size)
        spans.append(a._replace(start=start, size=end - start))
    return tuple(spans)


def _needed(program: Program, equation: Equation, window: Window) -> Window | None:
    """The window of its operands that an equation makes this one of its result of; None where that is not known."""
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


def _moved(span: Span, by: int) -> Span:
    return span._replace(start=span.start - by)


def _stretched(span: Span, start: int, stride: int, length: int) -> Span:
    """The span of all that is under windows of that length, which begin at `start` and move by the stride."""
    return span._replace(
        step=stride * span.step, start=start + stride * span.start, size=stride * (span.size - 1) + length
    )


def _under_kernel(window: Window, result: Sequence[int], shapes: Sequence[Sequence[int]], params: Any) -> Window | None:
    numbers = params["dimension_numbers"]
    (batch, channel, *spatial), (_, _, *sizes), (_, made, *results) = numbers
    if any(low or high for low, high in params["padding"]) or window[made] != _all_of(result[made]):
        return None
    spans = {batch: window[numbers.out_spec[0]], channel: _all_of(shapes[0][channel])}
    for axis, size, at, stride in zip(spatial, sizes, results, params["window_strides"], strict=True):
        spans[axis] = _stretched(window[at], 0, stride, shapes[1][size])
    return tuple(spans[axis] for axis in range(len(spans)))


class _Cutting:
    """Writes the program of a view."""

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
        return jax.ShapeDtypeStruct(tuple(span.size for span in window), self.whole.shapes[like].dtype)

    def _new(self, window: Window, like: int) -> int:
        self.made.program.shapes.append(self._shape(window, like))
        return len(self.made.program.shapes) - 1

    def _sliced(self, number: int, window: Window, strides: Sequence[int], line: str) -> Equation:
        """The equation that slices what is seen of a value; it has no results yet."""
        starts = tuple(b.start - a.start for a, b in zip(self.windows[number], window, strict=True))
        limits = tuple(start + span.size for start, span in zip(starts, window, strict=True))
        params = {"start_indices": starts, "limit_indices": limits, "strides": tuple(strides)}
        return Equation("slice", lax.slice_p, (number,), (), params, line)

    def _part(self, number: int, window: Window) -> int:
        """The number of a window of a value, inside of the one that is seen."""
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
        elif equation.name == "pad":  # what it adds is a constant, and nothing goes back from outside
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
        """The number of what meets the window of a result of a constant that is added to it, or the like."""
        if not self.whole.shapes[number].shape:
            return number
        new = self._new(self.windows[result], number)
        self.made.constants[new] = number, self.windows[result], self.whole.shapes[result].shape
        return new
