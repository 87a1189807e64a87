"""python -m mnist_jax.train, as a person runs it: real processes on a small real dataset."""

import json
import signal

import pytest

from mnist_jax.commands import console, evaluate, train
from mnist_jax.errors import InputError
from mnist_jax.networks import NETWORKS
from mnist_jax.storage import checkpoint

LONG = ("--model", "MLP_bn", "--recipe", "best", "--epochs", "100", "--batch-size", "50")
TINY = ("--model", "MLP", "--epochs", "2")


def test_trains_reports_and_keeps(run, few_digits, tmp_path):
    status, out, err = run("train", *TINY, "--data-dir", few_digits, cwd=tmp_path)
    assert status == 0, err
    assert "train " in out
    assert "test " in out
    assert "val " in out
    assert "runs/MLP-original.safetensors" in out
    assert "runs/MLP-original.png" in out
    assert err.splitlines()[0].startswith("device: cpu")
    assert sum(line.startswith("epoch ") for line in err.splitlines()) == 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "MLP-original.png",
        "MLP-original.safetensors",
    ]
    assert (tmp_path / "runs/MLP-original.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_all_of_stdout_and_describes_the_training(run, few_digits, tmp_path):
    arguments = (
        "--model",
        "MLP_d",
        "--recipe",
        "best",
        "--epochs",
        "1",
        "--batch-size",
        "64",
        "--learning-rate",
        "3e-3",
    )
    status, out, err = run("train", *arguments, "--seed", 7, "--json", "--data-dir", few_digits, cwd=tmp_path)
    assert status == 0, err
    result = json.loads(out)
    assert (result["model"], result["recipe"], result["dataset"], result["seed"]) == ("MLP_d", "best", "mnist", 7)
    assert (
        result["hyperparameters"] | {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3} == result["hyperparameters"]
    )
    assert [record["epoch"] for record in result["history"]] == [1]
    kept = checkpoint.load(tmp_path / result["weights"])
    assert kept.about["accuracies"] == result["accuracies"]
    assert kept.about["hyperparameters"] == result["hyperparameters"]


def test_another_dataset_is_remembered(run, shapes, tmp_path):
    arguments = ("--model", "MLP_bn", "--epochs", 4, "--dataset", "shapes", "--data-dir", shapes)
    status, out, err = run("train", *arguments, "--json", cwd=tmp_path)
    assert status == 0, err
    result = json.loads(out)
    assert result["weights"] == "runs/MLP_bn-original-shapes.safetensors"
    assert result["dataset"] == "shapes"
    assert result["accuracies"]["val"] > 0.9
    kept = checkpoint.load(checkpoint.find("MLP_bn-original-shapes", tmp_path / "runs"))
    assert kept.network is NETWORKS["MLP_bn"].of((9, 7, 1), 3)
    assert kept.class_names == ("above", "middle", "$below")
    path = tmp_path / result["weights"]
    again = evaluate.evaluate(path, evaluate.parse(["--model", str(path), "--data-dir", str(shapes)]))
    assert again["accuracies"] == result["accuracies"]


def test_images_too_small_for_a_network_are_refused(refused, shapes, tmp_path):
    arguments = ("--model", "CNN", "--data-dir", shapes)
    assert "not 28x28 as in mnist; another --dataset name" in refused("train", *arguments, cwd=tmp_path)
    line = refused("train", *arguments, "--dataset", "shapes", cwd=tmp_path)
    assert "images of 9x7 pixels are too small for this network" in line


def test_no_save_writes_nothing(run, few_digits, tmp_path):
    status, out, _ = run("train", *TINY, "--no-save", "--data-dir", few_digits, cwd=tmp_path)
    assert status == 0
    assert "val " in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["CNN_bn", "MLP_d"])
