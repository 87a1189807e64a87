"""What the arguments of attacks have in common: ranges that numbers must be in. They say so by `ValueError`."""


def at_least(least: float, **arguments: float | None) -> None:
    """Raises where one of the arguments, those that are not None, is less."""
    for name, value in arguments.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value:g}")


def positive(**arguments: float) -> None:
    """Raises where one of the arguments is not above 0."""
    for name, value in arguments.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value:g}")


def share(**arguments: float) -> None:
    """Raises where one of the arguments is not above 0 and at most 1."""
    for name, value in arguments.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value:g}")


def between(**arguments: float) -> None:
    """Raises where one of the arguments is not between 0 and 1."""
    for name, value in arguments.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, not {value:g}")
