"""JAX's persistent compilation cache: compiled programs are kept on disk, and read again by later processes."""

import os
import warnings
from pathlib import Path

import jax

from mnist_jax import unstable
from mnist_jax.errors import InputError
from mnist_jax.storage import files


def keep_compiled(folder: str | os.PathLike[str] | None = None) -> Path:
    """Turns on JAX's persistent compilation cache: compiled programs are kept on disk for later processes.

    The commands call it themselves. In Python it is up to the caller, because the setting holds for the whole process:
    programs that have nothing to do with this package are kept as well. It may be called at any time, also repeatedly.
    JAX identifies a program by everything that it depends on, such as its own version and the processor, so that the
    cache changes nothing but the time. Programs are never deleted from the folder; the user may delete it at any time.

    Args:
      folder: where to keep the programs. None means the folder that JAX is already set to
        (`jax_compilation_cache_dir`, or JAX_COMPILATION_CACHE_DIR in the environment), else `mnist_jax/programs` in
        the user's cache folder, XDG_CACHE_HOME or ~/.cache.

    Returns:
      The folder. Only its owner should be able to write to it: programs that are read from it are run.

    Raises:
      InputError: the folder can't be made, or its name is not UTF-8.
    """
    # It is relative where there is no home directory, or XDG_CACHE_HOME is relative, which is to be ignored.
    usual = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mnist_jax", "programs")
    before = unstable.setting("jax_compilation_cache_dir")
    chosen = Path(folder or before or usual)
    if not (folder or before or usual.is_absolute()):
        raise InputError("there is no home directory and no XDG_CACHE_HOME")
    try:
        str(chosen).encode()  # XLA takes only names in UTF-8
    except UnicodeEncodeError as error:
        raise InputError(f"the name {str(chosen)!a} is not UTF-8") from error
    if "://" not in str(folder or before):  # the address of a storage bucket needs no folder
        files.make_folder(chosen)
    if str(chosen) != before:
        jax.config.update("jax_compilation_cache_dir", str(chosen))
        unstable.look_for_programs_anew()
    # By default JAX keeps only programs that took a second or more to compile; most of ours take less.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    # A program that can't be read from the cache is compiled again: that needs no warning of several lines.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    return chosen
