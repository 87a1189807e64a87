"""What a command must set up before the slow imports: Ctrl-C, standard streams, UTF-8. Otherwise it does nothing.

`python -m mnist_jax.NAME` imports the package, which takes seconds, before the module NAME, so that module would be too
late.
"""

import os
import signal
import sys

INTERRUPTED = 130  # exit status after Ctrl-C, as shells report it: 128 + SIGINT


def commanded() -> bool:
    """Whether `python -m mnist_jax.NAME` is starting: before NAME runs, Python's runpy sets argv[0] to "-m"."""
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1].startswith(f"{__package__}.")


def leave(number: int, frame: object) -> None:
    """Handles Ctrl-C during imports by ending the process: there is nothing to clean up, and a library that is being
    imported might catch an exception."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def over() -> None:
    """Makes Ctrl-C raise KeyboardInterrupt again, after the imports."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_standard_streams() -> None:
    """Opens standard streams that were closed (as by `2>&-` in a shell) on /dev/null.

    Otherwise the next file to be opened would get the number of a closed stream, and with it what C++ code writes to
    stderr; and Python would print to stdout what it can't print to stderr.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:  # opened for reading only, so that writing fails: results that nobody gets are an error
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def use_utf8() -> None:
    """Restarts Python with UTF-8 file names where the locale has another encoding: libraries in C++ expect UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


if commanded():
    use_utf8()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored, as in a shell's background job
        signal.signal(signal.SIGINT, leave)
    open_standard_streams()
