"""All uses of JAX's private, experimental or undocumented parts: the place to look when a new JAX breaks something.

JAX may change these at any time, and has no public counterparts. `jax.export` for several platforms also needs its
safety check against custom calls disabled for `LAYOUT`.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax._src import source_info_util
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.xla_metadata import set_xla_metadata

# XLA flags for its older code for fusions and for fewer optimizations. Programs compile in two thirds of the time, and
# attack one image as fast or faster; a batch on a CNN takes a third longer. So they are used for the prompt only.
QUICKLY_COMPILED = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_disable_hlo_passes=tree_reduction_rewriter"
)
IN_ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"  # compiles a program on one core, and takes less memory
# The flags are only set for JAX below this version, for which they are known to exist: XLA ends the process for a flag
# that it does not know.
KNOWN_BEFORE = (0, 11)

LAYOUT = "LayoutConstraint"  # the name of the custom call that `row_major` compiles to


def traced(tree: Any) -> bool:
    """Whether any leaf of the pytree is a tracer, which has no value yet, under a transformation of the caller's.

    `jax.core.Tracer` is documented for this, but `jax.core` may change from version to version.
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def staged(tree: Any = ()) -> bool:
    """Whether results computed from the pytree now would be tracers: a leaf is one, or a function of the caller's is
    being compiled, in which operations on constants are traced, too."""
    return traced((tree, jnp.add(0, 0)))


def row_major(array: jax.Array) -> jax.Array:
    """The array with its last axis innermost in memory, by an experimental function of JAX."""
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


def stored(arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays, computed once on a CPU and stored, however many operations read them.

    XLA's CPU compiler drops an `optimization_barrier` before it fuses, and then repeats a computation in all operations
    that read its result: where these are repeated themselves, programs grow, and with them the time to compile and to
    run. It does not fuse across a call with an attribute that forbids to inline it.
    """

    def called(*arrays: jax.Array) -> list[jax.Array]:
        with set_xla_metadata(inlineable="false"):
            return _same(list(arrays))

    return lax.platform_dependent(*arrays, cpu=called, default=lambda *arrays: list(arrays))


@jax.jit
def _same(arrays: list[jax.Array]) -> list[jax.Array]:
    return arrays


def setting(name: str) -> Any:
    """The value of an option of JAX in this thread; attributes of `jax.config` are documented for few options."""
    return getattr(jax.config, name)


def line_of(equation: Any) -> str:
    """The file and line of the user's function that an equation of a jaxpr comes from; empty where not known."""
    text = source_info_util.summarize(equation.source_info)
    return "" if text == "<unknown>" else text


def in_scope(equation: Any, name: str) -> bool:
    """Whether an equation of a jaxpr comes from inside of a `jax.named_scope` of this name."""
    return name in re.split(r"[/()]", str(equation.source_info.name_stack))


def look_for_programs_anew() -> None:
    """Makes JAX read its setting of the cache's folder again, which it does only once, at its first program."""
    compilation_cache.reset_cache()


def compile_quickly(*more: str) -> None:
    """Sets XLA flags that make programs compile faster, and `more` flags. Call it before any use of JAX; flags that the
    user has set take precedence."""
    own = os.environ.get("XLA_FLAGS", "").strip()  # flags, or the name of a file with flags
    if QUICKLY_COMPILED in own:
        return
    if jax.__version_info__ < KNOWN_BEFORE and (not own or own.startswith("--")):
        os.environ["XLA_FLAGS"] = " ".join((QUICKLY_COMPILED, *more, own)).strip()


def scan_counts(params: Any) -> tuple[int, int]:
    """How many constants and how many carries an equation of `scan` has, from its parameters."""
    if "ft_in" in params:  # JAX 0.11: the constants, the carries and the rows, as one tree
        constants, carries, _ = params["ft_in"].unpack()
        return len(constants), len(carries)
    return params["num_consts"], params["num_carry"]
