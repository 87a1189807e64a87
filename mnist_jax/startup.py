"""What a command line needs before anything else is imported, which takes seconds. For other code it does nothing.

`python -m mnist_jax.NAME` imports the package before the module NAME, so nothing there could come early enough.
"""

import os
import signal
import sys

INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


def commanded() -> bool:
    """Whether this is `python -m mnist_jax.NAME`, before NAME runs: until then, runpy has argv[0] so."""
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and "-m" in words and words[words.index("-m") + 1].startswith(f"{__package__}.")


def leave(number: int, frame: object) -> None:
    """Ctrl-C during imports: there is nothing to clean up, and libraries would hide or wrap an exception."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def over() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_standard_streams() -> None:
    """Opens those that were closed, as by 2>&-, on nothing: the next file to be opened would get the number, and with
    it what C++ writes to stderr; and Python prints to stdout what it can't print to a missing stderr."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:  # to be read only: results that nobody gets are an error
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def use_utf8() -> None:
    """Starts again where the locale has another encoding for files' names: libraries in C++ take them for UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


if commanded():
    use_utf8()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, leave)
    open_standard_streams()
