"""Reads a classifier's computation for one image as a list of equations, with every call inlined."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from mnist_jax import layers, unstable
from mnist_jax.classifier import Classifier
from mnist_jax.jaxprs import rewriting

# Primitives that call a function, and the parameter with its jaxpr. Their derivative rules are never read.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
# Primitives whose results are their operands.
IDENTITIES = {"stop_gradient", "optimization_barrier", "copy", "copy_p", "name", "sharding_constraint"}


# Primitives with operands that JAX may leave to be broadcast.
ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2", "nextafter", "rem"}


# Primitives that are evaluated while the program is read, if all operands are literals of the function itself.
FOLDED = {"convert_element_type", "broadcast_in_dim", "neg", "add", "sub", "mul", "max", "min", "gt", "ge", "lt", "le"}


def _whole(x: Any) -> bool:
    """Whether x is a scalar constant that is infinite, or an integer of an absolute value below 1024."""
    if not isinstance(x, np.ndarray) or x.ndim or x.dtype.kind not in "iufb":
        return False
    return bool(np.isinf(x)) if not np.isfinite(x) else bool(abs(x) < 2**10 and x == np.round(x))


class UnsupportedOperation(ValueError):
    """The classifier computes something that certificates know no bounds for; the message names it and its line."""


@dataclass(frozen=True)
class Equation:
    """One equation of a program: a primitive applied to values.

    Attributes:
      name: name of the primitive.
      primitive: JAX's primitive; None for one of `rewriting`'s own, such as "softplus".
      operands, results: numbers of values, see `Program`.
      params: the primitive's parameters.
      line: the line of the user's function that it comes from.
    """

    name: str
    primitive: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]
    params: dict[str, Any]
    line: str

    def bind(self, *operands: Any) -> list[Any]:
        """The equation's results for these operands."""
        results = self.primitive.bind(*operands, **self.params)
        return list(results) if self.primitive.multiple_results else [results]

    def refused(self, why: str) -> UnsupportedOperation:
        """The error that says that the equation cannot be bounded, why, and at which line it is."""
        return UnsupportedOperation(f"no bounds of {self.name} are known here ({why}), which is at {self.line}")


@dataclass
class Program:
    """A classifier's computation for one image: a list of equations. Values are numbered in the order of creation.

    Attributes:
      equations: in an order in which they can be evaluated.
      known: values that are constants, by number.
      weights: numbers of the leaves of the classifier's parameters.
      image: number of the image, `[1, *shape]`.
      logits: number of the logits, `[1, C]`.
      shapes: shape and type of every value, by number.
      depends: numbers of the values that depend on the image; all others depend on weights and constants only.
      uses: by number, how often each value is an operand of an equation.
      platforms: platforms for which the classifier has a branch of its own.
    """

    equations: list[Equation] = field(default_factory=list)
    known: dict[int, Any] = field(default_factory=dict)
    weights: tuple[int, ...] = ()
    image: int = -1
    logits: int = -1
    shapes: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    depends: set[int] = field(default_factory=set)
    uses: Counter[int] = field(default_factory=Counter)
    platforms: set[str] = field(default_factory=set)


def read(classifier: Classifier, shape: tuple[int, ...], dtype: Any, platform: str) -> Program:
    """The classifier's computation for one image of a shape and type, on a platform such as "cpu".

    Raises:
      UnsupportedOperation: the logits do not depend on the image, or are probabilities by a softmax, or the classifier
        has no branch for the platform.
    """
    image = jax.ShapeDtypeStruct((1, *shape), dtype)
    # Traced for one image, so that every value belongs to this image, whichever of its axes is the batch.
    with layers.plain():
        closed = jax.make_jaxpr(lambda params, image: replace(classifier, params=params, fast=False)(image))(
            classifier.params, image
        )
    reader = Reader(platform)
    inputs = [reader.new(v.aval) for v in closed.jaxpr.invars]
    program = reader.program
    program.weights, program.image = tuple(inputs[:-1]), inputs[-1]
    program.depends.add(program.image)
    (program.logits,) = reader.inline(closed, inputs)
    if program.logits not in program.depends:
        raise UnsupportedOperation("the classifier's logits do not depend on the image: there is nothing to certify")
    _refuse_probabilities(program)
    _drop_unused(program)
    return program


