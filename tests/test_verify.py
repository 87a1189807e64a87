"""python -m mnist_jax.evaluate --verify, on files of real attacks, as they are and tampered with."""

import json

import numpy as np
import pytest

from mnist_jax.commands import evaluate
from mnist_jax.errors import InputError
from mnist_jax.storage.results import load, save

FAST = ("--model", "MLP-original", "--method", "automatic", "--steps", 30, "--learning-rate", 0.05, "--count", 12)


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    status, out, err = run("attack", *FAST, "--json", cwd=folder)
    assert status == 0, err
    return folder / json.loads(out)["results"]


def changed(path, folder, **fields):
    """A copy of the results with other fields, of the record or of what was found."""
    record = load(path)
    found = record.result._replace(**{k: v for k, v in fields.items() if k in record.result._fields})
    save(
        folder / "changed.npz",
        record._replace(result=found, **{k: v for k, v in fields.items() if k in record._fields}),
    )
    return folder / "changed.npz"


def verdict(run, path, folder, *more):
    status, out, err = run("evaluate", "--verify", path, "--json", *more, cwd=folder)
    assert status in (0, 1), err
    report = json.loads(out)
    assert (status == 1) == bool(report["wrong"])
    return report


def test_what_an_attack_wrote_holds(run, results, tmp_path):
    report = verdict(run, results, tmp_path)
    assert (report["images"], report["wrong"]) == (12, [])
    assert report["successes"] == load(results).result.success.sum() > 6
    assert report["largest_error"] < 1e-5
    status, out, _ = run("evaluate", "--verify", results, "--model", "MLP-original", cwd=tmp_path)
    assert status == 0
    assert out.startswith("12 images")


def test_targets_are_verified(run, tmp_path):
    status, out, err = run("attack", *FAST, "--targets", 8, "--json", cwd=tmp_path)
    assert status == 0, err
    path = tmp_path / json.loads(out)["results"]
    assert not verdict(run, path, tmp_path)["wrong"]
    about = load(path).about
    other = changed(path, tmp_path, about=about | {"options": about["options"] | {"targets": [3]}})
    assert verdict(run, other, tmp_path)["wrong"][0]["what"] == ["not misclassified"]


def test_every_lie_is_found(run, results, tmp_path):
    record = load(results)
    images, distance, success = (np.array(a) for a in record.result[:3])
    fooled = np.flatnonzero(success & (distance > 0))
    images[fooled[0]] += 1.5
    distance[fooled[1]] *= 0.99
    distance[fooled[2]] = np.nan
    success[fooled[3]] = False  # but its distance stays
    images[fooled[4]] = images[fooled[4]] * np.nan
    report = verdict(run, changed(results, tmp_path, images=images, distance=distance, success=success), tmp_path)
    wrong = {one["index"]: one["what"] for one in report["wrong"]}
    assert set(wrong) == set(record.indices[fooled[:5]].tolist())
    said = [wrong[index] for index in record.indices[fooled[:5]].tolist()]
    assert "not in [0, 1]" in said[0]
    assert said[1:4] == [["not of the distance it says"]] * 2 + [["a failure with a distance", "a failure that fools"]]
    assert "not in [0, 1]" in said[4]


def test_an_image_that_is_not_adversarial_is_found(run, results, tmp_path, mnist):
    record = load(results)
    images, distance = np.array(record.result.images), np.array(record.result.distance)
    one = np.flatnonzero(distance > 0)[0]
    images[one], distance[one] = mnist.val.images[record.indices[one]] / np.float32(255), 0
    report = verdict(run, changed(results, tmp_path, images=images, distance=distance), tmp_path)
    assert report["wrong"] == [{"index": int(record.indices[one]), "what": ["not misclassified"]}]


def test_files_that_cannot_be_verified_are_refused(refused, results, tmp_path):
    record = load(results)
    assert "there is no file" in refused("evaluate", "--verify", "nowhere.npz", cwd=tmp_path)
    (tmp_path / "nonsense.npz").write_bytes(results.read_bytes()[:-40])
    assert "damaged" in refused("evaluate", "--verify", "nonsense.npz", cwd=tmp_path)
    assert "not allowed with" in refused("evaluate", "--verify", results, "--all", cwd=tmp_path)
    assert "other weights" in refused("evaluate", "--verify", results, "--model", "MLP-best", cwd=tmp_path)
    for fields, message in (
        ({"about": {"model": "MLP-original", "split": "val", "dataset": "mnist"}}, "does not say its norm"),
        ({"about": record.about | {"split": "vul"}}, "unknown split"),
        ({"indices": np.zeros(12, int)}, "an image twice"),
        ({"indices": np.arange(12) + 99995}, "does not have"),
        ({"labels": np.asarray(record.labels) + 1}, "other labels"),
        ({"images": np.zeros((12, 5, 5, 1))}, "another shape"),
        ({"success": np.full(12, "yes")}, "not of numbers"),
        ({"images": np.zeros((11, 28, 28, 1))}, "not of one length"),
    ):
        options = evaluate.parse(["--verify", str(changed(results, tmp_path, **fields))])
        with pytest.raises(InputError, match=message):
            evaluate.check(options)
