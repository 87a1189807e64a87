"""Max-pooling and sum-pooling: on a CPU along one axis after another, on other devices JAX's own.

XLA's CPU backend takes ten times as long for the gradient of max-pooling. As in XLA, that gradient goes to the first of
the largest pixels of a window, in the order of rows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_jax.jaxprs.span import Span

# Largest side of a window, in pixels, along an axis with several windows: a longer one would need too many slices.
LONG = 16


def pool(eqn: jex.JaxprEqn) -> Callable[[jax.Array], jax.Array] | None:
    """The function that replaces a `reduce_window_max` or `reduce_window_sum` equation; None where it stays."""
    params = eqn.params
    avals: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    x, y = avals
    spans = [
        Span(axis, size, stride)
        for axis, (size, stride) in enumerate(zip(params["window_dimensions"], params["window_strides"], strict=True))
    ]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    too_long = any(span.size > LONG and length > 1 for span, length in zip(spans, y.shape, strict=True))
    if x.dtype not in (jnp.float32, jnp.float64) or not math.prod(y.shape) or dilated or too_long:
        return None
    step, fill = (_largest, -math.inf) if eqn.primitive.name == "reduce_window_max" else (_sum, 0)

    def by_axes(x):
        x = lax.pad(x, np.asarray(fill, x.dtype), [(*pads, 0) for pads in params["padding"]])
        for span in reversed(spans):
            x = step(x, span) if span.size > 1 or span.stride > 1 else x
        return x

    native = partial(eqn.primitive.bind, **params)
    return lambda x: lax.platform_dependent(x, cpu=by_axes, default=native)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x: jax.Array, span: Span) -> jax.Array:
    largest, *others = (span.at(x, place) for place in range(span.size))
    for other in others:
        largest = lax.max(largest, other)
    return largest


@_largest.defjvp
def _largest_jvp(span, primals, tangents):
    (x,), (t,) = primals, tangents
    largest, *others = (span.at(x, place) for place in range(span.size))
    first = jnp.zeros(largest.shape, jnp.int8)
    for place, other in enumerate(others, 1):
        first = jnp.where(largest >= other, first, jnp.int8(place))
        largest = lax.max(largest, other)
    if (apart := span.apart(t)) is not None:
        own = lax.broadcasted_iota(jnp.int8, apart.shape, span.axis + 1) == jnp.expand_dims(first, span.axis + 1)
        return largest, jnp.where(own, apart, 0).sum(span.axis + 1)
    zero = jnp.zeros_like(largest)
    return largest, sum((lax.select(first == place, span.at(t, place), zero) for place in range(span.size)), zero)


def _sum(x: jax.Array, span: Span) -> jax.Array:
    if (apart := span.apart(x)) is not None:
        return apart.sum(span.axis + 1)
    first, *others = (span.at(x, place) for place in range(span.size))
    return sum(others, first)
