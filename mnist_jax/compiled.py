"""Compiled programs, kept on disk: what took seconds to compile once is read in a fraction of one afterwards."""

import os
import warnings
from pathlib import Path

import jax

from mnist_jax import unstable
from mnist_jax.errors import InputError
from mnist_jax.storage import files


def keep_compiled(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs on disk, for this process and all later ones on this machine.

    The commands do that by themselves. From Python it is a line of the caller's own, because it is a setting of JAX's
    for the whole process: programs that have nothing to do with this package are kept as well. It may be called at any
    time, and again. A program is known by all that it depends on, the versions of JAX and of the processor among it, so
    that nothing but the time changes. Nothing is ever deleted there; the folder may be, at any time.

    Args:
      folder: where to keep them. None means where JAX keeps them already (`jax_compilation_cache_dir`, or the
        environment's JAX_COMPILATION_CACHE_DIR), else `mnist_jax/programs` in the user's folder for caches,
        XDG_CACHE_HOME or ~/.cache.

    Returns:
      The folder. Only its owner should be able to write there: what is read from it is run.

    Raises:
      InputError: there can be no such folder.
    """
    # Relative or empty where it is not known; the standard wants a relative XDG_CACHE_HOME ignored.
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mnist_jax", "programs")
    before = unstable.setting("jax_compilation_cache_dir")
    chosen = Path(folder or before or usual)
    if not (folder or before or usual.is_absolute()):
        raise InputError("there is no home directory and no XDG_CACHE_HOME")
    try:
        str(chosen).encode()  # XLA takes no other names
    except UnicodeEncodeError as error:
        raise InputError(f"the name {str(chosen)!a} is not UTF-8") from error
    if "://" not in str(folder or before):  # a bucket, which JAX makes itself
        files.make_folder(chosen)
    if str(chosen) != before:
        jax.config.update("jax_compilation_cache_dir", str(chosen))
        unstable.look_for_programs_anew()
    # By default JAX keeps only what took a second to compile, and so nothing of ours.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A program that can't be kept or read is compiled again next time: no reason for several lines each.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return chosen
