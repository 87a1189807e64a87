"""Strict settings for all tests, and fixtures: small datasets on disk, and functions that run the commands.

The suite spends most of its time tracing and compiling. As most programs run for milliseconds, they are compiled almost
without optimizations, and kept in pytest's cache for the next run. Tests that share programs run in one process, as a
group.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # these four also hold for the commands that tests run
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # with more arenas, freed memory stays with the threads that compiled
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import ctypes
import gc
import importlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax import attack, data
from mnist_jax.commands import console
from mnist_jax.unstable import IN_ONE_PIECE, QUICKLY_COMPILED, compile_quickly

USERS_FLAGS = os.environ.get("XLA_FLAGS", "").replace(f"{QUICKLY_COMPILED} {IN_ONE_PIECE}", "").strip()
compile_quickly(IN_ONE_PIECE)
# Rarer than Python's default, as searching traced programs for garbage took a tenth of the time.
gc.set_threshold(50_000)
# The commands that tests run get only the user's XLA flags, without those that `compile_quickly` adds to this process.
ENVIRONMENT = os.environ | {"XLA_FLAGS": USERS_FLAGS}

jax.config.update("jax_numpy_rank_promotion", "raise")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; the commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "seed_networks"
MOST_KEPT = 2**30  # bytes of compiled programs in pytest's cache; a run of the suite makes less than half of that
MOST_MAPPED = 4500  # memory mappings of a process: with more, compiled programs are dropped; about 1 GB of memory
LIBC = ctypes.CDLL(None)
COMMANDS = (
    "test_attack_command",
    "test_certify_command",
    "test_console",
    "test_evaluate",
    "test_train",
    "test_verify",
)


def pytest_configure(config):
    """Turns JAX's persistent compilation cache on, in pytest's cache folder unless the user has chosen another."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # by the user, or in a pytest-xdist worker by its parent process
        return
    folder = config.cache.mkdir("programs")
    if sum(path.stat().st_size for path in folder.iterdir()) > MOST_KEPT:
        shutil.rmtree(folder)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Makes pytest-xdist run the tests of one `group` in one worker, one after another."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    return Groups(config, log)


def group(nodeid: str) -> str:
    """The group of a test: tests that share compiled programs.

    It is the file, in `test_attacks.py` also the attack; a test of a command, which has its own process, is alone.
    """
    path, _, name = nodeid.partition("::")
    if Path(path).stem in COMMANDS:
        return nodeid
    if name.startswith("test_inside_and_without"):
        return "operations"  # these tests, of all attacks, share compiled operations
    return path + "".join(set(re.split(r"[][-]", name)) & set(attack.__all__))


def pytest_runtest_teardown(item, nextitem):
    """Drops compiled programs where there are too many: each has its own memory mappings, which are counted."""
    same = nextitem is not None and group(item.nodeid) == group(nextitem.nodeid)
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > (MOST_MAPPED if same else 0.75 * MOST_MAPPED):
        jax.clear_caches()
        gc.collect()
        if hasattr(LIBC, "malloc_trim"):
            LIBC.malloc_trim(0)  # the GNU C library does not return freed memory to the system by itself


@pytest.fixture
def optimized():
    """Compiles a test's programs with all optimizations, for programs that run for seconds."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


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
def shapes(tmp_path_factory) -> Path:
    """A folder with a dataset of three classes: images of 9x7 pixels whose upper, middle or lower rows are bright."""
    folder, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for name, count in (("train", 240), ("t10k", 40)):
        labels = np.arange(count) % 3
        images = random.integers(0, 100, (count, 9, 7))
        images[np.arange(9) // 3 == labels[:, None]] += 100
        write_idx(folder / f"{name}-images-idx3-ubyte", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte", labels)
    (folder / "classes.txt").write_text("above\nmiddle\n$below\n")
    return folder


@pytest.fixture(scope="session")
def command():
    """Starts `python -m mnist_jax.MODULE ARGUMENTS` in a folder; returns the process, with its output in pipes."""
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}

    def start(module, *arguments, cwd, prefix=(), env=None):
        line = [*prefix, sys.executable, "-W", "error", "-m", f"mnist_jax.{module}", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=cwd, env=environment | (env or {}), **pipes)

    return start


@pytest.fixture(scope="session")
def run(command):
    """Runs a command to its end; returns the exit status, stdout and stderr."""

    def finish(module, *arguments, cwd, **options):
        process = command(module, *arguments, cwd=cwd, **options)
        out, err = process.communicate(timeout=300)  # seconds; long, as other tests run at the same time
        return process.returncode, out, err

    return finish


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a command in this process, which must refuse its input with status 2; returns its single line of error."""

    def finish(module, *arguments, cwd):
        main = importlib.import_module(f"mnist_jax.commands.{module}").main
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [module, *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                console.run(main)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        out, err = capsys.readouterr()
        errors = [
            line
            for line in err.splitlines()
            if not line.startswith(
                ("device: ", "training ", "evaluating ", "attacking ", "bracketing ", "certifying ", "verifying ")
            )
        ]
        assert (end.value.code, out, len(errors)) == (2, "", 1), (end.value.code, out, err)
        assert errors[0].startswith("error: ")
        return errors[0]

    return finish
