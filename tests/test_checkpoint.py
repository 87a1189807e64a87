import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnist_jax
from mnist_jax.errors import InputError
from mnist_jax.networks import CNN, CNN_bn
from mnist_jax.storage import checkpoint
from mnist_jax.storage.checkpoint import Name


def test_round_trip_keeps_every_bit_and_all_that_is_known(tmp_path):
    weights = CNN_bn.initialize(jax.random.key(1))
    about = {"seed": 3, "accuracies": {"test": 0.5}, "hyperparameters": {"loss": "cross_entropy"}}
    path = tmp_path / "CNN_bn-best.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(CNN_bn, weights, about))
    loaded = checkpoint.load(path)
    assert loaded.network is CNN_bn
    assert loaded.about == about | {"version": mnist_jax.__version__}
    assert loaded.weights.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_two_loaded_classifiers_share_one_program():
    traces = []

    @jax.jit
    def logits(classifier, images):
        traces.append(1)
        return classifier(images)

    images = jnp.zeros((2, 28, 28, 1))
    best, original = (mnist_jax.load_classifier(f"CNN-{recipe}") for recipe in ("best", "original"))
    assert not np.array_equal(logits(best, images), logits(original, images))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("CNN", Name("CNN")),
        ("MLP_bn-best", Name("MLP_bn", "", "best")),
        ("CNN-trades-best-kmnist", Name("CNN", "trades", "best", "kmnist")),
        ("CNN-original-mnist", Name("CNN", "", "original", "mnist")),
    ],
)
def test_names(stem, name):
    assert Name.parse(stem) == name
    assert str(name) == stem.removesuffix("-mnist")


def test_names_find_files(tmp_path):
    for stem in ("CNN-best-kmnist", "CNN-original", "CNN-trades-best", "CNN_d-best", "my own"):
        (tmp_path / f"{stem}.safetensors").write_bytes(b"")
    assert checkpoint.find("CNN", tmp_path).stem == "CNN-original"
    assert checkpoint.find("CNN-trades", tmp_path).stem == "CNN-trades-best"
    assert checkpoint.find("CNN-best-kmnist", tmp_path).stem == "CNN-best-kmnist"
    assert checkpoint.find("CNN-best", tmp_path) == checkpoint.shipped() / "CNN-best.safetensors"
    assert checkpoint.find("CNN", tmp_path / "none") == checkpoint.shipped() / "CNN-best.safetensors"
    assert str(checkpoint.find("some/file", tmp_path)) == "some/file"
    with pytest.raises(InputError, match="no trained CNN-trades-original"):
        checkpoint.find("CNN-trades-original", tmp_path)


def test_a_state_comes_back_and_the_newest_replaces_the_older(tmp_path):
    folder = tmp_path / "state"
    for step in (1, 2):
        state = {"weights": CNN.initialize(jax.random.key(step)), "step": jnp.int32(step)}
        checkpoint.save_state(folder, step, state, {"history": [{"loss": 0.1 + step}]})
    restored, about = checkpoint.load_state(folder, state)
    assert about == {"history": [{"loss": 2.1}]}
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_no_state_and_the_state_of_another_network_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        checkpoint.load_state(tmp_path / "none", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing to resume"):
        checkpoint.load_state(tmp_path / "empty", {})
    checkpoint.save_state(tmp_path / "state", 1, CNN.initialize(jax.random.key(0)), {})
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load_state(tmp_path / "state", CNN_bn.initialize(jax.random.key(0)))
