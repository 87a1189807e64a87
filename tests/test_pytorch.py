import contextlib
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import REFERENCE

from mnist_jax import networks
from mnist_jax.errors import InputError
from mnist_jax.evaluation import accuracy
from mnist_jax.networks import CNN, MLP, AlexNet, CapsNet, CNN_bn, Inception, ResNet, VGG_bn
from mnist_jax.storage import checkpoint, pytorch

# The accuracy table of the original project, in percent: train, test, val.
ORIGINAL = {
    "MLP": (98.70, 97.05, 96.92),
    "MLP_d": (95.76, 96.15, 95.58),
    "MLP_bn": (99.54, 97.99, 97.77),
    "CNN": (99.62, 98.95, 99.05),
    "CNN_d": (99.00, 98.78, 98.99),
    "CNN_bn": (99.93, 99.22, 99.20),
}


@pytest.mark.parametrize("architecture", ORIGINAL)
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the original project's weights are not here")
def test_original_weights_give_the_original_accuracies_to_the_digit(architecture, mnist):
    trained = pytorch.load(REFERENCE / f"{architecture}.npz", architecture)
    found = [round(100 * accuracy(trained.classifier(), s), 2) for s in (mnist.train, mnist.test, mnist.val)]
    assert tuple(found) == ORIGINAL[architecture]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_export_and_import_give_the_same_weights(tmp_path, suffix):
    trained = checkpoint.Checkpoint(CNN_bn, CNN_bn.initialize(jax.random.key(0)), {})
    path = tmp_path / f"weights{suffix}"
    pytorch.save(path, trained)
    again = pytorch.load(path, "CNN_bn")
    assert again.weights.keys() == trained.weights.keys()
    for name, array in trained.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


@pytest.mark.parametrize("network", [CNN, CNN.of((20, 16, 3), 4)], ids=["28x28", "20x16x3"])
def test_exported_weights_mean_the_same_to_a_network_of_channels_first(network):
    """The forward pass as PyTorch computes it: NCHW, OIHW, [out, in], flattened channel by channel."""
    weights = network.initialize(jax.random.key(0))
    state = pytorch.to_state_dict(weights, network)
    images = jax.random.uniform(jax.random.key(1), (2, *network.shape))

    x = np.asarray(images).transpose(0, 3, 1, 2)
    for layer in ("features.0", "features.3"):
        windows = np.lib.stride_tricks.sliding_window_view(x, state[f"{layer}.weight"].shape[2:], (2, 3))
        x = np.einsum("bchwij,ocij->bohw", windows, state[f"{layer}.weight"])
        x = np.maximum(x + state[f"{layer}.bias"][:, None, None], 0)
        x = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))
    x = x.reshape(2, -1) @ state["classifier.0.weight"].T + state["classifier.0.bias"]
    x = np.maximum(x, 0) @ state["classifier.2.weight"].T + state["classifier.2.bias"]
    np.testing.assert_allclose(x, network.apply(weights, images), atol=1e-5)


def test_dense_layers_flatten_colours_first_in_pytorch(tmp_path):
    network = MLP.of((9, 7, 3), 4)
    weights = network.initialize(jax.random.key(0))
    state = pytorch.to_state_dict(weights, network)
    images = jax.random.uniform(jax.random.key(1), (2, 9, 7, 3))
    x = np.asarray(images).transpose(0, 3, 1, 2).reshape(2, -1)
    for layer in ("classifier.0", "classifier.2", "classifier.4"):
        x = np.maximum(x, 0) @ state[f"{layer}.weight"].T + state[f"{layer}.bias"]
    np.testing.assert_allclose(x, network.apply(weights, images), atol=1e-5)
    pytorch.save(tmp_path / "MLP.npz", checkpoint.Checkpoint(network, weights, {}))
    again = pytorch.load(tmp_path / "MLP.npz", "MLP", (9, 7, 3), 4)
    assert again.network is network
    for name, array in weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


@pytest.mark.parametrize("network", [VGG_bn.of((20, 24, 3), 7), MLP.of((6, 5, 3), 4), AlexNet, Inception, ResNet])
def test_columns_of_the_classifier_are_channel_by_channel(network):
    made = networks.features_shape(network)
    weights = {k: np.zeros(shape, np.float32) for k, shape in networks.shapes(network).items()}
    first = next(k for k, w in weights.items() if k.startswith("classifier") and w.ndim == 2)
    weights[first] = np.arange(weights[first].size, dtype=np.float32).reshape(weights[first].shape)
    state = pytorch.to_state_dict(weights, network)
    kernel = state[first.replace("kernel", "weight")]
    for place in ((0,) * len(made), tuple(n - 1 for n in made), tuple(n // 2 for n in made)):
        channels_first = place[-1:] + place[:-1]
        column = np.ravel_multi_index(channels_first, made[-1:] + made[:-1])
        np.testing.assert_array_equal(kernel[:, column], weights[first][np.ravel_multi_index(place, made)])
    again = pytorch.from_state_dict(state, network)
    assert again.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)


def test_what_pytorch_has_no_layer_for_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"CapsNet is neither imported nor exported: .* capsules\.kernel \[288, 8, 160"
    ):
        pytorch.save(tmp_path / "weights.npz", checkpoint.Checkpoint(CapsNet, {}, {}))
    with pytest.raises(InputError, match="CapsNet is neither imported nor exported"):
        pytorch.from_state_dict({}, CapsNet)


