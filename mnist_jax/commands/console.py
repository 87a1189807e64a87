"""What the command lines share: options, errors for people, the device line, results as text or JSON."""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from mnist_jax import device, startup
from mnist_jax.compiled import keep_compiled
from mnist_jax.data import DATASETS
from mnist_jax.errors import InputError
from mnist_jax.startup import INTERRUPTED
from mnist_jax.storage import files

BAD_INPUT = 2
TERMINATED = 143  # as a shell reports a process that a request to end has ended
MANY = 1_000_000  # of what is done again and again: nobody waits for more, and more would not fit its counters


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
        self.add_argument("--dataset", default=dataset, help=f"one of {', '.join(DATASETS)}; with --data-dir any name")
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
            upper = "" if math.isinf(high) else f" and at most {high:.15g}"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {name} {'above' if above else 'of at least'} {low:g}{upper}"
            )
        return value

    return parse


class Terminated(KeyboardInterrupt):
    """A request to end, SIGTERM, as other programs and the system make it."""


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Runs a command's `main`; ends the process with a person's line for an error of input, and no traceback."""
    try:
        status = _status(main)
    except BrokenPipeError:  # whoever read the output has left
        _abandon(sys.stdout)
        _abandon(sys.stderr)
        status = 1
    sys.exit(status)


def _status(main: Callable[[list[str] | None], int | None]) -> int:
    try:
        startup.over()
        _prepare_output()
        try:
            return main(None) or 0
        except SystemExit:  # of --help
            show("", end="")
            return 0
    except InputError as error:
        complain(error)
        return BAD_INPUT
    except KeyboardInterrupt as request:
        return ended(request)


def ended(request: KeyboardInterrupt) -> int:
    """Says what ended the command; gives the status."""
    terminated = isinstance(request, Terminated)
    note("terminated" if terminated else "interrupted")
    return TERMINATED if terminated else INTERRUPTED


def complain(error: InputError) -> None:
    """The line for an error, and, where something can't be written, what the options can do about it."""
    hint = ""
    if isinstance(error, files.NotWritten):
        hint = f"; {'free some space or ' if error.full else ''}choose another --output"
    note(f"error: {error}{hint}")


def _prepare_output() -> None:
    """A terminal may not have every letter of a file's name."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _abandon(stream: Any) -> None:
    """Sends what is still to be written to nowhere: Python would try again when it ends, and complain."""
    with contextlib.suppress(OSError, ValueError):  # not a file of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Interrupt:
    """Ctrl-C or a request to end, noticed between two pieces of work; a second one ends the process at once.

    A context: on leaving it, signals do what they did before.
    """

    wanted: KeyboardInterrupt | None = None  # to be raised

    def __enter__(self) -> "Interrupt":
        # Python lets no other thread set what signals do, nor do they reach it.
        main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        self.before = {number: signal.signal(number, self) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: Any) -> None:
        self.wanted = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def start() -> None:
    """Says on which device the work will be done, and keeps compiled programs for the next time."""
    try:
        note(f"device: {device.describe()}")
    except (RuntimeError, AssertionError) as error:  # JAX's, which has no reason to give from the second time on
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise InputError(f"JAX has no device for JAX_PLATFORMS={wanted}{reason}; unset it or name another") from error
    try:
        keep_compiled()
    except InputError as error:
        note(f"note: compiled programs are not kept for the next time: {error}")


def note(line: str) -> None:
    """A line for the person: stderr, so that stdout holds results only."""
    try:
        tqdm.write(line, file=sys.stderr)  # above a bar, if there is one
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:  # a full disk: no reason to lose the results too
        _abandon(sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """Prints a part of the result. Raises `InputError` where nothing can be written to stdout."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon(sys.stdout)
        raise InputError(f"cannot write to stdout ({error.strerror})") from error


def different(wanted: dict[str, Any], was: dict[str, Any]) -> list[str]:
    """In what something that was kept, by what it says of itself, is not what is wanted now."""
    return [key for key in wanted if was.get(key) != wanted[key]]


def report(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The result on stdout, as one JSON object or as text."""
    show(json.dumps(files.strict(result), allow_nan=False) if as_json else text)


def draw(path: Path, figure: Callable[[], bytes]) -> Path | None:
    """Writes a figure; where that can't be done there is a line and none: the results are more than their figure."""
    try:
        files.write(path, figure())
    except files.NotWritten as error:
        note(f"note: no figure: {error}")
        return None
    return path
