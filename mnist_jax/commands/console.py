"""What the command lines share: options, errors for people, the device line, results as text or JSON."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax

from mnist_jax import device
from mnist_jax.data import DATASETS
from mnist_jax.errors import InputError

BAD_INPUT = 2
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """argparse, with one line for an error and no abbreviated options."""

    def __init__(self, module: str, description: str | None):
        super().__init__(
            prog=f"python -m mnist_jax.{module}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.add_argument("--json", action="store_true", help="print one JSON object and nothing else to stdout")

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists the options")

    def add_data_options(self, dataset: str | None = "mnist") -> None:
        self.add_argument("--dataset", default=dataset, help=f"one of {', '.join(DATASETS)}")
        self.add_argument("--data-dir", type=Path, help="a folder of IDX files (raw, .gz or .xz) to use instead")


def number(kind: Callable[[str], Any], low: float, high: float = math.inf, *, above: bool = False) -> Callable:
    """An option's type: a number that is at least `low`, or larger where `above`, and at most `high`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if above else low <= value) or value > high or not math.isfinite(value):
            name = "a whole number" if kind is int else "a number"
            upper = "" if math.isinf(high) else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {name} {'above' if above else 'of at least'} {low:g}{upper}"
            )
        return value

    return parse


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Runs a command's `main`; ends the process with a person's line for an error of input, and no traceback."""
    try:
        sys.exit(main(None))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # whoever read the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class Interrupt:
    """Ctrl-C or a request to end, noticed between two pieces of work; a second one ends the process at once."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: Any) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start() -> None:
    """Says on which device the work will be done, and keeps compiled programs for the next time."""
    note(f"device: {device.describe()}")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mnist_jax", "programs")
        jax.config.update("jax_compilation_cache_dir", str(cache))
    # By default JAX keeps only what took a second to compile, and so nothing of ours.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def note(line: str) -> None:
    """A line for the person: stderr, so that stdout holds results only."""
    print(line, file=sys.stderr, flush=True)


def report(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The result on stdout, as one JSON object or as text."""
    print(json.dumps(result) if as_json else text, flush=True)
