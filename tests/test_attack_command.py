"""python -m mnist_jax.attack, as a person runs it: results, resumption, bad input, and the prompt."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mnist_jax import data, load_classifier
from mnist_jax.storage.results import load
from mnist_jax.unstable import KNOWN_BEFORE, QUICKLY_COMPILED, compile_quickly

FAST = ("--model", "MLP-original", "--method", "automatic", "--steps", 20, "--learning-rate", 0.05)


def test_results_are_what_the_summary_says(run, tmp_path):
    status, out, err = run("attack", *FAST, "--count", 40, "--json", cwd=tmp_path)
    assert status == 0, err
    summary = json.loads(out)
    record = load(tmp_path / summary["results"])
    assert (tmp_path / summary["figure"]).read_bytes().startswith(b"\x89PNG")
    split = data.load().val
    np.testing.assert_array_equal(record.indices, np.arange(40))
    np.testing.assert_array_equal(record.labels, split.labels[:40])
    predictions = np.asarray(load_classifier("MLP-original")(record.result.images)).argmax(1)
    np.testing.assert_array_equal(predictions != record.labels, record.result.success)
    r = record.result.images - np.asarray(data.normalize(split.images[:40]))
    lengths = np.linalg.norm(r.reshape(40, -1), axis=1)
    np.testing.assert_allclose(record.result.distance, np.where(record.result.success, lengths, np.inf), rtol=1e-5)
    attacked = record.result.distance > 0
    assert summary["median"] == pytest.approx(np.median(record.result.distance[attacked]))
    assert summary["misclassified"] == (~attacked).sum()
    assert "attacking" in err
    assert "device: " in err


def test_ids_targets_and_text(run, tmp_path):
    arguments = ("--ids", "3,14,15", "--targets", 8, "--norm", "inf", "--output", "mine", "--seed", 1)
    status, out, err = run("attack", *FAST, *arguments, cwd=tmp_path)
    assert status == 0, err
    assert [line.split(":")[0] for line in out.splitlines()] == ["success", "distance", "cost", "results", "figure"]
    record = load(tmp_path / "mine" / "MLP-original-automatic-linf-val.npz")
    assert record.indices.tolist() == [3, 14, 15]
    predictions = np.asarray(load_classifier("MLP-original")(record.result.images)).argmax(1)
    assert (predictions[record.result.success] == 8).all()


def test_an_interrupted_attack_goes_on(command, run, refused, tmp_path):
    process = command("attack", *FAST, cwd=tmp_path)
    path = tmp_path / "runs" / "MLP-original-automatic-l2-val.npz"
    for _ in range(600):
        if path.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume goes on" in err
    kept = load(path)
    assert len(kept.indices) in range(1, 10_000)
    count = len(kept.indices) + 20
    assert "other options" in refused("attack", *FAST, "--seed", 1, "--count", count, "--resume", cwd=tmp_path)
    status, _, err = run("attack", *FAST, "--count", count, "--resume", "--json", cwd=tmp_path)
    assert status == 0, err
    record = load(path)
    np.testing.assert_array_equal(record.indices, np.arange(count))
    np.testing.assert_array_equal(record.result.images[: len(kept.indices)], kept.result.images)


def found(run, folder, *arguments):
    """Runs an attack on a few images by the command; gives its record, which --verify has confirmed."""
    status, out, err = run("attack", "--model", "MLP-original", *arguments, "--json", cwd=folder)
    assert status == 0, err
    path = json.loads(out)["results"]
    status, out, err = run("evaluate", "--verify", path, cwd=folder)
    assert status == 0, out + err
    return load(folder / path)


def test_any_attack_takes_the_options_of_its_signature(run, tmp_path):
    options = {"radius": 0.05, "steps": 3, "restarts": 2, "seed": 5}
    arguments = [text for option, value in options.items() for text in (f"--{option}", value)]
    record = found(run, tmp_path, "--method", "pgd", *arguments, "--count", 3)
    assert record.about["options"] == options
    assert record.about["norm"] == np.inf  # the attack's own
    assert set(record.result.gradients.tolist()) <= {0, 3, 6}
    assert (record.result.distance[record.result.success] <= 0.05 * (1 + 1e-5)).all()
    # What is random for an image does not depend on its place.
    other = found(run, tmp_path, "--method", "pgd", *arguments, "--ids", "2,1,0")
    np.testing.assert_allclose(other.result.images[::-1], record.result.images, atol=1e-6)


def test_an_attack_on_few_pixels(run, tmp_path):
    record = found(run, tmp_path, "--method", "fmn", "--norm", 0, "--steps", 30, "--ids", "3,14")
    assert record.result.success.all()
    np.testing.assert_array_equal(record.result.distance, record.result.distance.round())


def test_the_default_attack_takes_an_effort(run, tmp_path):
    record = found(run, tmp_path, "--effort", 60, "--count", 3)
    assert record.about["method"] == "nearest"
    assert record.about["options"] == {"effort": 60}
    assert (record.result.gradients <= 60).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "nope"), "unknown method 'nope'"),
        (("--method", "fixed_norm"), "fixed_norm needs a --radius"),
        (("--method", "ddn", "--radius", 1), "--radius does not apply to ddn; it does to apgd, apgd_targeted,"),
        (("--method", "ddn", "--norm", 1), "--norm 1 does not apply to ddn (norm must be 2, not 1); it does to alma"),
        (("--method", "nearest", "--effort", "little"), "nearest: effort must be one of fast"),
        (("--norm", 0.5), "'0.5' is not 0, a number of at least 1, or inf"),
        (("--split", "vall"), "did you mean val?"),
        (("--count", 10_001), "more than the 10000 images of val"),
        (("--ids", "3,10000"), "--ids 10000 is not an image of val"),
        (("--ids", "3,3"), "twice"),
        (("--count", 2, "--targets", 10), "--targets 10 is not a class"),
        (("--count", 3, "--targets", "1,2"), "one for each of the 3 images"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_input_is_one_line(refused, tmp_path, arguments, message):
    assert message in refused("attack", "--model", "MLP", *arguments, cwd=tmp_path)
    assert not list(tmp_path.glob("runs/*"))


def prompt(lines, *arguments, cwd):
    command = [sys.executable, "-i", "-m", "mnist_jax.attack", *arguments]
    return subprocess.run(command, input=lines, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_prompt(tmp_path):
    lines = """
