"""python -m mnist_jax.evaluate, on real files."""

import json
import os
import time

import jax
import pytest

from mnist_jax.data import Split
from mnist_jax.evaluation import accuracy
from mnist_jax.networks import CNN, MLP, ORIGINALS
from mnist_jax.recipe import RECIPES
from mnist_jax.storage import checkpoint
from mnist_jax.storage.results import load

DEEP = ("VGG_bn", "Inception", "ResNet", "CapsNet")  # too slow for all images
SHIPPED = sorted(checkpoint.shipped().glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_networks_have_the_accuracies_they_were_kept_with(path, mnist):
    trained = checkpoint.load(path)
    kept = trained.about["accuracies"]["val"]
    if trained.network.__name__ in DEEP:
        part = Split(*(array[:2000] for array in mnist.val))
        assert accuracy(trained.classifier(), part) == pytest.approx(kept, abs=5e-3)
    else:  # another processor rounds differently, which can change the predictions of a few images
        assert accuracy(trained.classifier(), mnist.val) == pytest.approx(kept, abs=2e-4)


def test_all(run, tmp_path, few_digits):
    status, out, err = run("evaluate", "--all", "--json", "--data-dir", few_digits, cwd=tmp_path)
    assert status == 0, err
    results = json.loads(out)["networks"]
    assert [result["model"] for result in results] == [path.stem for path in SHIPPED]
    names = [checkpoint.Name.parse(result["model"]) for result in results]
    assert sorted(
        (name.architecture, name.recipe) for name in names if name.architecture in ORIGINALS and not name.defense
    ) == [(network, recipe) for network in sorted(ORIGINALS) for recipe in RECIPES]
    for result in results:
        assert sorted(result["accuracies"]) == ["test", "train", "val"]
        assert all(0.9 < accuracy <= 1 for accuracy in result["accuracies"].values())


def test_accuracies_are_those_that_a_network_was_kept_with(run, tmp_path):
    status, out, err = run("evaluate", "--model", "MLP", "--json", cwd=tmp_path)
    assert status == 0, err
    (result,) = json.loads(out)["networks"]
    assert result["accuracies"] == pytest.approx(checkpoint.load(result["path"]).about["accuracies"], abs=2e-4)


def test_text(run, tmp_path, few_digits):
    status, out, err = run("evaluate", "--model", "MLP-original", "--data-dir", few_digits, cwd=tmp_path)
    assert status == 0, err
    header, row = out.splitlines()
    assert header.split() == ["network", "train", "test", "val"]
    assert row.startswith("MLP-original")
    assert "evaluating" in err


def test_robust_accuracy_is_that_of_the_file(run, tmp_path):
    arguments = ("--model", "MLP-original", "--robust", "--radius", 0.2, "--ids", "3,14,247", "--json")
    status, out, err = run("evaluate", *arguments, cwd=tmp_path)
    assert status == 0, err
    summary, path = json.loads(out), tmp_path / "runs" / "MLP-original-auto_attack-linf-radius0.2-val.npz"
    record = load(path)
    assert record.indices.tolist() == [3, 14, 247]
    assert (record.about["norm"], record.about["options"]) == (float("inf"), {"radius": 0.2})
    assert summary["robust_accuracy"] == 1 - record.result.success.mean()
    assert summary["accuracy"] == (record.result.distance > 0).mean()
    status, out, err = run("evaluate", "--verify", path, cwd=tmp_path)
    assert status == 0, out + err
    # No image is left: --resume only reads the file.
    status, out, err = run("evaluate", *arguments[:-1], "--resume", cwd=tmp_path)
    assert status == 0, err
    assert out.startswith(f"robust accuracy:  {summary['robust_accuracy']:.2%} of 3 images, at radius 0.2 of norm inf")


def untrained(path, network=MLP):
    path.parent.mkdir(exist_ok=True)
    checkpoint.save(path, checkpoint.Checkpoint(network, network.initialize(jax.random.key(0)), {}))
    return path


def test_own_newest_network_comes_before_the_shipped_one(run, tmp_path, few_digits):
    older, newer = (untrained(tmp_path / f"runs/MLP-{recipe}.safetensors") for recipe in ("best", "original"))
    os.utime(older, (time.time() - 100,) * 2)
    untrained(tmp_path / "runs/MLP_bn-best.safetensors")
    status, out, err = run("evaluate", "--model", "MLP", "--data-dir", few_digits, "--json", cwd=tmp_path)
    assert status == 0, err
    assert json.loads(out)["networks"][0]["path"] == str(newer.relative_to(tmp_path))
    assert f"evaluating {newer.relative_to(tmp_path)}" in err


def test_damaged_checkpoints_are_refused(refused, tmp_path):
    path = untrained(tmp_path / "MLP.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert "is truncated or altered" in refused("evaluate", "--model", path, cwd=tmp_path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "has been altered" in refused("evaluate", "--model", path, cwd=tmp_path)
    path.write_bytes(whole.replace(b'architecture\\": \\"MLP', b'architecture\\": \\"CNN'))
    assert "has been altered" in refused("evaluate", "--model", path, cwd=tmp_path)
    path.write_bytes(b"")
    assert "is truncated or altered" in refused("evaluate", "--model", path, cwd=tmp_path)


def test_checkpoint_of_another_architecture_or_a_newer_version_is_refused(refused, tmp_path, monkeypatch):
    path = tmp_path / "CNN.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(CNN, MLP.initialize(jax.random.key(0)), {}))
    assert "does not hold the weights of CNN" in refused("evaluate", "--model", path, cwd=tmp_path)
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        untrained(path)
    assert "was written by a newer mnist_jax" in refused("evaluate", "--model", path, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "CNNN"), "unknown network 'CNNN': did you mean CNN"),
        (("--model", "nowhere/CNN.safetensors"), "cannot read the checkpoint nowhere/CNN.safetensors"),
        (("--model", "CNN-best-kmnist"), "no trained CNN-best-kmnist"),
        (("--model", "CNN", "--dataset", "kminst"), "unknown dataset 'kminst': did you mean kmnist"),
        ((), "one of the arguments --model --all --verify is required"),
        (("--all", "--robust", "--radius", 1), "argument --robust: not allowed with argument --all"),
        (("--verify", "x.npz", "--robust"), "not allowed with argument"),
        (("--model", "MLP", "--radius", 1), "argument --radius: only with --robust"),
        (("--model", "MLP", "--robust"), "auto_attack needs a --radius"),
        (("--model", "MLP", "--robust", "--radius", -1), "'-1' is not a number of at least 0"),
        (("--model", "MLP", "--robust", "--radius", 1, "--norm", 3), "--norm 3 does not apply to auto_attack"),
    ],
)
def test_bad_options_are_refused(refused, tmp_path, arguments, message):
    assert message in refused("evaluate", *arguments, cwd=tmp_path)
