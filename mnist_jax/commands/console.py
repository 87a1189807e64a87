"""Shared by the command lines: option types, error messages, signals, the device line, results as text or JSON."""

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

BAD_INPUT = 2  # exit status after an InputError; argparse's
TERMINATED = 143  # exit status after SIGTERM, as shells report it: 128 + 15
MANY = 1_000_000  # upper limit of options that count steps, runs or samples: nobody waits longer, and int32 holds it


class Parser(argparse.ArgumentParser):
    """argparse's parser with `--json`, without abbreviated options; a wrong option is an `InputError` of one line."""

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
    """The type of an option (for argparse): a number from `low` to `high`; `low` itself is excluded where `above`."""

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
    """SIGTERM, by which other programs and the system ask a process to end."""


def run(main: Callable[[list[str] | None], int | None]) -> NoReturn:
    """Runs a command's `main` and exits with its status; bad input gives one line on stderr instead of a traceback."""
    try:
        status = _status(main)
    except BrokenPipeError:  # the reader of the output, such as `head`, has ended
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
        except SystemExit:  # raised by --help
            show("", end="")
            return 0
    except InputError as error:
        complain(error)
        return BAD_INPUT
    except KeyboardInterrupt as request:
        return ended(request)


def ended(request: KeyboardInterrupt) -> int:
    """Prints whether Ctrl-C or SIGTERM ended the command, and returns its exit status."""
    terminated = isinstance(request, Terminated)
    note("terminated" if terminated else "interrupted")
    return TERMINATED if terminated else INTERRUPTED


def complain(error: InputError) -> None:
    """Prints the line of an error; if a file can't be written, also which option helps."""
    hint = ""
    if isinstance(error, files.NotWritten):
        hint = f"; {'free some space or ' if error.full else ''}choose another --output"
    note(f"error: {error}{hint}")


def _prepare_output() -> None:
    """Escapes letters (of a file's name) that the terminal's encoding lacks, instead of raising an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _abandon(stream: Any) -> None:
    """Redirects a broken stream to /dev/null: Python would flush it when the process ends, and report an error."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Interrupt:
    """Remembers Ctrl-C or SIGTERM until the command looks, between two pieces of work; a second one acts at once.

    A context manager: on leaving it, the earlier signal handlers are restored.
    """

    wanted: KeyboardInterrupt | None = None  # the exception that the command is to raise, once a signal came

    def __enter__(self) -> "Interrupt":
        # Only the main thread may set signal handlers, and only it runs them.
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
    """Prints the device that JAX uses, and turns JAX's persistent compilation cache on.

    Raises:
      InputError: JAX has no device for the platform that JAX_PLATFORMS asks for.
    """
    try:
        note(f"device: {device.describe()}")
    except (RuntimeError, AssertionError) as error:  # JAX gives the reason only when it fails for the first time
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise InputError(f"JAX has no device for JAX_PLATFORMS={wanted}{reason}; unset it or name another") from error
    try:
        keep_compiled()
    except InputError as error:
        note(f"note: compiled programs are not kept for the next time: {error}")


def note(line: str) -> None:
    """Prints a line for a person on stderr, so that stdout holds results only."""
    try:
        tqdm.write(line, file=sys.stderr)  # above a progress bar, if there is one
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:  # for example a full disk: the results must not be lost for a message
        _abandon(sys.stderr)


def show(text: str, end: str = "\n") -> None:
    """Prints a part of the result on stdout. Raises `InputError` where stdout can't be written."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon(sys.stdout)
        raise InputError(f"cannot write to stdout ({error.strerror})") from error


def different(wanted: dict[str, Any], was: dict[str, Any]) -> list[str]:
    """The keys of `wanted` whose values differ in `was`, the description of something that was saved earlier."""
    return [key for key in wanted if was.get(key) != wanted[key]]


def report(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the result on stdout, as one JSON object or as text."""
    show(json.dumps(files.strict(result), allow_nan=False) if as_json else text)


def draw(path: Path, figure: Callable[[], bytes]) -> Path | None:
    """Writes the PNG that `figure()` returns to `path`, and returns `path`.

    Where it can't be written, prints a note and returns None: a command doesn't fail for its figure alone.
    """
    try:
        files.write(path, figure())
    except files.NotWritten as error:
        note(f"note: no figure: {error}")
        return None
    return path
