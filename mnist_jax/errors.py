"""The one error that is meant for the person at the keyboard."""

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """Bad input from a person: the message is one line saying what is wrong and what to do about it."""


def unknown(kind: str, name: str, names: Collection[str]) -> InputError:
    """The error for a name that is not one of `names`: with the nearest ones, and all of them."""
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(str(name).lower().replace("-", "_"), lower, n=2)]
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {guess}There are {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
