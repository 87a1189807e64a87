"""ONNX files as classifiers: exported networks, which are in tests/exported, and files of one operator each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import extra

from mnist_jax import InputError, Preprocess, attack, certify, from_onnx
from mnist_jax.interchange.operators import OPERATORS

onnx = extra("onnx")
from pathlib import Path  # noqa: E402

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

EXPORTED = Path(__file__).parent / "exported"
FILES = ("cnn", "cnn_of_one", "mlp")
SHAPE = (3, 6, 5)  # shape of the images in the files of one operator
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits(mnist):
    """Images `[B, 1, 28, 28]` in [0, 1]."""
    return np.moveaxis(mnist.val.images[:5], -1, 1).astype(np.float32) / 255


@pytest.mark.parametrize("name", FILES)
def test_exported_networks_have_the_logits_of_onnx(name, digits):
    classifier = from_onnx(EXPORTED / f"{name}.onnx")
    evaluator = ReferenceEvaluator(str(EXPORTED / f"{name}.onnx"))
    (given,) = evaluator.input_names
    expected = np.concatenate([evaluator.run(None, {given: digits[i : i + 1]})[0] for i in range(len(digits))])
    np.testing.assert_allclose(classifier(digits), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert from_onnx(EXPORTED / f"{name}.onnx").apply == classifier.apply
    assert hash(from_onnx(EXPORTED / f"{name}.onnx").apply) == hash(classifier.apply)


def test_two_exporters_of_a_network_give_the_same_logits_and_distances(digits):
    one, other = (from_onnx(EXPORTED / f"{name}.onnx") for name in FILES[:2])
    gradients = [jax.grad(lambda x, c=c: (c(x) * jnp.arange(10.0)[None]).sum())(digits) for c in (one, other)]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-5 * np.abs(gradients[0]).max())
    distances = [attack.ddn(c, digits, steps=30).distance for c in (one, other)]
    np.testing.assert_allclose(*distances, rtol=1e-3)
    assert np.isfinite(distances[0]).all()
    assert certify.ibp(other, digits, None, 0.002 * distances[0], norm=2).certified.all()


def test_images_with_channels_last(digits):
    classifier = from_onnx(EXPORTED / "cnn.onnx", preprocess=Preprocess(0.1, 0.3, channels_first=True))
    expected = from_onnx(EXPORTED / "cnn.onnx")((digits - np.float32(0.1)) / np.float32(0.3))
    np.testing.assert_allclose(classifier(np.moveaxis(digits, 1, -1)), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"takes images \[B, 1, 28, 28\], not \[5, 28, 28, 1\]"):
        from_onnx(EXPORTED / "cnn.onnx")(np.moveaxis(digits, 1, -1))


# One operator each


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def ints(name, *values):
    return tensor(name, np.array(values, np.int64))


def weights(name, *shape):
    return tensor(name, RANDOM.normal(size=shape).astype(np.float32))


def file_of(nodes, arrays=(), opset=20, shape=("batch", *SHAPE), outputs=("y",), kind=TensorProto.FLOAT):
    """A model whose last value is flattened to logits."""
    nodes = [*nodes, helper.make_node("Flatten", ["y"], ["logits"])] if outputs == ("y",) else nodes
    names = ("logits",) if outputs == ("y",) else outputs
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", "classes")) for name in names],
        list(arrays),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator, *more, **attributes):
    return [helper.make_node(operator, ["x", *more], ["y"], **attributes)]


def shape_of_the_batch():
    """The nodes that exporters write for `x.reshape(x.shape[0], -1)`."""
    make = helper.make_node
    return [
        make("Shape", ["x"], ["sizes"]),
        make("Gather", ["sizes", "zero"], ["batch"], axis=0),
        make("Unsqueeze", ["batch", "axes"], ["batches"]),
        make("Concat", ["batches", "rest"], ["shape"], axis=0),
        make("Reshape", ["x", "shape"], ["y"]),
    ]


ROWS = 3 * 6 * 5
CASES = {
    "Add": (node("Add", "w"), [weights("w", 6, 5)]),
    "Sub of a scalar": (node("Sub", "w"), [tensor("w", np.float32(0.3))]),
    "Mul by channel": (node("Mul", "w"), [weights("w", 3, 1, 1)]),
    "Div": (node("Div", "w"), [tensor("w", np.full((5,), 0.7, np.float32))]),
    "Pow": (node("Pow", "w"), [tensor("w", np.float32(2))]),
    "Max": (node("Max", "w"), [weights("w", 5)]),
    "Min": (node("Min", "w"), [weights("w", 5)]),
    "Clip": (node("Clip", "low", "high"), [tensor("low", np.float32(0.2)), tensor("high", np.float32(0.6))]),
    "Clip, old": (node("Clip", min=0.2, max=0.6), [], 6),
    "Relu": (node("Relu"), []),
    "LeakyRelu": (node("LeakyRelu", alpha=0.2), []),
    "Sigmoid": (node("Sigmoid"), []),
    "Tanh": (node("Tanh"), []),
    "Elu": (node("Elu", alpha=0.5), []),
    "Softmax": (node("Softmax", axis=1), []),
    "Gelu": (node("Gelu"), []),
    "HardSwish": (node("HardSwish"), []),
    "HardSigmoid": (node("HardSigmoid"), []),
    "PRelu": (node("PRelu", "w"), [weights("w", 3, 1, 1)]),
    "Conv": (node("Conv", "w", "b", pads=[1, 0, 2, 1], strides=[2, 1]), [weights("w", 4, 3, 3, 2), weights("b", 4)]),
    "Conv, dilated": (node("Conv", "w", dilations=[2, 1], auto_pad="SAME_UPPER"), [weights("w", 2, 3, 2, 2)]),
    "Conv, grouped": (node("Conv", "w", group=3), [weights("w", 6, 1, 3, 3)]),
    "MatMul": (node("MatMul", "w"), [weights("w", 5, 4)]),
    "MaxPool": (node("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]), []),
    "MaxPool, rounded up": (node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), []),
    "AveragePool": (node("AveragePool", kernel_shape=[2, 2], strides=[2, 1]), []),
    "AveragePool, padded": (node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), []),
    "AveragePool, with padding": (
        node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1),
        [],
    ),
    "GlobalAveragePool": (node("GlobalAveragePool"), []),
    "GlobalMaxPool": (node("GlobalMaxPool"), []),
    "ReduceMean": (node("ReduceMean", "axes", keepdims=0), [ints("axes", -1)]),
    "ReduceMean, old": (node("ReduceMean", axes=[2, 3]), [], 13),
    "ReduceSum": (node("ReduceSum", "axes"), [ints("axes", 1)]),
    "BatchNormalization": (
        node("BatchNormalization", "s", "b", "m", "v", epsilon=1e-3),
        [weights("s", 3), weights("b", 3), weights("m", 3), tensor("v", np.array([0.5, 1, 2], np.float32))],
    ),
    "LayerNormalization": (node("LayerNormalization", "s", "b", axis=-2), [weights("s", 6, 5), weights("b", 6, 5)]),
    "Flatten": (node("Flatten"), []),
    "Reshape": (node("Reshape", "shape"), [ints("shape", 0, 5, -1)]),
    "Reshape by the batch": (
        shape_of_the_batch(),
        [tensor("zero", np.int64(0)), ints("axes", 0), ints("rest", ROWS)],
    ),
    "Transpose": (node("Transpose", perm=[0, 3, 1, 2]), []),
    "Concat": (node("Concat", "x", axis=2), []),
    "Pad": (node("Pad", "pads", "value"), [ints("pads", 0, 0, 1, 2, 0, 0, 0, 1), tensor("value", np.float32(0.4))]),
    "Pad, reflected": (node("Pad", "pads", mode="reflect"), [ints("pads", 0, 0, 1, 2, 0, 0, 0, 1)]),
    "Slice": (node("Slice", "a", "b", "axes"), [ints("a", 1), ints("b", 1000), ints("axes", 2)]),
    "Slice, backwards": (
        node("Slice", "a", "b", "axes", "by"),
        [ints("a", -1), ints("b", -1000), ints("axes", 3), ints("by", -2)],
    ),
    "Gather": (node("Gather", "i", axis=1), [tensor("i", np.int64(2))]),
    "Squeeze": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["z"]),
            helper.make_node("Squeeze", ["z", "axes"], ["y"]),
        ],
        [ints("axes", 2, 3)],
    ),
    "Split": ([helper.make_node("Split", ["x"], ["z", "y"], axis=1, num_outputs=2)], []),
    "Constant": ([helper.make_node("Constant", [], ["w"], value_floats=[1.0, 2, 3, 4, 5]), *node("Mul", "w")], []),
    "Identity, Dropout and Cast": (
        [
            helper.make_node("Identity", ["x"], ["a"]),
            helper.make_node("Dropout", ["a"], ["b"]),
            helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_compute_what_onnx_computes(name, tmp_path):
    nodes, arrays, *opset = CASES[name]
    onnx.save(file_of(nodes, arrays, *opset), tmp_path / "one.onnx")
    classifier = from_onnx(tmp_path / "one.onnx")  # this compares the logits with those of ONNX's evaluator
    images = RANDOM.random((3, *SHAPE), np.float32)
    np.testing.assert_allclose(jax.jit(type(classifier).__call__)(classifier, images), classifier(images), rtol=1e-5)


def test_gemm_in_all_its_forms(tmp_path):
    for transposed in (0, 1):
        w = weights("w", *((4, ROWS) if transposed else (ROWS, 4)))
        nodes = [
            helper.make_node("Flatten", ["x"], ["rows"]),
            helper.make_node("Gemm", ["rows", "w", "b"], ["y"], transB=transposed, alpha=0.5, beta=2.0),
        ]
        onnx.save(file_of(nodes, [w, weights("b", 4)]), tmp_path / "gemm.onnx")
        assert {a.shape for a in from_onnx(tmp_path / "gemm.onnx").params.values()} == {(4,), tuple(w.dims)}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: file_of(node("Cos")), "operators that are not supported: Cos; supported are Abs, Add"),
        (lambda: file_of(node("Relu"), shape=(3, *SHAPE)), "fixed batch size of 3"),
        (lambda: file_of(node("Relu"), shape=("batch", 3, "height", 5)), "does not say the shape"),
        (lambda: file_of(node("Relu"), outputs=("y", "x")), "2 outputs"),
        (lambda: file_of(node("Reshape", "x")), "the shape of a Reshape depends on the image"),
        (
            lambda: file_of(node("BatchNormalization", *"sbmv", training_mode=1), [weights(n, 3) for n in "sbmv"]),
            "mode",
        ),
    ],
)
def test_what_is_refused(model, says, tmp_path):
    path = tmp_path / "refused.onnx"
    path.write_bytes(model().SerializeToString())
    with pytest.raises(InputError, match=says):
        from_onnx(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        from_onnx(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(InputError, match="no valid ONNX file"):
        from_onnx(tmp_path / "text.onnx")


def test_a_network_whose_logits_differ_is_refused(monkeypatch):
    monkeypatch.setitem(OPERATORS, "Tanh", lambda x, *, opset: 1.001 * jnp.tanh(x))
    with pytest.raises(InputError, match=r"largest difference is 0\.\d+, where the largest logit is"):
        from_onnx(EXPORTED / "mlp.onnx")


# On the command line


def test_commands_take_an_onnx_file(few_digits, tmp_path, run, refused):
    model, data = EXPORTED / "cnn.onnx", ("--data-dir", few_digits)
    status, out, err = run(
        "attack",
        "--model",
        model,
        "--method",
        "fgsm",
        "--radius",
        0.2,
        "--count",
        4,
        *data,
        "--norm",
        "inf",
        cwd=tmp_path,
    )
    assert status == 0, err
    assert "cnn-fgsm-linf-radius0.2-val.npz" in out
    assert (tmp_path / "runs/cnn-fgsm-linf-radius0.2-val.npz").exists()
    line = refused("attack", "--model", "none.onnx", "--count", 1, *data, cwd=tmp_path)
    assert "cannot read none.onnx" in line
