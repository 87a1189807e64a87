"""What the work is done on."""

import os

import jax


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> str:
    """`cpu (2 cores)`, or the kind of the accelerator, and how many there are."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return f"cpu ({cores()} cores)"
    return f"{devices[0].platform} ({len(devices)} x {devices[0].device_kind})"
