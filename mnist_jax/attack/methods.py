"""The attacks by their names: what each takes, and what is said of it (`METHOD`, beside its code)."""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mnist_jax import attack
from mnist_jax.attack.engine.method import Method
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.classifier import Classifier
from mnist_jax.errors import InputError, unknown

METHODS: dict[str, Callable[..., AttackResult]] = {
    name: function
    for name in attack.__all__
    if hasattr(sys.modules[(function := getattr(attack, name)).__module__], "METHOD")
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


def about(method: str) -> Method:
    """What stands beside the attack's code."""
    return sys.modules[METHODS[method].__module__].METHOD


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


def objection(method: str, norm: float, **how: Any) -> str:
    """What the attack says against these arguments, or nothing.

    An attack on no images only looks at its arguments.
    """
    radius = {"radius": 1.0} if "radius" in parameters(method) else {}
    try:
        about(method).check_norm(norm)
        METHODS[method](Classifier(_nothing, ()), np.zeros((0, 1)), [], norm=norm, **radius | how)
    except ValueError as error:
        return str(error)
    return ""


def _nothing(params: Any, images: Any) -> Any:
    raise AssertionError("an attack on no images asks nothing")


def table(*, at_a_radius: bool) -> str:
    """The attacks at a radius, or those of minimal norm, as a table in Markdown."""
    lines = ["| attack | norms | paper, and what it does |", "|:--|:--|:--|"]
    for name in METHODS:
        if ("radius" in parameters(name)) == at_a_radius:
            said = about(name)
            paper = f"{said.paper}: " if said.paper else ""
            lines.append(f"| `{name}` | {said.norms_in_words()} | {paper}{said.what} |")
    return "\n".join(lines)


def _elsewhere(option: str, method: str, others: list[str]) -> InputError:
    """The error for an option of others."""
    where = f"; it does to {', '.join(others)}" if others else ", nor to any other method"
    return InputError(f"--{option.replace('_', '-')} does not apply to {method}{where}")
