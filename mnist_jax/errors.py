"""The error for mistakes in a user's input, which commands show as one line."""

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """A mistake in a user's input; the message is one line that says what is wrong and what to do about it."""


def unknown(kind: str, name: str, names: Collection[str]) -> InputError:
    """The error for a `name` that is not one of `names`; its message suggests the most similar ones, and lists all."""
    lower = {n.lower(): n for n in names}
    near = [lower[n] for n in difflib.get_close_matches(str(name).lower().replace("-", "_"), lower, n=2)]
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    return InputError(f"unknown {kind} {name!r}: {guess}There are {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where there is no message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
