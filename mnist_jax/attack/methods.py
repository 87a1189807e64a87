"""The attacks by their names, and what options each takes, by its signature."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mnist_jax import attack
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError, unknown

METHODS: dict[str, Callable[..., AttackResult]] = {
    name: getattr(attack, name) for name in attack.__all__ if inspect.isfunction(getattr(attack, name))
}
DEFAULT = "nearest"

# Options of a command, and the parameters of an attack that they set.
OPTIONS = {
    "radius": "radius",
    "steps": "steps",
    "restarts": "restarts",
    "queries": "queries",
    "learning_rate": "learning_rate",
    "effort": "effort",
    "targets": "targets",
    "seed": "key",
}


def parameters(method: str) -> dict[str, inspect.Parameter]:
    """What the attack takes, by name. One that runs another attack takes what that one does, but for its radius."""
    own = dict(inspect.signature(METHODS[method]).parameters)
    if "attack" in own:
        inner = inspect.signature(own["attack"].default).parameters.values()
        return {p.name: p for p in inner if p.kind is p.KEYWORD_ONLY} | own
    return own


def prepare(method: str, norm: float | None, given: dict[str, Any]) -> tuple[Callable[..., AttackResult], float]:
    """The attack with the given `OPTIONS`, all but targets and seed, and the norm: that given, or the attack's own.

    Raises:
      InputError: there is no such attack, or it does not take one of the options, or that norm.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    known = parameters(method)
    for option in given:
        if OPTIONS[option] not in known:
            raise _elsewhere(option, method, [other for other in METHODS if OPTIONS[option] in parameters(other)])
    if "radius" in known and "radius" not in given:
        raise InputError(f"{method} needs a --radius")
    norm = float(known["norm"].default if norm is None else norm)
    how = {OPTIONS[option]: value for option, value in given.items() if option not in ("seed", "targets")}
    if said := objection(method, norm):
        able = [other for other in METHODS if not objection(other, norm)]
        raise _elsewhere(f"norm {norm:g}", f"{method} ({said})", able)
    if said := objection(method, norm, **how):
        raise InputError(f"{method}: {said}")
    return partial(METHODS[method], **how), norm


class _Reached(Exception):
    """An attack has begun to ask its classifier."""


def _reach(params: Any, images: Any) -> Any:
    raise _Reached


def objection(method: str, norm: float, **how: Any) -> str:
    """What the attack says against these arguments, or nothing. Only it knows, and it looks at them first of all: so
    it is called, but comes no farther than to the classifier."""
    radius = {"radius": 1.0} if "radius" in parameters(method) else {}
    try:
        METHODS[method](Classifier(_reach, ()), np.zeros((1, 1)), np.zeros(1, int), norm=norm, **radius | how)
    except _Reached:
        return ""
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{method} does not ask its classifier")


def _elsewhere(option: str, method: str, others: list[str]) -> InputError:
    """The error for an option of others."""
    where = f"; it does to {', '.join(others)}" if others else ", nor to any other method"
    return InputError(f"--{option.replace('_', '-')} does not apply to {method}{where}")
