"""python -m mnist_jax.evaluate --verify, on files of real attacks, unchanged and tampered with."""

import json

import numpy as np
import pytest

from mnist_jax.commands import evaluate
from mnist_jax.data import normalize
from mnist_jax.errors import InputError
from mnist_jax.geometry import exact_norm
from mnist_jax.storage import checkpoint
from mnist_jax.storage.results import load, save

FAST = ("--model", "MLP-original", "--method", "automatic", "--steps", 30, "--learning-rate", 0.05, "--count", 12)


@pytest.fixture(scope="module")
def results(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    status, out, err = run("attack", *FAST, "--json", cwd=folder)
    assert status == 0, err
    return folder / json.loads(out)["results"]


def changed(path, folder, **fields):
    """A copy of the results in which some fields, of the record or of its result, are replaced."""
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
    assert said[1:4] == [["not at the stated distance"]] * 2 + [
        ["a failure with a finite distance", "a failure whose image is adversarial"]
    ]
    assert "not in [0, 1]" in said[4]


def test_an_image_that_is_not_adversarial_is_found(run, results, tmp_path, mnist):
    record = load(results)
    images, distance = np.array(record.result.images), np.array(record.result.distance)
    one = np.flatnonzero(distance > 0)[0]
    images[one], distance[one] = mnist.val.images[record.indices[one]] / np.float32(255), 0
    report = verdict(run, changed(results, tmp_path, images=images, distance=distance), tmp_path)
    assert report["wrong"] == [{"index": int(record.indices[one]), "what": ["not misclassified"]}]


def report(path, capsys):
    """What --verify says of a file, by its function."""
    status = evaluate.check(evaluate.parse(["--verify", str(path), "--json"]))
    said = json.loads(capsys.readouterr().out)
    assert (status == 1) == bool(said["wrong"])
    return {one["index"]: one["what"] for one in said["wrong"]}


def test_failures_whose_images_are_adversarial_are_found(results, tmp_path, capsys):
    """Such failures would make robust accuracy look higher."""
    record = load(results)
    success, distance = np.array(record.result.success), np.array(record.result.distance)
    two = np.flatnonzero(success & (distance > 0))[:2]
    success[two], distance[two] = False, np.inf
    path = changed(results, tmp_path, success=success, distance=distance)
    assert report(path, capsys) == {int(record.indices[i]): ["a failure whose image is adversarial"] for i in two}

    # An image beyond the radius may be adversarial, and so may one at the radius, as distances are rounded.
    one, length = int(record.indices[two[0]]), float(record.result.distance[two[0]])
    for method, radius, wrong in (
        ("pgd", length * 0.99, False),
        ("pgd", length * 1.00001, False),
        ("pgd", length * 1.01, True),
        ("fixed_norm", length * 1.01, False),  # this attack searches at exactly that norm
        ("fixed_norm", length * 1.00001, True),
    ):
        about = record.about | {"method": method, "options": {"radius": radius}}
        path = changed(results, tmp_path, success=success, distance=distance, about=about)
        assert ("a failure whose image is adversarial" in report(path, capsys).get(one, [])) == wrong


def test_a_misclassified_original_is_a_success_at_distance_0(results, tmp_path, capsys, mnist):
    """A failure, or a distance above 0, would make the accuracy look higher."""
    trained = checkpoint.load(checkpoint.find("MLP-original", tmp_path)).classifier()
    predictions = np.asarray(trained(normalize(mnist.val.images[:500]))).argmax(1)
    index = int(np.flatnonzero(predictions != mnist.val.labels[:500])[0])
    record = load(results)
    image = np.asarray(normalize(mnist.val.images[index]))
    nothing = {"indices": np.array([index]), "labels": mnist.val.labels[[index]], "gradients": np.zeros(1, int)}
    nothing["forwards"] = nothing["gradients"]
    for found, success, wrong in (
        (image, True, []),
        (
            image,
            False,
            ["a failure whose image is adversarial", "not at distance 0, although the original is adversarial"],
        ),
        (np.full_like(image, 0.5), False, ["not at distance 0, although the original is adversarial"]),
    ):
        distance = np.where([success], 0, np.inf)
        fields = nothing | {"images": found[None], "success": np.array([success]), "distance": distance}
        said = report(changed(results, tmp_path, **fields), capsys).get(index, [])
        assert set(wrong) <= set(said)
        assert bool(wrong) == bool(said)
    assert record.result.success.any()


@pytest.mark.parametrize("norm", [1.0, 3.0, 1000.0, np.inf, 0.0])
def test_distances_of_any_norm_hold(results, tmp_path, capsys, mnist, norm):
    record = load(results)
    originals = np.asarray(normalize(mnist.val.images[record.indices]))
    lengths = exact_norm(record.result.images - originals, norm)
    distance = np.where(record.result.success, lengths, np.inf).astype(np.float32)
    about = record.about | {"norm": norm}
    assert not report(changed(results, tmp_path, distance=distance, about=about), capsys)
    wrong = report(changed(results, tmp_path, distance=distance * np.float32(1.001), about=about), capsys)
    assert set(map(tuple, wrong.values())) == {("not at the stated distance",)}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("norm", ([2], "2", None, True, 0.5, -1, float("nan"), 10**400, {"p": 2})),
        ("options", ("none", None, [], 3)),
        ("radius", ("x", None, -1, float("inf"), [1], True, 10**400)),
        ("targets", ("8", ["8"], [8.0], [True], [-1], [10**30], [], [1, 2], 3, {})),
        ("weights", (None, 3, "other", [])),
        ("model", (None, 3, "", "NOPE", "no/where", ["MLP"])),
        ("split", (None, 0, "vul", {})),
        ("dataset", (None, 1, "cifar", [])),
        ("method", (None, 1, ["pgd"])),
    ],
)
def test_a_wrong_description_of_the_results_is_one_line(results, tmp_path, key, values):
    about = load(results).about
    for value in values:
        if key in ("radius", "targets"):
            other = about | {"options": about["options"] | {key: value}}
        else:
            other = about | {key: value}
        path = changed(results, tmp_path, about=other)
        with pytest.raises(InputError) as error:
            evaluate.check(evaluate.parse(["--verify", str(path)]))
        assert "\n" not in str(error.value)
    if key not in ("radius", "targets"):
        path = changed(results, tmp_path, about={k: v for k, v in about.items() if k != key})
        with pytest.raises(InputError, match=f"does not say its {key}"):
            evaluate.check(evaluate.parse(["--verify", str(path)]))


def test_images_that_are_not_finite_are_wrong(results, tmp_path, capsys):
    images = np.array(load(results).result.images)
    images[0], images[1] = np.inf, np.nan
    wrong = report(changed(results, tmp_path, images=images), capsys)
    assert all("not in [0, 1]" in wrong[int(index)] for index in load(results).indices[:2])


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
