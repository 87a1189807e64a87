"""python -m mnist_jax.attack, as a person runs it: results, resumption, bad input, and the prompt."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tqdm import tqdm

from mnist_jax import data, load_classifier, plot
from mnist_jax.commands import attack, campaign, console, evaluate, job, prompt
from mnist_jax.errors import InputError
from mnist_jax.networks import MLP
from mnist_jax.storage import checkpoint, results
from mnist_jax.storage.results import load, save
from mnist_jax.unstable import KNOWN_BEFORE, QUICKLY_COMPILED, compile_quickly

FAST = ("--model", "MLP-original", "--method", "automatic", "--steps", 20, "--learning-rate", 0.05)


def test_the_summary_agrees_with_the_results(run, tmp_path):
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


PGD = ("--model", "MLP-original", "--method", "pgd", "--radius", 0.1, "--steps", 3)


def attacked(folder, *arguments):
    """Runs an attack by the command's functions, in this process; returns the record and the summary."""
    options = attack.parse([*map(str, (*PGD, "--output", folder, *arguments))])
    return campaign.carry_out(campaign.prepare(options, options.method), options)


NAME = "MLP-original-pgd-linf-radius0.1-val"


def test_resumed_with_other_images_nothing_is_lost_or_done_twice(tmp_path, capsys):
    first, _ = attacked(tmp_path, "--count", 8)
    path = tmp_path / f"{NAME}.npz"
    for ids, kept in (("5,3", 8), ("3,20,1", 9), ("21", 10)):
        record, summary = attacked(tmp_path, "--ids", ids, "--resume")
        assert record.indices.tolist() == [int(i) for i in ids.split(",")]
        assert summary["images"] == len(record.indices)
        assert len(load(path).indices) == kept
        more = kept - summary["images"]
        assert f"{path} keeps the results of {more} more images" in capsys.readouterr().err
    time_of_last = path.stat().st_mtime_ns
    record, summary = attacked(tmp_path, "--count", 4, "--resume")
    assert path.stat().st_mtime_ns == time_of_last  # nothing was left to do
    assert summary["images_per_second"] == 0
    np.testing.assert_array_equal(record.result.images, first.result.images[:4])
    record, _ = attacked(tmp_path, "--count", 12, "--resume")
    assert sorted(load(path).indices.tolist()) == [*range(12), 20, 21]
    np.testing.assert_array_equal(record.indices, np.arange(12))
    np.testing.assert_array_equal(record.result.images[:8], first.result.images)


