"""Strict settings for every test, and what tests share: a small dataset on disk and the real commands."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also for the commands that tests run

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax import data
from mnist_jax.unstable import QUICKLY_COMPILED, compile_quickly

compile_quickly()  # most of the suite's time is compiling
# The commands that tests run are compiled as they are for users; the flags of pytest-xdist's workers are inherited.
ENVIRONMENT = os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(QUICKLY_COMPILED, "").strip()}

jax.config.update("jax_numpy_rank_promotion", "raise")

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "seed_networks"


@pytest.fixture(autouse=True)
def few_programs():
    """Every compiled program is mapped into memory by itself, and Linux allows a process 65,530 mappings."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def quickly_compiled():
    """For programs that run for milliseconds: half the time of compiling them is for nothing."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> Path:
    """A folder for compiled programs, one for all workers of pytest-xdist, whose own folders lie side by side."""
    return tmp_path_factory.getbasetemp().parent / "programs"


@pytest.fixture(scope="session", autouse=True)
def compiled_once(programs):
    """Most of the suite's time is compiling, and the workers share what parametrized tests compile."""
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def mnist() -> data.Dataset:
    return data.load()


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def few_digits(mnist, tmp_path_factory) -> Path:
    """A folder with IDX files of 960 real training images (800 and 160 for test) and 100 val images."""
    folder = tmp_path_factory.mktemp("few_digits")
    for name, split, count in (("train", mnist.train, 960), ("t10k", mnist.val, 100)):
        write_idx(folder / f"{name}-images-idx3-ubyte", split.images[:count, :, :, 0])
        write_idx(folder / f"{name}-labels-idx1-ubyte", split.labels[:count])
    return folder


@pytest.fixture(scope="session")
def command(programs):
    """Starts `python -m mnist_jax.MODULE ARGUMENTS` in a folder; gives the process, its output still to be read."""
    environment = ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": str(programs), "PYTHONUNBUFFERED": "1"}

    def start(module, *arguments, cwd, prefix=(), env=None):
        line = [*prefix, sys.executable, "-W", "error", "-m", f"mnist_jax.{module}", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=cwd, env=environment | (env or {}), **pipes)

    return start


@pytest.fixture(scope="session")
def run(command):
    """Runs a command to its end; gives the exit status, stdout and stderr."""

    def finish(module, *arguments, cwd, **options):
        process = command(module, *arguments, cwd=cwd, **options)
        out, err = process.communicate(timeout=300)  # other tests run beside it
        return process.returncode, out, err

    return finish


@pytest.fixture(scope="session")
def refused(run):
    """Runs a command that must refuse its input with status 2; gives its one line."""

    def finish(module, *arguments, cwd, **options):
        status, out, err = run(module, *arguments, cwd=cwd, **options)
        errors = [
            line
            for line in err.splitlines()
            if not line.startswith(("device: ", "training ", "evaluating ", "attacking ", "verifying "))
        ]
        assert (status, out, len(errors)) == (2, "", 1), (status, out, err)
        assert errors[0].startswith("error: ")
        return errors[0]

    return finish
