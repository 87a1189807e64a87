"""Equations of a jaxpr replaced by others, wherever they are in it; all the rest stays as it is.

`program` writes a function anew, and inlines its calls by what they compute. Here calls stay calls, so that what is
said of their derivatives goes on to hold.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend.core as jex

from mnist_jax import unstable
from mnist_jax.layers import AS_WRITTEN

# By the name of a primitive: a function of an equation that gives what takes its place, or None where it stays.
Rules = Mapping[str, Callable[[jex.JaxprEqn], Callable | None]]


def replaced(closed: jex.ClosedJaxpr, rules: Rules) -> jex.ClosedJaxpr:
    """The jaxpr with some of its equations replaced; itself where there are none.

    It goes into whatever has a jaxpr: calls, loops, branches, checkpoints. A function with derivatives of its own keeps
    them as they are. What has been chosen for each platform is left alone, and what is in the scope `AS_WRITTEN`.
    """
    jaxpr = _replaced(closed.jaxpr, rules)
    return closed if jaxpr is closed.jaxpr else jex.ClosedJaxpr(jaxpr, closed.consts)


def _replaced(jaxpr: jex.Jaxpr, rules: Rules) -> jex.Jaxpr:
    eqns = [_equation(eqn, rules) for eqn in jaxpr.eqns]
    same = all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True))
    return jaxpr if same else jaxpr.replace(eqns=eqns)


def _equation(eqn: jex.JaxprEqn, rules: Rules) -> jex.JaxprEqn:
    if eqn.params.get("branches_platforms") or unstable.in_scope(eqn, AS_WRITTEN):
        return eqn
    rule = rules.get(eqn.primitive.name)
    if rule and (function := rule(eqn)):
        (call,) = jax.make_jaxpr(jax.jit(function))(*[v.aval for v in eqn.invars]).jaxpr.eqns
        return eqn.replace(primitive=call.primitive, params=call.params, effects=call.effects)
    params = {name: _parameter(value, rules) for name, value in eqn.params.items()}
    same = all(params[name] is value for name, value in eqn.params.items())
    return eqn if same else eqn.replace(params=params)


def _parameter(value: Any, rules: Rules) -> Any:
    if isinstance(value, jex.ClosedJaxpr):
        return replaced(value, rules)
    if isinstance(value, jex.Jaxpr):
        return _replaced(value, rules)
    if type(value) is tuple:
        new = tuple(_parameter(each, rules) for each in value)
        return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
    return value
