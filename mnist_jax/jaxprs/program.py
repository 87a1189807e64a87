"""A classifier's computation for one image as a row of equations, with every call inlined."""

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

# Calls, and where each keeps what it computes. What it says of derivatives is never looked at.
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
# Equations that give their operands back as they are.
IDENTITIES = {"stop_gradient", "optimization_barrier", "copy", "copy_p", "name", "sharding_constraint"}


# Equations whose operands JAX may leave to be broadcast.
ELEMENTWISE = {"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2", "nextafter", "rem"}


# Equations of constants in the function itself, such as counts, that are worked out at once.
FOLDED = {"convert_element_type", "broadcast_in_dim", "neg", "add", "sub", "mul", "max", "min", "gt", "ge", "lt", "le"}


def _whole(x: Any) -> bool:
    """Whether it is a scalar constant that is a small whole number, or infinite."""
    if not isinstance(x, np.ndarray) or x.ndim or x.dtype.kind not in "iufb":
        return False
    return bool(np.isinf(x)) if not np.isfinite(x) else bool(abs(x) < 2**10 and x == np.round(x))


class UnsupportedOperation(ValueError):
    """The classifier computes something that no bound is known for here; the message names it, and its line."""


@dataclass(frozen=True)
class Equation:
    """One step of the computation.

    Attributes:
      name: of the primitive.
      primitive: JAX's; None for a step of `rewriting`, which is known by its name alone.
      operands, results: numbers of values, see `Program`.
      params: the primitive's.
      line: of the user's function that it comes from.
    """

    name: str
    primitive: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]
    params: dict[str, Any]
    line: str

    def bind(self, *operands: Any) -> list[Any]:
        """What the equation gives."""
        results = self.primitive.bind(*operands, **self.params)
        return list(results) if self.primitive.multiple_results else [results]

    def refused(self, why: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"no bounds of {self.name} are known here ({why}), which is at {self.line}")


@dataclass
class Program:
    """The equations in a row. Values have numbers, in the order in which they come into being.

    Attributes:
      equations: in an order in which they can be worked off.
      known: constants by their numbers.
      weights: numbers of the leaves of the classifier's parameters.
      image: number of the image, `[1, *shape]`.
      logits: number of what comes out, `[1, C]`.
      shapes: shape and type of every value.
      depends: numbers of the values that depend on the image; all others are made of weights and constants.
      uses: how many operands of equations each value is.
      platforms: those for which something was chosen.
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
    """The classifier's computation for one image of that shape, as it is on a platform such as "cpu".

    Raises:
      UnsupportedOperation: a loop or a branch depends on the image, or something else that can't be inlined.
    """
    image = jax.ShapeDtypeStruct((1, *shape), dtype)
    # For one image: so every value is of this image alone, wherever in it the batch may be.
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
    return program


class Reader:
    """Writes a `Program`. Rules of `rewriting` are given it, to write what stands for an equation."""

    def __init__(self, platform: str):
        self.platform, self.program = platform, Program()
        self.line = "an unknown line"

    def new(self, aval: Any) -> int:
        """The number of a new value."""
        self.program.shapes.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return len(self.program.shapes) - 1

    def constant(self, value: Any) -> int:
        value = value if isinstance(value, jax.Array) else np.asarray(value)
        number = self.new(value)
        self.program.known[number] = value
        return number

    def shape(self, number: int) -> jax.ShapeDtypeStruct:
        return self.program.shapes[number]

    def depends(self, numbers: Sequence[int]) -> bool:
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
        """Adds what a JAX function of these values computes."""
        return self.inline(jax.make_jaxpr(function)(*map(self.shape, operands)), operands)

    def inline(self, closed: Any, operands: Sequence[int]) -> list[int]:
        """Adds the equations of a jaxpr."""
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
        """What comes of whole numbers that are written in the function itself, which is exact; else None."""
        known = [self.program.known.get(n) for n in operands]
        if eqn.primitive.name not in FOLDED or not known or not all(map(_whole, known)):
            return None
        with jax.ensure_compile_time_eval():
            return np.asarray(eqn.primitive.bind(*known, **eqn.params))

    def _as_large(self, number: int, shape: tuple[int, ...]) -> int:
        """The value broadcast to a shape, so that its bounds, and what goes back to it, have one too."""
        if self.shape(number).shape == shape or number not in self.program.depends:
            return number
        return self.trace(lambda x: jnp.broadcast_to(x, shape), number)[0]

    def _place(self, platforms: Sequence[Any]) -> int:
        """Of the branches, that of our platform; the one for None is for all others."""
        self.program.platforms.update(p for ps in platforms if ps is not None for p in ps)
        for place, names in enumerate(platforms):
            if names is None or self.platform in names:
                return place
        raise UnsupportedOperation(f"the classifier has nothing for the platform {self.platform}")

    def _scan(self, eqn: Any, operands: list[int]) -> list[int]:
        """A loop of fixed length, every round of it."""
        params = eqn.params
        constants, carries = params["num_consts"], params["num_carry"]
        fixed, state, rows = operands[:constants], operands[constants:][:carries], operands[constants + carries :]
        rounds = range(params["length"])
        given: dict[int, list[int]] = {}
        for i in reversed(rounds) if params["reverse"] else rounds:
            row = [self.trace(partial(jax.lax.index_in_dim, index=i, axis=0, keepdims=False), n)[0] for n in rows]
            results = self.inline(params["jaxpr"], [*fixed, *state, *row])
            state, given[i] = results[:carries], results[carries:]
        columns = [[given[i][k] for i in rounds] for k in range(len(eqn.outvars) - carries)]
        return state + [self.trace(lambda *each: jnp.stack(each), *column)[0] for column in columns]


def _refuse_probabilities(program: Program) -> None:
    """Raises where a softmax comes last: its bounds would be loose, and it changes no class."""
    made_by = {result: e for e in program.equations for result in e.results}
    last = made_by.get(program.logits)
    if last is None or last.name != "mul":
        return
    one, other = (made_by.get(n) for n in last.operands)
    divided = other is not None and other.name == "integer_pow" and other.params["y"] == -1
    if divided and one is not None and one.name == "exp":
        raise UnsupportedOperation(
            f"the classifier ends in a softmax, at {last.line}: let it give its logits, whose largest is the same"
        )
