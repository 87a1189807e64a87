"""What a new user waits for: installing, the first import, the first attacks and the first certificate.

    python experiments/first_minutes.py [--networks MLP CNN] [--rounds 1] [--install]

Each is a command in a process of its own: first with an empty folder for compiled programs, and then again with what
the first one left there, as on any later day. The table has the least seconds of all rounds, and those of the
processors, which say more on a busy machine. With --install it begins with `pip install` of this folder into a new
virtual environment, whose packages may have to be downloaded.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Seconds(NamedTuple):
    """Of the clock, and of all processors together."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.cpu:.1f})"


def timed(command: list[str], folder: str) -> Seconds:
    """How long it takes, with caches and results in that folder."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": folder, "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def commands(networks: list[str]) -> dict[str, list[str]]:
    """What is waited for, by a name for it."""
    rows = {"import": ["-c", "import mnist_jax"]}
    for network in networks:
        for method, which in (("attack", ["--ids", "0"]), ("attack", ["--count", "100"]), ("certify", ["--ids", "0"])):
            rows[f"{method} --model {network} {' '.join(which)}"] = [
                *("-m", f"mnist_jax.{method}", "--model", network, *which)
            ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["MLP", "CNN"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    print("| | cold | with compiled programs |\n|:--|--:|--:|", flush=True)
    if options.install:
        with tempfile.TemporaryDirectory() as folder:
            venv.create(folder, with_pip=True)
            install = [str(Path(folder, "bin", "python")), "-m", "pip", "install", "--quiet", str(ROOT)]
            print(f"| pip install | {timed(install, folder)} | |", flush=True)
    for name, arguments in commands(options.networks).items():
        times: list[list[Seconds]] = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                times.append([timed([sys.executable, *arguments], folder) for _ in ("cold", "again")])
        cold, again = (min(each) for each in zip(*times, strict=True))
        print(f"| `{name}` | {cold} | {again} |", flush=True)


if __name__ == "__main__":
    main()