def test_one_seed_gives_the_same_file_and_another_seed_another(run, few_digits, tmp_path, model):
    contents = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        arguments = ("--model", model, "--epochs", 1, "--seed", seed, "--data-dir", few_digits, "--output", folder)
        status, _, err = run("train", *arguments, cwd=tmp_path)
        assert status == 0, err
        contents.append((tmp_path / folder / f"{model}-original.safetensors").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_stopped_and_resumed_gives_the_bits_of_an_uninterrupted_run(command, run, few_digits, tmp_path):
    arguments = (*LONG, "--data-dir", few_digits)
    status, _, err = run("train", *arguments, "--output", "whole", cwd=tmp_path)
    assert status == 0, err

    weights = tmp_path / "parts" / "MLP_bn-best.safetensors"
    state = weights.with_suffix(".state")

    def stopped(number, when, *more):
        """The stderr of a run that gets this signal after the first line for which `when` is true."""
        process = command("train", *arguments, "--output", "parts", *more, cwd=tmp_path)
        assert any(when(line) for line in process.stderr)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        statuses = {signal.SIGKILL: -number, signal.SIGINT: 130, signal.SIGTERM: 143}
        assert process.returncode == statuses[number], err
        assert not weights.exists()
        return err

    # A killed process leaves the state that it saved last; the other signals make it save before it ends.
    stopped(signal.SIGKILL, lambda line: line.startswith("epoch ") and any(p.name.isdecimal() for p in state.glob("*")))
    resumes = "resuming MLP_bn-best after epoch"
    stopped(signal.SIGINT, lambda line: line.startswith(resumes), "--resume")
    for number in (signal.SIGINT, signal.SIGTERM):
        assert "--resume goes on from there" in stopped(number, lambda line: line.startswith("epoch "), "--resume")

    status, _, err = run("train", *arguments, "--output", "parts", "--resume", cwd=tmp_path)
    assert status == 0, err
    assert resumes in err
    assert weights.read_bytes() == (tmp_path / "whole" / weights.name).read_bytes()
    assert not state.exists()


def test_resume_refuses_other_hyperparameters_and_a_damaged_state(command, refused, few_digits, tmp_path):
    arguments = (*LONG, "--data-dir", few_digits, "--output", tmp_path)
    process = command("train", *arguments, cwd=tmp_path)
    assert any(line.startswith("epoch ") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)

    line = refused("train", *arguments, "--learning-rate", "0.5", "--resume", cwd=tmp_path)
    assert "other hyperparameters (it had learning_rate 0.002); resume with the same" in line
    line = refused("train", *arguments, "--seed", "5", "--resume", cwd=tmp_path)
    assert "other seed; resume with the same" in line

    for path in (tmp_path / "MLP_bn-best.state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    assert "is damaged" in refused("train", *arguments, "--resume", cwd=tmp_path)


def prepared(folder, data_dir, *arguments):
    """A training as the command prepares it."""
    return train.prepare(train.parse([*TINY, "--data-dir", str(data_dir), "--output", str(folder), *arguments]))


def finished(run):
    """The result of a training of no steps."""
    with console.Interrupt():
        state, _ = train.begin(run)
        history = [dict.fromkeys(("train_loss", "test_loss", "train_accuracy", "test_accuracy", "seconds"), 0.1)]
        return train.finish(run, state, [history[0] | {"epoch": 1}])


def test_a_training_goes_on_with_the_same_data_only(few_digits, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for file in few_digits.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    run = prepared(tmp_path, own)
    state, _ = train.begin(run)
    train.Keeper(run, 0).keep(state, [{"epoch": 1}])
    assert train.begin(prepared(tmp_path, own, "--resume"))[1] == [{"epoch": 1}]
    # An image, and a label, of the training set, of test and of val.
    for name, at in (
        ("train-images-idx3", 16),
        ("train-labels-idx1", 8),
        ("train-labels-idx1", 8 + 900),
        ("t10k-labels-idx1", 9),
    ):
        path = own / f"{name}-ubyte"
        content = bytearray(path.read_bytes())
        content[at] = (content[at] + 1) % 10
        path.write_bytes(content)
        with pytest.raises(InputError, match="the interrupted training had other data; resume with the same"):
            train.begin(prepared(tmp_path, own, "--resume"))
        path.write_bytes((few_digits / path.name).read_bytes())
    assert train.begin(prepared(tmp_path, own, "--resume"))[1]


def test_another_training_keeps_what_the_first_one_made(few_digits, tmp_path, capsys):
    path = tmp_path / "MLP-original.safetensors"
    finished(prepared(tmp_path, few_digits))
    first, figure = path.read_bytes(), path.with_suffix(".png").read_bytes()
    assert finished(prepared(tmp_path, few_digits))["earlier_weights"] is None  # the same again
    assert path.read_bytes() == first
    for number, arguments in enumerate((("--seed", "1"), ("--learning-rate", "0.1"), ("--dataset", "mnist")), 1):
        before = path.read_bytes()
        aside = tmp_path / f"MLP-original-{number}.safetensors"
        assert finished(prepared(tmp_path, few_digits, *arguments))["earlier_weights"] == str(aside)
        assert f"will be kept as {aside}" in capsys.readouterr().err
        assert aside.read_bytes() == before
    assert (tmp_path / "MLP-original-1.safetensors").read_bytes() == first
    assert (tmp_path / "MLP-original-1.png").read_bytes() == figure
    assert checkpoint.find("MLP-original-1", tmp_path).exists()
    assert checkpoint.find("MLP", tmp_path) == path


def test_a_history_figure_that_cannot_be_written_costs_nothing_else(few_digits, tmp_path, capsys):
    (tmp_path / "MLP-original.png" / "full").mkdir(parents=True)
    result = finished(prepared(tmp_path, few_digits))
    assert "note: no figure: cannot write" in capsys.readouterr().err
    assert result["figure"] is None
    assert train.summary(result).splitlines()[-1] == f"weights:  {tmp_path}/MLP-original.safetensors"
    assert not (tmp_path / "MLP-original.state").exists()


def test_accuracies_have_the_digits_of_double_precision(few_digits, tmp_path):
    accuracies = finished(prepared(tmp_path, few_digits, "--no-save"))["accuracies"]
    assert accuracies["val"] == round(accuracies["val"], 2)  # of 100 images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "CNM"), "unknown network 'CNM': did you mean CNN"),
        (("--model", "resnet"), "unknown network 'resnet': did you mean ResNet or CapsNet? There are MLP, MLP_d"),
        (("--model", "MLP", "--dataset", "2nd"), "'2nd' is no name for a dataset"),
        (("--model", "MLP", "--recipe", "bets"), "unknown recipe 'bets': did you mean best"),
        (("--model", "MLP", "--epochs", "0"), "--epochs: '0' is not a whole number of at least 1"),
        (("--model", "MLP", "--batch-size", "2.5"), "--batch-size: '2.5' is not a whole number of at least 1"),
        (("--model", "MLP", "--learning-rate", "-1"), "--learning-rate: '-1' is not a number above 0"),
        (("--model", "MLP", "--learning-rate", "nan"), "--learning-rate: 'nan' is not a number above 0"),
        (("--model", "MLP", "--batch-size", "801"), "--batch-size 801 is larger than the training set of 800 images"),
        (("--model", "MLP", "--resume"), "there is nothing to resume"),
        (("--model", "MLP", "--resume", "--no-save"), "leave one of them out"),
        (("--epochs", "1"), "the following arguments are required: --model"),
        (("--model", "MLP", "--defense", "pgd"), "--defense needs --radius"),
        (("--model", "MLP", "--radius", "0.1"), "--radius is only for --defense"),
        (("--model", "MLP", "--norm", "2"), "--norm is only for --defense"),
        (("--model", "MLP", "--defense", "pdg", "--radius", "1"), "unknown defence 'pdg': did you mean pgd"),
        (("--model", "MLP", "--defense", "ibp", "--radius", "1", "--norm", "2"), "norm must be inf, not 2"),
        (("--model", "MLP", "--defense", "pgd", "--radius", "0"), "--radius: '0' is not a number above 0"),
        (("--model", "MLP", "--defense", "own.py:Mine", "--radius", "1"), "cannot read own.py (No such file"),
    ],
)
def test_bad_options_are_refused(refused, few_digits, tmp_path, arguments, message):
    assert message in refused("train", *arguments, "--data-dir", few_digits, cwd=tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_bad_data_is_refused(refused, few_digits, tmp_path):
    line = refused("train", *TINY, "--dataset", "mnits", cwd=tmp_path)
    assert "unknown dataset 'mnits': did you mean mnist" in line
    assert "cannot read the data folder" in refused("train", *TINY, "--data-dir", "nowhere", cwd=tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    for path in few_digits.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    assert "is truncated or damaged" in refused("train", *TINY, "--data-dir", folder, cwd=tmp_path)
    labels.unlink()
    assert "lacks train-labels-idx1-ubyte" in refused("train", *TINY, "--data-dir", folder, cwd=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_output_that_cannot_be_written_is_refused_at_once(refused, few_digits, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused("train", *TINY, "--data-dir", few_digits, "--output", tmp_path / "file", cwd=tmp_path)
    assert "cannot write to the folder" in line


def test_full_disk_leaves_nothing_half_written(run, few_digits, tmp_path):
    """A limit on the size of files simulates a full disk: writing fails at the same place, with an OSError."""
    limit = ("sh", "-c", 'ulimit -f 200; exec "$@"', "sh")  # blocks of 512 bytes
    earlier = b"an earlier result"
    (tmp_path / "MLP-original.safetensors").write_bytes(earlier)
    arguments = (*TINY, "--data-dir", few_digits, "--output", tmp_path)
    # Without the cache of compiled programs, to which the limit would apply, too.
    without_cache = {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    status, out, err = run("train", *arguments, cwd=tmp_path, prefix=limit, env=without_cache)
    assert (status, out) == (2, ""), err
    assert any(line.startswith("error: cannot write") for line in err.splitlines()), err
    assert [path.name for path in tmp_path.iterdir()] == ["MLP-original.safetensors"]
    assert (tmp_path / "MLP-original.safetensors").read_bytes() == earlier


def test_the_device_line_is_printed_before_the_data_is_loaded(command, tmp_path):
    """By order, not by time: the device line is read before the process refuses its input."""
    process = command("train", *TINY, "--data-dir", "nowhere", cwd=tmp_path)
    assert process.stderr.readline().startswith("device: ")
    process.communicate(timeout=60)


def test_a_defence_by_bounds_of_a_network_that_has_none_is_refused(refused, few_digits, tmp_path):
    options = "--model", "CapsNet", "--defense", "ibp", "--radius", 0.1, "--data-dir", few_digits, "--no-save"
    line = refused("train", *options, cwd=tmp_path)
    assert "CapsNet can't be trained by ibp, which needs bounds of it: no bounds of gt are known here" in line


def test_a_defended_network_has_its_defence_in_its_name(run, few_digits, tmp_path):
    defended = ("--model", "MLP", "--defense", "pgd", "--norm", "2", "--radius", "1.5", "--epochs", "1")
    status, out, err = run("train", *defended, "--data-dir", few_digits, "--json", cwd=tmp_path)
    assert status == 0, err
    assert "training MLP-pgd-2-1.5-best" in err
    result = json.loads(out)
    assert result["weights"] == "runs/MLP-pgd-2-1.5-best.safetensors"
    assert result["defense"] == "pgd-2-1.5"
    objective = result["hyperparameters"]["objective"]
    assert (objective["name"], objective["norm"], objective["radius"]) == ("PGD", 2.0, 1.5)
    path = tmp_path / result["weights"]
    for name in ("MLP-pgd-2-1.5", "MLP-pgd-2-1.5-best"):
        assert checkpoint.find(name, tmp_path / "runs") == path
    assert checkpoint.find("MLP", tmp_path / "runs") != path  # a name without a defence means a plain network


OWN = """
from dataclasses import dataclass
import jax.numpy as jnp
from mnist_jax import losses
from mnist_jax.objective import Outcome

@dataclass(frozen=True)
class Shifted:
    norm: float
    radius: float

    def __call__(self, network, weights, images, labels, key, progress):
        logits, statistics = network.apply_training(weights, images + self.radius, key)
        return Outcome(losses.cross_entropy(logits, labels), jnp.zeros(()), logits, statistics)

def nothing(norm, radius):
    return 3

def unhashable(norm, radius):
    return []
"""


def test_an_objective_of_ones_own(few_digits, tmp_path, refused, monkeypatch, capsys):
    monkeypatch.setattr(console, "start", lambda: None)
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    arguments = ("--model", "MLP", "--radius", "0.25", "--data-dir", few_digits, "--epochs", "2")
    own = (*arguments, "--defense", f"{path}:Shifted", "--output", tmp_path / "runs")
    train.main([*map(str, own), "--epochs", "1"])
    kept = checkpoint.load(tmp_path / "runs/MLP-Shifted-inf-0.25-best.safetensors")
    assert kept.about["hyperparameters"]["objective"] == {"name": "Shifted", "norm": "inf", "radius": 0.25}

    run = train.prepare(train.parse([*map(str, own)]))
    capsys.readouterr()
    train.Keeper(run, 0).keep(train.begin(run)[0], [{"epoch": 1, "seconds": 1.0}])
    path.write_text(OWN + "# another")
    line = refused("train", *own, "--resume", cwd=tmp_path)
    assert "other objective_file; resume with the same" in line
    for name, message in (
        ("Missing", "has no function or class Missing"),
        ("nothing", "gives no function, but 3"),
        ("unhashable", "fails with TypeError: unhashable type"),
        ("dataclass", "fails with TypeError"),
    ):
        assert message in refused("train", *arguments, "--defense", f"{path}:{name}", cwd=tmp_path)
    path.write_text("1 / 0")
    line = refused("train", *arguments, "--defense", f"{path}:Shifted", cwd=tmp_path)
    assert "mine.py fails with ZeroDivisionError: division by zero" in line


@pytest.mark.parametrize("network", NETWORKS.values())
def test_best_takes_no_more_gradient_steps_than_original(network):
    images = 50_000
    assert network.recipe("best").steps(images) <= network.recipe("original").steps(images)
