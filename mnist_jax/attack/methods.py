"""The attacks by name: the parameters that each takes, and its description (`METHOD`, which stands beside its code)."""

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

# Options of the command line (`--learning-rate` as `learning_rate`), and the parameter of an attack that each one sets.
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
    """The description of an attack: the `METHOD` of its module."""
    return sys.modules[METHODS[method].__module__].METHOD


def parameters(method: str) -> dict[str, inspect.Parameter]:
    """The parameters of an attack, by name.

    An attack that runs another one (`dichotomy`) also takes the keyword parameters of that other attack.
    """
    own = dict(inspect.signature(METHODS[method]).parameters)
    if "attack" in own:
        inner = inspect.signature(own["attack"].default).parameters.values()
        return {p.name: p for p in inner if p.kind is p.KEYWORD_ONLY} | own
    return own


def prepare(method: str, norm: float | None, given: dict[str, Any]) -> tuple[Callable[..., AttackResult], float]:
    """The attack with the given `OPTIONS` bound, except `targets` and `seed`, and its norm: `norm`, or its default.

    Raises:
      InputError: there is no such attack, or it does not take one of the options or this norm.
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
    """The message of the `ValueError` with which the attack refuses these arguments, or an empty string.

    It is found by an attack on no images, which only checks its arguments.
    """
    radius = {"radius": 1.0} if "radius" in parameters(method) else {}
    try:
        about(method).check_norm(norm)
        METHODS[method](Classifier(_nothing, ()), np.zeros((0, 1)), [], norm=norm, **radius | how)
    except ValueError as error:
        return str(error)
    return ""


def _nothing(params: Any, images: Any) -> Any:
    raise AssertionError("an attack on no images does not call the classifier")


def table(*, at_a_radius: bool) -> str:
    """A Markdown table of the fixed-radius attacks, or of the minimal-norm attacks: names, norms, papers, methods."""
    lines = ["| attack | norms | paper, and what it does |", "|:--|:--|:--|"]
    for name in METHODS:
        if ("radius" in parameters(name)) == at_a_radius:
            said = about(name)
            paper = f"{said.paper}: " if said.paper else ""
            lines.append(f"| `{name}` | {said.norms_in_words()} | {paper}{said.what} |")
    return "\n".join(lines)


def _elsewhere(option: str, method: str, others: list[str]) -> InputError:
    """The error for an option or a norm that this method does not take, but the `others` do."""
    where = f"; it does to {', '.join(others)}" if others else ", nor to any other method"
    return InputError(f"--{option.replace('_', '-')} does not apply to {method}{where}")