def test_what_is_no_state_dict_of_the_architecture_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    pytorch.save(path, checkpoint.Checkpoint(CNN, CNN.initialize(jax.random.key(0)), {}))
    with pytest.raises(InputError, match=r"no state_dict of CNN_bn: classifier\.2\.running_mean"):
        pytorch.load(path, "CNN_bn")
    arrays = dict(np.load(path))
    arrays["classifier.0.weight"] = arrays["classifier.0.weight"][:, :-1]
    with pytest.raises(InputError, match=r"classifier\.0\.weight has the wrong shape"):
        pytorch.from_state_dict(arrays, CNN)
    with pytest.raises(InputError, match="cannot read"):
        pytorch.load(tmp_path / "missing.npz", "CNN")
    path.write_bytes(b"garbage")
    with pytest.raises(InputError, match="cannot read"):
        pytorch.load(path, "CNN")
    with pytest.raises(InputError, match=r"must end in \.safetensors or \.npz"):
        pytorch.save(tmp_path / "weights.pt", checkpoint.Checkpoint(CNN, {}, {}))


def test_half_and_double_precision_and_nan_are_weights(tmp_path):
    whole = pytorch.to_state_dict(CNN.initialize(jax.random.key(0)), CNN)
    for dtype in (np.float16, np.float64):
        arrays = {name: array.astype(dtype) for name, array in whole.items()}
        arrays["classifier.0.bias"][:] = np.nan
        arrays["classifier.2.bias"][:] = np.finfo(dtype).max  # of float64, more than float32 has
        np.savez(tmp_path / "weights.npz", **arrays)
        weights = pytorch.load(tmp_path / "weights.npz", "CNN").weights
        assert all(array.dtype == np.float32 for array in weights.values())
        assert np.isnan(weights["classifier.0.bias"]).all()


def test_every_kind_of_damaged_file_is_one_line(tmp_path):
    arrays = pytorch.to_state_dict(CNN.initialize(jax.random.key(0)), CNN)
    npz, tensors = tmp_path / "weights.npz", tmp_path / "weights.safetensors"
    np.savez(npz, **arrays)
    safetensors.numpy.save_file(arrays, tensors)

    def refuses(path):
        for how in (path, str(path)):
            with pytest.raises(InputError) as error:
                pytorch.load(how, "CNN")
            assert "\n" not in str(error.value)

    for path in (npz, tensors):
        content = path.read_bytes()
        for damaged in (
            content[:-100],
            content[:200],
            content[:9],
            b"",
            b"text\n",
            content[:400] + b"x" * 900,
            bytes(99),
        ):
            path.write_bytes(damaged)
            refuses(path)
        for at in range(0, len(content), len(content) // 40):
            flipped = bytearray(content)
            flipped[at : at + 8] = bytes(255 - byte for byte in flipped[at : at + 8])
            path.write_bytes(flipped)
            with contextlib.suppress(InputError):  # a safetensors file has no checksum of its numbers
                pytorch.load(path, "CNN")
        path.unlink()
        path.mkdir()
        refuses(path)
        path.rmdir()
        refuses(path)
    name = "classifier.2.weight"
    for array in (
        arrays[name].astype(object),
        arrays[name].astype(int),
        arrays[name].astype(complex),
        arrays[name].astype(str),
        arrays[name] > 0,
        arrays[name].view([("a", np.float32)]),
        arrays[name][:0],
        arrays[name][..., None],
        np.float32(3),
        np.array(None),
    ):
        np.savez(npz, **arrays | {name: array})
        refuses(npz)
    for other in ("classifier.0.weight", "features.0.weight", "features.0.bias"):
        for shape in ((0,), (120, 0), (0, 1000), (1, 1), (), (120, 1000, 1, 1)):
            np.savez(npz, **arrays | {other: np.zeros(shape, np.float32)})
            refuses(npz)
    with npz.open("wb") as file:
        np.save(file, arrays[name])  # one array, not a file of them
    refuses(npz)
    with zipfile.ZipFile(npz, "w") as file:
        file.writestr("notes.txt", "no array")
    refuses(npz)
