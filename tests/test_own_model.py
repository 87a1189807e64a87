"""Networks of one's own on the command line: FILE.py:FUNCTION; ONNX files are in `test_from_onnx.py`."""

import argparse
import json
import sys

import numpy as np
import pytest

from mnist_jax import InputError, from_onnx, from_torch
from mnist_jax.commands import evaluate, job
from mnist_jax.storage.results import weights_of

LINEAR = """
import numpy as np
from mnist_jax import Classifier, Preprocess

def apply(w, images):
    return images.reshape(len(images), -1) @ w

def build():
    w = np.random.default_rng({seed}).normal(size=(28 * 28, 10)).astype(np.float32)
    return Classifier(apply, w, Preprocess(0, 255), bounds=(0, 255)), "and more"

def fails():
    raise RuntimeError("no network today")

def other():
    return "a string"

def small():
    return Classifier(apply, np.zeros((9, 10), np.float32))

def few():
    return Classifier(apply, np.zeros((28 * 28, 3), np.float32))
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(LINEAR.format(seed=0))
    return tmp_path / "mine.py"


def options(few_digits, tmp_path):
    return argparse.Namespace(output=tmp_path, dataset=None, data_dir=few_digits)


def test_a_function_makes_the_classifier_of_images_in_the_unit_box(mine, few_digits, tmp_path):
    subject = job.subject(f"{mine}:build", "val", options(few_digits, tmp_path))
    assert (subject.path, subject.dataset, subject.class_names) == (mine, "mnist", tuple("0123456789"))
    w = np.random.default_rng(0).normal(size=(28 * 28, 10)).astype(np.float32)
    images = subject.split.images[:4] / np.float32(255)
    np.testing.assert_allclose(subject.classifier(images), images.reshape(4, -1) @ w, rtol=1e-4, atol=1e-4)
    before = weights_of(mine, subject.classifier)
    mine.write_text(LINEAR.format(seed=1))
    assert weights_of(mine, job.subject(f"{mine}:build", "val", options(few_digits, tmp_path)).classifier) != before


def test_it_is_evaluated_and_attacked(mine, few_digits, tmp_path, capsys, monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr("mnist_jax.commands.console.start", lambda: None)
        assert evaluate.main(["--model", f"{mine}:build", "--data-dir", str(few_digits), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["networks"]
    assert (result["model"], result["path"]) == ("mine", str(mine))
    assert all(0 <= accuracy <= 0.5 for accuracy in result["accuracies"].values())
    arguments = ("--model", "mine.py:build", "--data-dir", few_digits, "--count", 3, "--method", "fgsm")
    status, out, err = run("attack", *arguments, "--norm", "inf", "--radius", 0.1, "--json", cwd=tmp_path)
    assert status == 0, err
    assert json.loads(out)["results"].endswith("mine-fgsm-linf-radius0.1-val.npz")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("fails", "fails() of mine.py fails with RuntimeError: no network today"),
        ("other", "other() of mine.py gives no mnist_jax.Classifier, but str"),
        ("nothing", "mine.py has no function or class nothing"),
        ("small", "mine.py does not take images of 28x28 pixels (TypeError"),
        ("few", "mine.py knows 3 classes, but mnist has 10"),
    ],
)
def test_what_is_refused(name, says, mine, few_digits, tmp_path, refused):
    line = refused("attack", "--model", f"mine.py:{name}", "--data-dir", few_digits, "--count", 1, cwd=tmp_path)
    assert says in line


def test_what_is_not_installed_is_said(monkeypatch, tmp_path, few_digits, refused):
    for name in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    with pytest.raises(InputError, match=r'pip install "mnist_jax\[torch\]"'):
        from_torch(None, None)
    with pytest.raises(InputError, match=r'pip install "mnist_jax\[onnx\]"'):
        from_onnx("net.onnx")
    line = refused("certify", "--model", "net.onnx", "--data-dir", few_digits, cwd=tmp_path)
    assert 'pip install "mnist_jax[onnx]"' in line