class Reader:
    """Builds a `Program`. The rules of `rewriting` use it to write the equations that replace one."""

    def __init__(self, platform: str):
        self.platform, self.program = platform, Program()
        self.line = "an unknown line"

    def new(self, aval: Any) -> int:
        """Adds a value of this shape and type; gives its number."""
        self.program.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return len(self.program.shapes) - 1

    def constant(self, value: Any) -> int:
        """Adds a constant; gives its number."""
        value = value if isinstance(value, jax.Array) else np.asarray(value)
        number = self.new(value)
        self.program.known[number] = value
        return number

    def shape(self, number: int) -> jax.ShapeDtypeStruct:
        """The shape and type of a value."""
        return self.program.shapes[number]

    def depends(self, numbers: Sequence[int]) -> bool:
        """Whether any of the values depends on the image."""
        return any(n in self.program.depends for n in numbers)

    def write(self, name: str, primitive: Any, operands: Sequence[int], avals: Sequence[Any], params: Any) -> list[int]:
        """Adds an equation; gives the numbers of its results."""
        results = [self.new(aval) for aval in avals]
        if self.depends(operands):
            self.program.depends.update(results)
        self.program.uses.update(operands)
        equation = Equation(name, primitive, tuple(operands), tuple(results), params, self.line)
        self.program.equations.append(equation)
        return results

    def trace(self, function: Callable, *operands: int) -> list[int]:
        """Adds the equations of a JAX function of these values; gives the numbers of its results."""
        return self.inline(jax.make_jaxpr(function)(*map(self.shape, operands)), operands)

    def inline(self, closed: Any, operands: Sequence[int]) -> list[int]:
        """Adds the equations of a closed jaxpr; gives the numbers of its results."""
        numbers = dict(zip(closed.jaxpr.invars, operands, strict=True))
        numbers |= {v: self.constant(c) for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}

        def number(atom):
            if isinstance(atom, jex.Literal):
                return self.constant(np.asarray(atom.val, atom.aval.dtype))
            return numbers[atom]

        for eqn in closed.jaxpr.eqns:
            inner, self.line = self.line, unstable.line_of(eqn) or self.line
            results = self._equation(eqn, [number(atom) for atom in eqn.invars])
            self.line = inner
            numbers |= dict(zip(eqn.outvars, results, strict=True))
        return [number(atom) for atom in closed.jaxpr.outvars]

    def _equation(self, eqn: Any, operands: list[int]) -> list[int]:
        name = eqn.primitive.name
        if name == "platform_index":
            return [self.constant(self._place(eqn.params["platforms"]))]
        if name == "cond" and eqn.params.get("branches_platforms"):
            branch = eqn.params["branches"][self._place(eqn.params["branches_platforms"])]
            return self.inline(branch, operands[1:])
        if name in CALLS:
            closed = eqn.params[CALLS[name]]
            if not isinstance(closed, jex.ClosedJaxpr):
                closed = jex.ClosedJaxpr(closed, ())
            if self.depends(operands):
                results = rewriting.recognized(self, closed, operands)
                if results is not None:
                    return results
            return self.inline(closed, operands)
        if name in IDENTITIES:
            return operands
        if name == "scan":
            return self._scan(eqn, operands)
        if self.depends(operands):
            if name in ELEMENTWISE:
                operands = [self._as_large(n, eqn.outvars[0].aval.shape) for n in operands]
            rule = rewriting.RULES.get(name)
            results = rule and rule(self, operands, eqn.params)
            if results is not None:
                return results
        elif (folded := self._folded(eqn, operands)) is not None:
            return [self.constant(folded)]
        avals = [v.aval for v in eqn.outvars]
        return self.write(name, eqn.primitive, operands, avals, eqn.params)

    def _folded(self, eqn: Any, operands: list[int]) -> Any:
        """The equation's result where all operands are small integers in the function itself, so that it is exact.

        None in all other cases.
        """
        known = [self.program.known.get(n) for n in operands]
        if eqn.primitive.name not in FOLDED or not known or not all(map(_whole, known)):
            return None
        with jax.ensure_compile_time_eval():
            return np.asarray(eqn.primitive.bind(*known, **eqn.params))

    def _as_large(self, number: int, shape: tuple[int, ...]) -> int:
        """The value broadcast to a shape, so that its bounds and its coefficients have that shape, too."""
        if self.shape(number).shape == shape or number not in self.program.depends:
            return number
        return self.trace(lambda x: jnp.broadcast_to(x, shape), number)[0]

    def _place(self, platforms: Sequence[Any]) -> int:
        """The index of the branch for the reader's platform; the branch for None is for all other platforms."""
        self.program.platforms.update(p for ps in platforms if ps is not None for p in ps)
        for place, names in enumerate(platforms):
            if names is None or self.platform in names:
                return place
        raise UnsupportedOperation(f"the classifier has nothing for the platform {self.platform}")

    def _scan(self, eqn: Any, operands: list[int]) -> list[int]:
        """Adds a loop of fixed length, unrolled; gives the numbers of its results."""
        params = eqn.params
        constants, carries = unstable.scan_counts(params)
        fixed, state, rows = operands[:constants], operands[constants:][:carries], operands[constants + carries :]
        rounds = range(params["length"])
        given: dict[int, list[int]] = {}
        for i in reversed(rounds) if params["reverse"] else rounds:
            row = [self.trace(partial(jax.lax.index_in_dim, index=i, axis=0, keepdims=False), n)[0] for n in rows]
            results = self.inline(params["jaxpr"], [*fixed, *state, *row])
            state, given[i] = results[:carries], results[carries:]
        columns = [[given[i][k] for i in rounds] for k in range(len(eqn.outvars) - carries)]
        return state + [self.trace(lambda *each: jnp.stack(each), *column)[0] for column in columns]


def _drop_unused(program: Program) -> None:
    """Drops the equations on which the logits do not depend: rules may leave some whose results were replaced."""
    used, kept = {program.logits}, []
    for equation in reversed(program.equations):
        if used.intersection(equation.results):
            used.update(equation.operands)
            kept.append(equation)
    program.equations = kept[::-1]


def _refuse_probabilities(program: Program) -> None:
    """Raises `UnsupportedOperation` where the last operation is a softmax: bounds of probabilities would be loose."""
    made_by = {result: e for e in program.equations for result in e.results}
    last = made_by.get(program.logits)
    if last is None or last.name != "mul":
        return
    one, other = (made_by.get(n) for n in last.operands)
    divided = other is not None and other.name == "integer_pow" and other.params["y"] == -1
    if divided and one is not None and one.name == "exp":
        raise UnsupportedOperation(
            f"the classifier ends in a softmax, at {last.line}: let it give its logits, which predict the same class"
        )
