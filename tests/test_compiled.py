"""Compiled programs that are kept on disk."""

import os

import jax
import jax.numpy as jnp
import pytest

from mnist_jax import InputError, keep_compiled, unstable


@pytest.fixture
def folder():
    """Sets JAX's folder for compiled programs; afterwards it is again what it was."""
    name, before = "jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir

    yield lambda path: jax.config.update(name, path)
    jax.config.update(name, before)
    unstable.look_for_programs_anew()


def test_programs_are_kept_after_others_were_compiled(folder, tmp_path):
    folder(None)
    unstable.look_for_programs_anew()
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(5)).block_until_ready()
    assert keep_compiled(tmp_path / "kept") == tmp_path / "kept" == keep_compiled()
    assert not list((tmp_path / "kept").iterdir())
    jax.jit(lambda x: x * 3 + 2)(jnp.ones(5)).block_until_ready()
    assert list((tmp_path / "kept").iterdir())


def test_where_they_are_kept(folder, monkeypatch, tmp_path):
    folder(str(tmp_path / "set"))
    assert keep_compiled() == tmp_path / "set"
    for home in (tmp_path, tmp_path / "file", tmp_path / "h\udcf6"):
        folder(None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        if home == tmp_path:
            assert keep_compiled() == tmp_path / "mnist_jax" / "programs"
            (tmp_path / "file").touch()
        else:
            with pytest.raises(InputError):
                keep_compiled()
    folder(None)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(InputError, match="no home directory"):
        keep_compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody has a home
    with pytest.raises(InputError, match="no home directory"):
        keep_compiled()
