"""The devices that JAX computes on, and the number of processor cores."""

import os

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