def test_only_results_of_the_same_attack_are_resumed(tmp_path, few_digits, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    for file in few_digits.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    attacked(tmp_path, "--count", 3, "--seed", 1, "--data-dir", own)
    path = tmp_path / f"{NAME}.npz"
    before = path.read_bytes()

    def refuses(message, *arguments):
        with pytest.raises(InputError, match=message):
            attacked(tmp_path, "--count", 4, "--resume", *arguments)
        assert path.read_bytes() == before

    same = ("--seed", 1, "--data-dir", own)
    refuses(r"other options \(it had seed 1\); resume with the same", "--data-dir", own)
    refuses(r"other options \(it had no restarts, seed 1\)", "--seed", 2, "--restarts", 2, "--data-dir", own)
    refuses("other targets", *same, "--targets", 3)
    refuses("other data", "--seed", 1)
    refuses("other dataset; ", *same, "--dataset", "kmnist")
    for name, at in (("t10k-labels-idx1-ubyte", 8 + 90), ("t10k-images-idx3-ubyte", 16 + 90 * 784)):
        content = bytearray((own / name).read_bytes())
        content[at] = (content[at] + 1) % 10
        (own / name).write_bytes(content)
        refuses("other data;", *same)
        (own / name).write_bytes((few_digits / name).read_bytes())
    monkeypatch.setattr(results, "VERSION", "next")
    refuses("other version", *same)
    monkeypatch.undo()
    with jax.enable_x64(True):
        refuses("other precision", *same)
    record, _ = attacked(tmp_path, "--count", 4, "--resume", *same)
    assert len(record.indices) == 4
    for about in (record.about | {"options": "none"}, record.about | {"options": {"targets": ["8"]}}, {}):
        save(path, record._replace(about=about))
        with pytest.raises(InputError, match=r"does not say its|targets are not classes"):
            attacked(tmp_path, "--count", 4, "--resume", *same)


def test_a_new_attack_keeps_the_results_of_others(tmp_path, capsys):
    path = tmp_path / f"{NAME}.npz"
    attacked(tmp_path, "--count", 3)
    path.with_suffix(".png").write_bytes(b"the figure")
    assert attacked(tmp_path, "--count", 4)[1]["earlier_results"] is None  # the same, and one more
    contents = {}
    for number, arguments in enumerate((["--seed", 1], ["--targets", 8], ["--restarts", 2], ["--ids", "5"]), 1):
        before = path.read_bytes()
        capsys.readouterr()
        more = arguments if "--ids" in arguments else [*arguments, "--count", 4]
        _, summary = attacked(tmp_path, *more)
        aside = tmp_path / f"{NAME}-{number}.npz"
        assert f"will be kept as {aside}" in capsys.readouterr().err
        assert summary["earlier_results"] == str(aside)
        contents[aside] = before
    assert all(aside.read_bytes() == content for aside, content in contents.items())
    assert (tmp_path / f"{NAME}-1.png").read_bytes() == b"the figure"
    assert not path.with_suffix(".png").exists()
    attacked(tmp_path, "--count", 3)
    path.write_bytes(b"something else")
    attacked(tmp_path, "--count", 3)
    assert b"something else" in [file.read_bytes() for file in tmp_path.glob("*.npz")]


def test_targets_of_single_images_are_those_of_these_images(tmp_path):
    first, _ = attacked(tmp_path, "--ids", "3,14,15", "--targets", "1,2,8")
    with pytest.raises(InputError, match="other targets"):
        attacked(tmp_path, "--ids", "14,3", "--targets", "1,2", "--resume")
    with pytest.raises(InputError, match="other targets"):
        attacked(tmp_path, "--ids", "3,16", "--resume")
    record, _ = attacked(tmp_path, "--ids", "16,14,3", "--targets", "5,2,1", "--resume")
    np.testing.assert_array_equal(record.result.images[1:], first.result.images[[1, 0]])
    whole = load(tmp_path / f"{NAME}.npz")
    assert whole.indices.tolist() == [3, 14, 15, 16]
    assert whole.about["options"]["targets"] == [1, 2, 8, 5]


def test_images_of_the_target_class_are_not_misclassified(tmp_path):
    val = data.load_split("val")
    predictions = np.asarray(
        load_classifier(checkpoint.shipped() / "MLP-original.safetensors")(data.normalize(val.images[:300]))
    ).argmax(1)
    labels = val.labels[:300]
    target = int(predictions[np.flatnonzero(predictions != labels)[0]])
    _, summary = attacked(tmp_path, "--count", 300, "--targets", target)
    already = int(((predictions == target) & (labels == target)).sum())
    wrong = int(((predictions == target) & (labels != target)).sum())
    assert (summary["already_of_target_class"], summary["misclassified"]) == (already, wrong)
    assert already > 10
    assert wrong >= 1
    line = attack.text(summary | {"figure": None}).splitlines()[0]
    assert f"of {300 - already - wrong} images ({wrong} more were misclassified from the start, {already} were" in line


def test_temporary_files_of_killed_runs_are_removed(tmp_path):
    for suffix in ("npz", "png"):
        (tmp_path / f".{NAME}.{suffix}.abc").touch()
    attacked(tmp_path, "--count", 1)
    assert [path.name for path in tmp_path.iterdir()] == [f"{NAME}.npz"]


def test_a_figure_that_cannot_be_written_does_not_cost_the_summary(tmp_path, capsys, monkeypatch):
    (tmp_path / f"{NAME}.png" / "full").mkdir(parents=True)
    monkeypatch.setattr(console, "start", lambda: None)
    attack.main([*map(str, PGD), "--output", str(tmp_path), "--count", "2", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["figure"] is None
    assert json.loads(out)["norm"] == "inf"
    assert "note: no figure: cannot write" in err.splitlines()[-1]
    assert len(load(tmp_path / f"{NAME}.npz").indices) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--norm", text) for text in ("nan", "-1", "0.5", "-inf", "two")),
        *(("--radius", text) for text in ("nan", "-1", "inf", "1e300", "x")),
        *(
            (f"--{option}", text)
            for option in ("steps", "restarts", "queries")
            for text in ("0", "1.5", "1e3", "9" * 20)
        ),
        *(("--effort", text) for text in ("0", "-3", "9" * 20)),
        *(("--seed", text) for text in ("-1", "1e3", "nan", str(2**32))),
        *(("--count", text) for text in ("0", "nan", "2.5")),
        *(("--ids", text) for text in ("", "1,", "a", "1.5")),
        *(("--targets", text) for text in ("", "1,", " ,bag")),
        *(("--learning-rate", text) for text in ("0", "inf", "-1", "nan", "11")),
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_refused_by_the_parser(arguments):
    with pytest.raises(InputError, match=f"argument {arguments[0]}: "):
        attack.parse(["--model", "MLP", *arguments])


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
    # An image's random numbers don't depend on its place among the attacked images.
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
        (("--method", "nearest", "--effort", "1.5"), "nearest: effort must be one of fast"),
        (("--norm", 0.5), "'0.5' is not 0, a number of at least 1, or inf"),
        (("--split", "vall"), "did you mean val?"),
        (("--count", 10_001), "more than the 10000 images of val"),
        (("--ids", "3,10000"), "--ids 10000 is not an image of val"),
        (("--ids", "3,3"), "twice"),
        (("--count", 2, "--targets", 10), "--targets 10 is not a class: they go from 0 to 9"),
        (("--count", 2, "--targets=-1"), "--targets -1 is not a class"),
        (("--count", 2, "--targets", "1.0"), "unknown class '1.0'"),
        (("--count", 3, "--targets", "1,2"), "one for each of the 3 images"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_input_is_one_line(refused, tmp_path, arguments, message):
    assert message in refused("attack", "--model", "MLP", *arguments, cwd=tmp_path)
    assert not list(tmp_path.glob("runs/*"))


def at_prompt(lines, *arguments, cwd):
    command = [sys.executable, "-i", "-m", "mnist_jax.attack", *arguments]
    return subprocess.run(command, input=lines, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def of_shapes(shapes, tmp_path_factory):
    """A network for images of 9x7 pixels and three classes, of any weights; and the options that name both."""
    folder, network = tmp_path_factory.mktemp("of_shapes"), MLP.of((9, 7, 1), 3)
    about = {"dataset": "shapes", "class_names": ["above", "middle", "$below"]}
    trained = checkpoint.Checkpoint(network, network.initialize(jax.random.key(0)), about)
    checkpoint.save(folder / "MLP-original-shapes.safetensors", trained)
    return ("--model", "MLP-original-shapes", "--output", folder, "--data-dir", shapes)


def parsed(*arguments):
    return attack.parse([*map(str, arguments)])


def test_classes_have_their_names(of_shapes, monkeypatch, capsys):
    options = parsed(*of_shapes, *FAST[2:], "--count", 20, "--targets", "middle")
    run = campaign.prepare(options, options.method)
    record, _ = campaign.carry_out(run, options)
    assert record.about["dataset"] == "shapes"
    assert record.about["options"]["targets"] == [1]
    assert record.result.images.shape[1:] == (9, 7, 1)
    drawn = {}

    def drawing(originals, found, labels, predictions, distances, norm):
        drawn.update(zip(labels.tolist(), predictions.tolist(), strict=True))
        return b""

    with monkeypatch.context() as patch:
        patch.setattr(plot, "attacks", drawing)
        attack.draw(run, record)
    assert set(drawn) <= {"above", "middle", "$below"}
    assert set(drawn.values()) == {"middle"}
    assert attack.draw(run, record).read_bytes().startswith(b"\x89PNG")
    for names in ("1", "middle,1", "above,$below,2,0"):
        options = parsed(*of_shapes, *PGD[2:], "--targets", names, "--count", names.count(",") + 1)
        targets = campaign.prepare(options, options.method).targets
        assert targets.tolist() == {"1": [1], "middle,1": [1, 1]}.get(names, [0, 2, 2, 0])
    for name, message in (("midle", "'midle': did you mean middle?"), ("3", "--targets 3 is not a class: they go")):
        with pytest.raises(InputError, match=message):
            campaign.prepare(parsed(*of_shapes, *PGD[2:], "--targets", name), "pgd")

    path = run.path
    for targets, wrong in (([1], 0), ([0], 1)):
        save(path, record._replace(about=record.about | {"options": record.about["options"] | {"targets": targets}}))
        assert evaluate.check(evaluate.parse([*map(str, ("--verify", path, *of_shapes[2:]))])) == wrong
    save(path, record._replace(about=record.about | {"options": record.about["options"] | {"targets": [3]}}))
    with pytest.raises(InputError, match="its targets are not classes"):
        evaluate.check(evaluate.parse([*map(str, ("--verify", path, *of_shapes[2:]))]))


def test_the_prompt_has_the_names_of_classes(of_shapes, capsys):
    before = sys.excepthook
    functions = prompt.prepare(parsed(*of_shapes))
    sys.excepthook = before
    answer = functions[2](0)
    names = "(above|middle|[$]below)"
    assert re.match(f"{names} is taken for {names}(;| as it is;)", capsys.readouterr().out)
    assert answer.image.shape == answer.r.shape == (9, 7)
    assert answer.success


def test_images_that_do_not_fit_the_network_are_refused(refused, of_shapes, shapes, few_digits, tmp_path):
    line = refused("attack", *of_shapes[:-1], few_digits, cwd=tmp_path)
    assert "shapes.safetensors takes images of 9x7 pixels, but those of shapes have 28x28" in line
    line = refused("certify", "--model", "MLP", "--dataset", "shapes", "--data-dir", shapes, cwd=tmp_path)
    assert "takes images of 28x28 pixels, but those of shapes have 9x7" in line
    assert "one of your own needs its folder (--data-dir)" in refused("attack", *of_shapes[:-2], cwd=tmp_path)


def test_classes_that_do_not_fit_the_network_are_refused(tmp_path):
    def check(classes, dataset, *labels):
        split = data.Split(np.zeros((len(labels), 28, 28, 1), np.uint8), np.array(labels))
        job.check_fits(tmp_path, MLP.of((28, 28, 1), classes), dataset, split)

    check(10, "mnist", 3, 4)
    check(26, "emnist", 3, 4)
    check(3, "mine", 0, 1)
    for classes, dataset, has in ((10, "emnist", 26), (26, "kmnist", 10), (3, "mine", 4)):
        with pytest.raises(InputError, match=f"knows {classes} classes, but {dataset} has {has}"):
            check(classes, dataset, 0, 3)


def test_prompt(tmp_path):
    lines = """
success, image, r, adv = attack(3, div=2.0)
print(success, image.shape, round(float((r**2).sum() ** 0.5), 4), abs(image + r - adv).max() < 1e-6)
print(attack(3, div=0.01)[0], minimal_attack_dichotomy(3)[0], minimal_attack(3)[0])
attack(3)
attack(10_000)
1 / 0
"""
    done = at_prompt(lines, "--model", "MLP-original", "--output", "mine", cwd=tmp_path)
    assert "True (28, 28) 2.0 True" in done.stdout, done.stderr
    assert "False True True" in done.stdout
    assert "(success=False, and image, r, adv: arrays [28, 28])" in done.stdout
    assert "\nerror: img_id must be from 0 to 9999" in done.stderr.replace(">>> ", "\n")
    assert done.stderr.count("Traceback") == done.stderr.count("ZeroDivisionError") == 1
    figures = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert figures == [f"MLP-original-3-{method}-l2.png" for method in ("attack", "automatic", "dichotomy")]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """The three functions of the prompt, and the folder of its figures."""
    folder = tmp_path_factory.mktemp("prompt")
    before = sys.excepthook
    yield *prompt.prepare(attack.parse(["--model", "MLP-original", "--output", str(folder)])), folder
    sys.excepthook = before


@pytest.mark.parametrize(
    ("which", "arguments", "message"),
    [
        (0, {"img_id": -1}, "img_id must be from 0 to 9999, a whole number, not -1"),
        (1, {"img_id": 3.0}, "img_id must be .*, not 3.0"),
        (2, {"img_id": True}, "img_id must be .*, not True"),
        (0, {"img_id": "3"}, "img_id must be .*, not '3'"),
        (0, {"p": "two"}, "p must be a number, not 'two'"),
        (1, {"p": np.nan}, "p must be a number, not nan"),
        (2, {"p": 0.5}, r"automatic: norm must be a number in \[1, inf\]"),
        (0, {"div": np.inf}, "div must be at least 0 and at most 1000000"),
        (0, {"div": None}, "div must be a number, not None"),
        (1, {"lr": 0}, "lr must be above 0, not 0"),
        (2, {"a": -1}, "a must be at least 0"),
        (2, {"a": 2, "b": 1}, "a must be at most b, not 2 and 1"),
        (1, {"b": np.nan}, "b must be a number, not nan"),
    ],
)
def test_the_prompt_refuses_invalid_arguments(functions, which, arguments, message):
    with pytest.raises(InputError, match=message):
        functions[which](**{"img_id": 3} | arguments)


def test_the_prompt_prints_the_result_in_words(functions, capsys):
    attack, dichotomy, automatic, folder = functions
    val = data.load_split("val")
    wrong = np.asarray(
        load_classifier(checkpoint.shipped() / "MLP-original.safetensors")(data.normalize(val.images[:500]))
    )
    index = np.flatnonzero(wrong.argmax(1) != val.labels[:500])[0]
    answer = attack(index)  # NumPy's integers are whole numbers
    assert answer.success
    assert not answer.r.any()
    assert f"{val.labels[index]} is taken for {wrong[index].argmax()} as it is; the" in capsys.readouterr().out
    assert not automatic(index, a=1).success
    # The nearest adversarial image is at 1.1, outside of these ranges.
    for search in (dichotomy, automatic):
        assert not search(3, a=3, b=4).success
        assert capsys.readouterr().out.splitlines()[-1].startswith("no success between 3 and 4: 0 is taken for 6")
    success, _, r, _ = attack(3, p="inf", div=0.3)
    assert success
    assert f"has norm {np.abs(r).max():.4g}; {folder}/MLP-original-3-attack-linf.png" in capsys.readouterr().out


def test_the_prompt_compiles_quickly_unless_the_user_says_otherwise(monkeypatch):
    quick = QUICKLY_COMPILED.split() if jax.__version_info__ < KNOWN_BEFORE else []
    own = "--xla_backend_optimization_level=3"  # the last one counts
    for before, after in ((own, [*quick, own]), (" ", quick), ("flags.txt", ["flags.txt"])):
        monkeypatch.setenv("XLA_FLAGS", before)
        compile_quickly()
        assert os.environ["XLA_FLAGS"].split() == after
        compile_quickly()
        assert os.environ["XLA_FLAGS"].split() == after


def test_few_images_are_compiled_for_quickly(monkeypatch):
    for arguments, few in ((["--ids", "3"], True), (["--count", 4], True), (["--count", 5], False), ([], False)):
        assert attack._few(parsed(*FAST, *arguments)) == few


def test_the_bar_says_that_it_compiles(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "tqdm", lambda **how: tqdm(**how | {"disable": False}))
    attacked(tmp_path, "--count", 2)
    first, *_, last = (line for line in capsys.readouterr().err.split("\r") if "compiling" in line or "median" in line)
    assert "compiling, and the first images" in first
    assert "median" in last
    assert "compiling" not in last


def test_the_prompt_does_not_open_on_bad_input(tmp_path):
    done = at_prompt("print('open')", "--model", "NOPE", cwd=tmp_path)
    assert done.returncode == 2
    assert "open" not in done.stdout
    assert "error: unknown network 'NOPE'" in done.stderr
