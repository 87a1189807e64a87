"""What a new user waits for: installing, the first import, the first attacks and the first certificate.

    python experiments/first_minutes.py [--networks MLP CNN] [--rounds 1] [--install]

Each row is a command in a process of its own. Cold means with an empty folder for compiled programs; then the command
runs again with those that the first run left there, as on any later day. The rows are those of docs/tables.md: seconds
of the clock, and in parentheses seconds of all processors together, each the least of all rounds. With --install, the
first row is `pip install` of this folder into a new virtual environment, once: it downloads all packages.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Seconds(NamedTuple):
    """The time that a process took, in seconds."""

    wall: float  # of the clock
    cpu: float  # of all processors together

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f})"


def timed(command: list[str], folder: str) -> Seconds:
    """How long a command takes, with its caches and results in that folder. Exits with its output where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def install() -> Seconds:
    """How long `pip install` of this folder takes in a new virtual environment, with an empty cache of pip."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        return timed([str(Path(folder, "bin", "python")), "-m", "pip", "install", "--quiet", str(ROOT)], folder)


def cold_and_again(arguments: list[str]) -> list[Seconds]:
    """How long Python takes with these arguments: without compiled programs, and with those of the first run."""
    with tempfile.TemporaryDirectory() as folder:
        return [timed([sys.executable, *arguments], folder) for _ in range(2)]


def least(rounds: Iterable[Seconds]) -> Seconds:
    """The least time of several rounds: of the clock and of the processors, each for itself."""
    return Seconds(*map(min, zip(*rounds, strict=True)))


def commands(networks: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The attacks and certificates that are timed: the name of each one's row, and its arguments for Python."""
    for network in networks:
        for method, which in (("attack", "--ids 0"), ("attack", "--count 100"), ("certify", "--ids 0")):
            row = f"{method} --model {network} {which}"
            yield row, ["-m", *f"mnist_jax.{row}".split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["MLP", "CNN"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    rounds = range(options.rounds)
    print("| | cold | with compiled programs |\n|:--|--:|--:|", flush=True)
    if options.install:
        print(f"| `pip install .` | {install()} | |", flush=True)
    imports = [seconds for _ in rounds for seconds in cold_and_again(["-c", "import mnist_jax"])]
    print(f"| `import mnist_jax` | {least(imports)} | |", flush=True)
    for row, arguments in commands(options.networks):
        cold, again = map(least, zip(*(cold_and_again(arguments) for _ in rounds), strict=True))
        print(f"| `{row}` | {cold} | {again} |", flush=True)


if __name__ == "__main__":
    main()
