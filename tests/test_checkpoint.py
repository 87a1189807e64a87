"""Checkpoints: what comes back from a file, names and the files they mean, and the states of trainings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnist_jax
from mnist_jax.errors import InputError
from mnist_jax.networks import CNN, MLP, CNN_bn
from mnist_jax.storage import checkpoint, files
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


def test_shape_and_classes_come_back(tmp_path):
    network, path = CNN.of((20, 16, 3), 4), tmp_path / "CNN-best-mine.safetensors"
    for about, names in (({"class_names": ["a", "b", "c", "d"]}, tuple("abcd")), ({}, tuple("0123"))):
        checkpoint.save(path, checkpoint.Checkpoint(network, network.initialize(jax.random.key(0)), about))
        loaded = checkpoint.load(path)
        assert loaded.network is network
        assert loaded.class_names == names
        assert loaded.classifier()(jnp.zeros((2, 20, 16, 3))).shape == (2, 4)


def test_files_that_do_not_say_their_shape_are_of_mnist():
    path = checkpoint.shipped() / "MLP-original.safetensors"
    assert b"class_names" not in path.read_bytes()
    loaded = checkpoint.load(path)
    assert loaded.network is MLP
    assert loaded.class_names == tuple("0123456789")


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
        ("MLP-best-emnist", Name("MLP", "", "best", "emnist")),
        ("CNN-original-my_shapes", Name("CNN", "", "original", "my_shapes")),
        ("CNN-ibp-inf-0.3-gpu-my_shapes", Name("CNN", "ibp-inf-0.3", "gpu", "my_shapes")),
        ("CNN-best-best", Name("CNN", "", "best", "best")),
    ],
)
def test_names(stem, name):
    assert Name.parse(stem) == name
    assert str(name) == stem.removesuffix("-mnist")


def test_names_find_files(tmp_path):
    for stem in ("CNN-best-kmnist", "CNN-original", "CNN-best-mine", "CNN-trades-best", "CNN_d-best", "my own"):
        (tmp_path / f"{stem}.safetensors").write_bytes(b"")
    assert checkpoint.find("CNN", tmp_path).stem == "CNN-original"
    assert checkpoint.find("CNN-trades", tmp_path).stem == "CNN-trades-best"
    assert checkpoint.find("CNN-best-kmnist", tmp_path).stem == "CNN-best-kmnist"
    assert checkpoint.find("CNN-best-mine", tmp_path).stem == "CNN-best-mine"
    assert checkpoint.find("CNN-best", tmp_path) == checkpoint.shipped() / "CNN-best.safetensors"
    assert checkpoint.find("CNN", tmp_path / "none") == checkpoint.shipped() / "CNN-best.safetensors"
    assert str(checkpoint.find("some/file", tmp_path)) == "some/file"
    with pytest.raises(InputError, match="no trained CNN-trades-original"):
        checkpoint.find("CNN-trades-original", tmp_path)
    with pytest.raises(InputError, match=r"train it, .*train --model CNN --recipe best --dataset emnist"):
        checkpoint.find("CNN-best-emnist", tmp_path)


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


def test_paths_may_be_strings_and_broken_links_are_ignored(tmp_path):
    path = tmp_path / "MLP-original.safetensors"
    shipped = checkpoint.shipped() / path.name
    (tmp_path / "MLP-best.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "MLP_d-best.safetensors").mkdir()
    assert checkpoint.find("MLP", tmp_path) == checkpoint.shipped() / "MLP-best.safetensors"
    assert checkpoint.find("MLP_d", tmp_path) == checkpoint.shipped() / "MLP_d-best.safetensors"
    checkpoint.save(str(path), checkpoint.load(str(shipped)))
    assert checkpoint.find("MLP", str(tmp_path)) == path
    for one in (path, str(path)):
        assert checkpoint.find(one) == path
        assert mnist_jax.load_classifier(one)(jnp.zeros((1, 28, 28, 1))).shape == (1, 10)
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        mnist_jax.load_classifier(tmp_path / "MLP-best.safetensors")
    with pytest.raises(InputError, match="cannot read the checkpoint"):
        mnist_jax.load_classifier(tmp_path)


def test_what_cannot_be_stored_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.NotWritten, match=r"cannot write .*state") as error:
        checkpoint.save_state(tmp_path / "file" / "state", 1, {"a": jnp.zeros(1)}, {})
    assert "free some space" not in str(error.value)
    with pytest.raises(TypeError):  # a programming error, not one of the disk
        checkpoint.save_state(tmp_path / "state", 1, {"a": jnp.zeros(1)}, {"b": object()})


def test_what_is_not_finite_is_null_in_the_metadata(tmp_path):
    path = tmp_path / "MLP.safetensors"
    weights = {name: jnp.full_like(array, jnp.nan) for name, array in MLP.initialize(jax.random.key(0)).items()}
    checkpoint.save(path, checkpoint.Checkpoint(MLP, weights, {"history": [{"train_loss": float("nan")}]}))
    again = checkpoint.load(path)
    assert again.about["history"] == [{"train_loss": None}]
    assert all(np.isnan(array).all() for array in again.weights.values())
    assert b"NaN" not in path.read_bytes()
