"""What experiments/benchmark_attacks.py counts and computes, without the libraries' attacks."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import apply, random_problem

from mnist_jax import Classifier, InputError, attack
from mnist_jax.networks import MLP
from mnist_jax.storage import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import benchmark_attacks as benchmark
from peers import Queries

W, B, IMAGES, LABELS = random_problem(np.random.default_rng(0), batch=4)
PARAMS = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(B, jnp.float32)}


@pytest.fixture
def scene():
    trained = checkpoint.Checkpoint(MLP, MLP.initialize(jax.random.key(0)), {})
    images = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    labels = np.asarray(trained.classifier()(images)).argmax(1)
    return benchmark.Scene("MLP-mine", trained, "abc", 2.0, None, np.arange(3), images, labels)


def test_optimality_is_one_at_the_best_and_zero_where_nothing_is_found():
    best = np.array([1.0, 2, 4])
    assert benchmark.optimality(best, best) == 1
    assert benchmark.optimality(np.full(3, np.inf), best) == 0
    # Areas up to 4: (2 + 2 + 4) / 3 against (1 + 2 + 4) / 3.
    assert benchmark.optimality(np.array([2.0, 2, 9]), best) == pytest.approx(1 - (8 / 3 - 7 / 3) / (4 - 7 / 3))


def test_queries_are_counted_however_the_classifier_is_differentiated():
    queries = Queries(100)
    classifier = Classifier(benchmark.watch(apply, queries), PARAMS)
    x = jnp.asarray(IMAGES[:1], jnp.float32)

    def counts(function):
        queries.about(None)
        function(x)
        jax.effects_barrier()
        return queries.forwards, queries.backwards

    assert counts(classifier) == (1, 0)
    assert counts(jax.jit(jax.grad(lambda x: classifier(x).max()))) == (1, 1)
    assert counts(jax.jit(jax.jacrev(classifier))) == (1, 5)
    steps = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x - jax.grad(lambda x: classifier(x).max())(x), x))
    assert counts(steps) == (7, 7)


def test_queries_after_the_budget_are_not_kept():
    queries = Queries(2)
    queries.about(np.zeros((2, 1)), label=0, norm=2.0)
    ones, wrong = np.full((1, 2, 1), 1.0), np.array([[0.0, 1.0]])
    queries.forward(ones, wrong)
    assert queries.nearest == pytest.approx(2**0.5)
    queries.forward(ones * 2, wrong)  # outside the box
    queries.forward(ones / 2, wrong)  # one too many
    assert queries.nearest == pytest.approx(2**0.5)
    assert queries.forwards == 3


def test_counts_of_our_attacks_are_what_is_watched():
    queries = Queries(10**6)
    classifier = Classifier(benchmark.watch(apply, queries), PARAMS)
    for _ in range(2):  # the first time the classifier is looked at too
        queries.about(IMAGES[0], int(LABELS[0]), 2.0)
        result = attack.automatic(classifier, IMAGES[:1], LABELS[:1], steps=20)
        jax.effects_barrier()
    assert (queries.backwards, queries.forwards) == (20, 20 + int(result.forwards[0]))
    assert queries.nearest <= float(result.distance[0]) * (1 + 1e-5)


def test_best_distances_get_new_versions_and_keep_the_old(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BEST", tmp_path / "best")
    far, near = (
        attack.automatic(scene.trained.classifier(), scene.images, scene.labels, steps=60, learning_rate=rate)
        for rate in (0.05, 0.005)
    )
    assert (near.distance < far.distance).any()
    first = benchmark.freeze(scene, {"far": np.asarray(far.images)})
    content = first.read_bytes()
    assert benchmark.freeze(scene, {"far": np.asarray(far.images)}) is None
    second = benchmark.freeze(scene, {"near": np.asarray(near.images)})
    assert [first.name, second.name] == ["MLP-mine-l2-v1.npz", "MLP-mine-l2-v2.npz"]
    assert first.read_bytes() == content
    known, version = benchmark.best_known(scene)
    assert version == 2
    np.testing.assert_allclose(known, np.minimum(near.distance, far.distance), rtol=1e-5)
    # Other weights under the same name have best distances of their own, and nothing that is not adversarial counts.
    other = scene._replace(fingerprint="def")
    assert benchmark.best_known(other)[1] == 0
    assert benchmark.freeze(other, {"originals": scene.images}) is None


def test_results_come_back_and_are_measured(scene, tmp_path):
    rows = {
        "near": benchmark.Row(np.array([1.0, 2, 3]), np.array([1.0, 2]), 10, 2, 0.5, 3),
        "far": benchmark.Row(np.array([2.0, np.inf, 3]), np.array([2.0, np.inf]), 10, 2, 0.5, 3),
    }
    benchmark.save(tmp_path / "a.npz", scene, rows)
    back = benchmark.earlier(tmp_path / "a.npz", scene)
    for name, row in rows.items():
        for ours, theirs in zip(row, back[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    numbers = benchmark.measures(back, np.array([1.0, 2, 3]))
    assert numbers["far"]["success"] == pytest.approx(2 / 3)
    assert numbers["far"]["ratio to best"] == numbers["far"]["to others"] == 1.5
    assert numbers["near"]["to others"] == 0.75
    assert numbers["near"]["optimality"] == 1
    assert "| near | 100.0% | 2 |" in benchmark.table("title", numbers, {})
    lines = benchmark.summary("MLP-mine", {2.0: numbers, 1.0: numbers | {"else": numbers["near"]}})
    assert lines.splitlines() == [
        "| MLP-mine | L2 | s | L1 | s |",
        "|:--|--:|--:|--:|--:|",
        "| near | 1.000 | 0.5 | 1.000 | 0.5 |",
        "| else |  |  | 1.000 | 0.5 |",
        "| far | fools 67% | 0.5 | fools 67% | 0.5 |",
    ]
    rows = dict.fromkeys(("ddn:100", "ddn:100-foolbox", "ddn:1000"), numbers["near"])
    assert list(benchmark.chosen(rows, ["ddn:100"])) == ["ddn:100", "ddn:100-foolbox"]
    assert benchmark.chosen(rows, []) == rows
    with pytest.raises(InputError, match="other weights"):
        benchmark.earlier(tmp_path / "a.npz", scene._replace(fingerprint="def"))


def test_attacks_are_named_or_of_a_file(scene, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def my_attack(classifier, images, labels, *, norm, steps=1):\n    return norm, steps\n"
    )
    assert benchmark.attack_named(f"{tmp_path}/mine.py:my_attack:7", scene)(None, None, None) == (2.0, 7)
    assert benchmark.attack_named("nearest:60", scene).keywords == {"norm": 2.0, "effort": 60}
    assert benchmark.attack_named("nearest:fast", scene).keywords == {"norm": 2.0, "effort": "fast"}
    for spec, message in (
        ("dichotmy", "did you mean dichotomy"),
        ("automatic:x", "number of steps"),
        ("fgsm:3", "no steps"),
        (f"{tmp_path}/mine.py:other", "no function other"),
        ("nowhere.py:attack", "no file"),
    ):
        with pytest.raises(InputError, match=message):
            benchmark.attack_named(spec, scene)
