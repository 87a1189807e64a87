"""Results of attacks: as files, and the same in chunks as all at once."""

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import InputError, chunks
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.storage.results import Record, load, save


def some_record():
    rng = np.random.default_rng(0)
    found = AttackResult(rng.uniform(size=(3, 4, 4, 1)).astype(np.float32), *rng.integers(0, 2, (4, 3)))
    return Record(np.array([5, 1, 7]), np.array([0, 9, 3]), found, {"norm": 2.0, "model": "CNN"})


def test_a_file_gives_back_what_was_saved(tmp_path):
    save(tmp_path / "a.npz", some_record())
    back = load(tmp_path / "a.npz")
    assert back.about.items() >= {"norm": 2.0, "model": "CNN"}.items()
    for ours, theirs in zip((*some_record()[:2], *some_record().result), (*back[:2], *back.result), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="there is no file"):
        load(path)
    save(path, some_record())
    whole = path.read_bytes()
    for damaged in (b"", whole[:-30], b"nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not a file of attack results, or damaged"):
            load(path)
    np.savez(path, format=99)
    with pytest.raises(InputError, match="newer mnist_jax"):
        load(path)


@pytest.mark.parametrize("count", [0, 1, 3, 128, 300])
def test_chunks_give_the_same_as_all_at_once(count):
    a, b = np.arange(2.0 * count).reshape(count, 2), np.arange(count)
    sizes = set()

    def program(factor, pair):
        sizes.add(len(pair[1]))
        return {"sum": factor * (pair[0].sum(1) + pair[1]), "a": pair[0]}

    result = chunks.in_chunks(program, ((jnp.asarray(a), jnp.asarray(b)),), 2.0)
    np.testing.assert_array_equal(result["sum"], 2 * (a.sum(1) + b))
    np.testing.assert_array_equal(result["a"], a)
    assert len(sizes) == 1
    assert all(size & (size - 1) == 0 for size in sizes)


@pytest.mark.parametrize(("place", "value"), [(2, 2.0), (2, 0.5), (3, -5), (3, 0.5), (4, np.nan), (4, -1)])
def test_impossible_successes_and_counts_are_reported_as_damage(tmp_path, place, value):
    record = some_record()
    arrays = list(record.result)
    arrays[place] = np.full(3, value)
    save(tmp_path / "a.npz", record._replace(result=AttackResult(*arrays)))
    with pytest.raises(InputError, match="its successes or its counts are invalid"):
        load(tmp_path / "a.npz")
