"""The devices that JAX computes on, how precisely they do, and the number of processor cores."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import jax


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    """The devices in words: `cpu (2 cores)`, or the platform, number and kind of the accelerators."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return f"cpu ({cores()} cores)"
    return f"{devices[0].platform} ({len(devices)} x {devices[0].device_kind})"


@contextmanager
def precisely() -> Iterator[None]:
    """JAX's settings for what attacks and certificates compute, whatever the caller has set for their own code.

    Matrix products and convolutions have the highest precision. By default accelerators round their inputs to TF32 or
    bfloat16: logits are then off by 1e-3 of their size, by other amounts in every compiled program, and an image that
    one program finds just behind the decision boundary is before it for the next. Types are promoted in JAX's standard
    way.
    """
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        yield
