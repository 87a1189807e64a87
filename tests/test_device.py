"""The number of cores, and the description of the devices."""

import os

import jax
import pytest

from mnist_jax import device


def test_cores_are_those_that_this_process_may_use():
    assert 1 <= device.cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores here")
def test_cores_are_fewer_for_a_process_that_is_bound():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert device.cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


class Accelerator:
    platform, device_kind = "gpu", "Some GPU"


def test_describe(monkeypatch):
    assert device.describe() == f"cpu ({device.cores()} cores)"
    monkeypatch.setattr(jax, "local_devices", lambda: [Accelerator(), Accelerator()])
    assert device.describe() == "gpu (2 x Some GPU)"