success, image, r, adv = attack(3, div=2.0)
print(success, image.shape, round(float((r**2).sum() ** 0.5), 4), abs(image + r - adv).max() < 1e-6)
print(attack(3, div=0.01)[0], minimal_attack_dichotomy(3)[0], minimal_attack(3)[0])
attack(10_000)
"""
    done = prompt(lines, "--model", "MLP-original", cwd=tmp_path)
    assert "True (28, 28) 2.0 True" in done.stdout, done.stderr
    assert "False True True" in done.stdout
    assert "img_id must be from 0 to 9999" in done.stderr
    figures = sorted(path.name for path in (tmp_path / "docs/images/attack_results").iterdir())
    assert figures == [f"MLP-original-3-{method}-l2.png" for method in ("attack", "automatic", "dichotomy")]


def test_the_prompt_compiles_quickly_unless_the_user_says_otherwise(monkeypatch):
    quick = QUICKLY_COMPILED.split() if jax.__version_info__ < KNOWN_BEFORE else []
    own = "--xla_backend_optimization_level=3"  # the last one counts
    for before, after in ((own, [*quick, own]), (" ", quick), ("flags.txt", ["flags.txt"])):
        monkeypatch.setenv("XLA_FLAGS", before)
        compile_quickly()
        assert os.environ["XLA_FLAGS"].split() == after


def test_the_prompt_does_not_open_on_bad_input(tmp_path):
    done = prompt("print('open')", "--model", "NOPE", cwd=tmp_path)
    assert done.returncode == 2
    assert "open" not in done.stdout
    assert "error: unknown network 'NOPE'" in done.stderr
