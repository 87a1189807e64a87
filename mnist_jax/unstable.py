"""All that is used of JAX's private, experimental or undocumented parts: where to look when a new JAX breaks something.

JAX promises nothing of these and has no public counterpart of them. A multi-platform `jax.export` needs one more thing,
the safety check against custom calls switched off for `LAYOUT`.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import source_info_util
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.layout import Layout, with_layout_constraint

# XLA's older code for fusions and fewer optimizations: compiled in two thirds of the time, and one image is attacked as
# fast or faster. A batch on a CNN takes a third longer, so it is for the prompt only.
QUICKLY_COMPILED = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_disable_hlo_passes=tree_reduction_rewriter"
)
IN_ONE_PIECE = "--xla_cpu_parallel_codegen_split_count=1"  # a program in less memory, compiled on one core
KNOWN_BEFORE = (0, 11)  # the version of JAX: XLA ends the process for a flag that it does not know

LAYOUT = "LayoutConstraint"  # the custom call that `row_major` is


def traced(tree: Any) -> bool:
    """Whether anything in the pytree has no value yet, under a transformation of the caller's.

    `jax.core.Tracer` is the class to ask by, but `jax.core` may change from version to version.
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def staged(tree: Any = ()) -> bool:
    """Whether what is computed of the pytree now has no value yet: because something in it has none, or because a
    function of the caller's is being compiled, where not even constants are worked out."""
    return traced((tree, jnp.add(0, 0)))


def row_major(array: jax.Array) -> jax.Array:
    """The array with its last axis innermost in memory, which only an experimental function can ask for."""
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


def setting(name: str) -> Any:
    """What is set in this thread; that `jax.config` has an attribute for each of its options is documented for few."""
    return getattr(jax.config, name)


def line_of(equation: Any) -> str:
    """The line of the user's function that an equation of a jaxpr comes from; empty where it is not known."""
    text = source_info_util.summarize(equation.source_info)
    return "" if text == "<unknown>" else text


def in_scope(equation: Any, name: str) -> bool:
    """Whether an equation of a jaxpr comes from inside a `jax.named_scope` of that name."""
    return name in re.split(r"[/()]", str(equation.source_info.name_stack))


def look_for_programs_anew() -> None:
    """Makes JAX look at the setting of the folder for compiled programs, which it does once, at its first program."""
    compilation_cache.reset_cache()


def compile_quickly(*more: str) -> None:
    """For first answers sooner, with more flags perhaps; it has to come before anything is asked of JAX. Flags of the
    user's own count more."""
    own = os.environ.get("XLA_FLAGS", "").strip()  # or the name of a file with flags
    if QUICKLY_COMPILED in own:
        return
    if jax.__version_info__ < KNOWN_BEFORE and (not own or own.startswith("--")):
        os.environ["XLA_FLAGS"] = " ".join((QUICKLY_COMPILED, *more, own)).strip()
