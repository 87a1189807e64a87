"""Replaces equations of a jaxpr by others, at any depth; everything else stays as it is.

Unlike `program`, which inlines every call by what it computes, this keeps calls, and so their derivative rules.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend.core as jex

from mnist_jax import unstable
from mnist_jax.layers import AS_WRITTEN

# By the name of a primitive: a function of an equation that gives the function to replace it by, or None to keep it.
Rules = Mapping[str, Callable[[jex.JaxprEqn], Callable | None]]


def replaced(closed: jex.ClosedJaxpr, rules: Rules) -> jex.ClosedJaxpr:
    """The closed jaxpr with equations replaced by the rules; the same object where no rule applies.

    Jaxprs inside of calls, loops, branches and checkpoints are included. Custom derivative rules stay as they are.
    Branches by platform are left alone, and so is everything in the scope `AS_WRITTEN`.
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
