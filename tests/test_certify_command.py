"""The command `python -m mnist_jax.certify`: results, resuming, bad input, and `evaluate --verify` on its files."""

import json
import signal
import time

import numpy as np
import pytest

from mnist_jax import attack, certify, data, load_classifier
from mnist_jax.attack.engine.result import AttackResult
from mnist_jax.attack.methods import METHODS as ATTACKS
from mnist_jax.certify.exact import Bracket
from mnist_jax.commands import bracketing, certification, console, evaluate, job
from mnist_jax.commands import certify as command_line
from mnist_jax.errors import InputError
from mnist_jax.storage import checkpoint, verify_brackets
from mnist_jax.storage.results import Record, Smoothed, load, save

MODEL = ("--model", "MLP-original")
IBP = (*MODEL, "--method", "ibp")  # the fastest to compile


def test_results_are_what_the_summary_says_and_hold(run, tmp_path):
    status, out, err = run("certify", *MODEL, "--radius", 0.02, "--ids", "3,14,247,5", "--json", cwd=tmp_path)
    assert status == 0, err
    assert "device: " in err
    assert "certifying" in err
    summary = json.loads(out)
    assert summary["results"] == "runs/MLP-original-crown-linf-radius0.02-val.npz"
    assert (summary["norm"], summary["figure"]) == ("inf", None)
    record = load(tmp_path / summary["results"])
    assert record.indices.tolist() == [3, 14, 247, 5]
    val = data.load_split("val")
    np.testing.assert_array_equal(record.labels, val.labels[record.indices])
    result = record.result
    np.testing.assert_array_equal(result.radius, 0.02)
    np.testing.assert_array_equal(result.certified, result.margin > 0)
    assert result.fooled.tolist() == [False, False, True, False]  # 247 is misclassified
    assert summary["certified"] == result.certified.sum() > 0
    assert summary["certified_accuracy"] == result.certified.mean()
    assert summary["certified"] + summary["fooled"] + summary["open"] == summary["images"] == 4


def certified(folder, *arguments):
    """The results and the summary of the command with these options, by calling its functions."""
    options = command_line.parse([*map(str, (*IBP, "--output", folder, *arguments))])
    return job.carry_out(certification.prepare(options), options)


def said(monkeypatch, capsys, *arguments):
    """The text that the command prints."""
    monkeypatch.setattr(console, "start", lambda: None)
    command_line.main([*map(str, arguments)])
    return capsys.readouterr().out


LARGEST = "MLP-original-ibp-linf-val"


@pytest.fixture(scope="module")
def largest(tmp_path_factory):
    """A file of the largest certified radii of twelve images, one of which is misclassified."""
    folder = tmp_path_factory.mktemp("largest")
    certified(folder, "--ids", "0,1,2,3,4,5,6,7,9,10,11,247")
    return folder / f"{LARGEST}.npz"


def found_by_an_attack(largest, path, factor=1.5, **fields):
    """Writes attack results in which all distances are `factor` times the certified radius."""
    record = load(largest)
    count = len(record.indices)
    distance = factor * record.result.radius
    zeros = np.zeros(count, int)
    result = AttackResult(record.result.images, distance, np.ones(count, bool), zeros, zeros)
    about = record.about | {"method": "nearest"}
    save(path, Record(record.indices, record.labels, result, about)._replace(**fields))
    return path


def test_largest_radii_are_certified_and_drawn(largest, tmp_path, monkeypatch, capsys):
    record = load(largest)
    result = record.result
    assert record.about["options"] == {}
    assert result.certified.tolist() == [True] * 11 + [False]
    np.testing.assert_array_equal(result.radius > 0, result.certified)
    np.testing.assert_array_equal(result.fooled, ~result.certified)
    classifier, val = load_classifier(checkpoint.shipped() / "MLP-original.safetensors"), data.load_split("val")
    images = np.asarray(data.normalize(val.images[record.indices]))
    again = certify.ibp(classifier, images, record.labels, result.radius * np.float32(1.01))
    assert not np.asarray(again.certified).any()

    folder = largest.parent
    arguments = (*IBP, "--output", folder, "--ids", "0,1,2,247", "--resume")
    text = said(monkeypatch, capsys, *arguments)
    assert [line.split(":")[0] for line in text.splitlines()] == [
        *("certified", "others", "radius", "cost", "results", "figure"),
    ]
    assert "75.00% of 4 images, each at a radius of its own" in text
    assert "1 misclassified, 0 open" in text
    alone = largest.with_suffix(".png").read_bytes()
    attacked = found_by_an_attack(largest, tmp_path / "nearest.npz")
    summary = json.loads(said(monkeypatch, capsys, *arguments, "--json", "--attack-results", attacked))
    assert (summary["contradicted"], summary["attack_results"]) == (0, str(attacked))
    assert largest.with_suffix(".png").read_bytes() not in (alone, b"")
    assert len(load(largest).indices) == 12
    found_by_an_attack(largest, attacked, 0.99)
    assert (
        json.loads(said(monkeypatch, capsys, *arguments, "--json", "--attack-results", attacked))["contradicted"] == 3
    )


def test_attack_results_of_something_else_are_refused(largest, tmp_path):
    options = command_line.parse([*IBP, "--output", str(tmp_path), "--ids", "9,0"])
    run = certification.prepare(options)
    path, record = tmp_path / "nearest.npz", load(largest)
    assert (command_line.distances(found_by_an_attack(largest, path), run) == 1.5 * record.result.radius[[8, 0]]).all()
    about = record.about
    for fields, message in (
        ({"about": about | {"norm": 2.0}}, "other norm than"),
        ({"about": about | {"weights": "", "split": "test"}}, "other weights and split than"),
        ({"about": about | {"options": {"radius": 0.1}}}, "of an attack with radius"),
        ({"about": about | {"options": {"targets": [1]}}}, "of an attack with targets"),
        ({"indices": record.indices + 1}, "has no result for image 9"),
    ):
        with pytest.raises(InputError, match=message):
            command_line.distances(found_by_an_attack(largest, path, **fields), run)
    with pytest.raises(InputError, match="is not a file of attack results"):
        command_line.distances(largest, run)


def test_an_interrupted_certification_is_resumed(command, tmp_path):
    process = command("certify", *IBP, cwd=tmp_path)
    path = tmp_path / "runs" / f"{LARGEST}.npz"
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
    count = len(kept.indices) + 3
    record, summary = certified(tmp_path / "runs", "--count", count, "--resume")
    assert summary["images"] == count
    np.testing.assert_array_equal(record.indices, np.arange(count))
    for ours, theirs in zip(record.result, kept.result, strict=True):
        np.testing.assert_array_equal(ours[: len(kept.indices)], theirs)


def test_only_certificates_with_the_same_options_are_resumed(largest, tmp_path, capsys):
    first, _ = certified(tmp_path, "--radius", 0.002, "--count", 3)
    path = tmp_path / "MLP-original-ibp-linf-radius0.002-val.npz"
    # An image's certificate does not depend on the other images of its batch.
    record, _ = certified(tmp_path, "--radius", 0.002, "--ids", "5,2", "--resume")
    np.testing.assert_array_equal(record.result.margin[1], first.result.margin[2])
    assert load(path).indices.tolist() == [0, 1, 2, 5]
    path.replace(tmp_path / f"{LARGEST}.npz")
    with pytest.raises(InputError, match=r"other options \(it had radius 0.002\); resume with the same"):
        certified(tmp_path, "--count", 4, "--resume")
    found_by_an_attack(largest, tmp_path / f"{LARGEST}.npz")
    with pytest.raises(InputError, match="is not a file of certificates"):
        certified(tmp_path, "--count", 4, "--resume")
    capsys.readouterr()
    _, summary = certified(tmp_path, "--count", 4)
    assert summary["earlier_results"] == str(tmp_path / f"{LARGEST}-1.npz")
    assert "which is not a file of certificates, will be kept as" in capsys.readouterr().err
    (tmp_path / f"{LARGEST}.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not a file of certificates, or damaged"):
        certified(tmp_path, "--count", 4, "--resume")


def test_branch_and_bound_certifies_what_crown_leaves_open(tmp_path):
    wanted = ("--radius", 0.025, "--ids", "1,2,5,9")
    by_crown = certified(tmp_path, *wanted, "--method", "crown")[0].result
    divided = certified(tmp_path, *wanted, "--method", "branch_and_bound", "--seconds", 60)[0].result
    assert (divided.certified | divided.fooled).sum() > (by_crown.certified | by_crown.fooled).sum()
    assert (divided.certified >= by_crown.certified).all()
    (path,) = tmp_path.glob("*branch_and_bound*.npz")
    assert load(path).about["options"] == {"radius": 0.025, "seconds": 60.0}


def test_certificates_and_attacks_have_different_names():
    assert not set(certification.METHODS) & set(ATTACKS)
    assert set(certification.METHODS) >= {"alpha_crown", "crown", "ibp"}
    assert not any("-" in name for name in certification.METHODS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "crwon"), "unknown method 'crwon': did you mean crown"),
        (("--norm", 3), "--norm 3 does not apply to crown (norm must be 1 or 2 or inf, not 3)"),
        (("--norm", 0.5), "'0.5' is not 0, a number of at least 1, or inf"),
        (("--radius", -1), "'-1' is not a number of at least 0"),
        (("--split", "vall"), "did you mean val?"),
        (("--count", 10_001), "more than the 10000 images of val"),
        (("--ids", "3,10000"), "--ids 10000 is not an image of val"),
        (("--seed", 1), "argument --seed: only with --method smoothing"),
        (("--method", "branch_and_bound"), "--method branch_and_bound needs a --radius; --method bracket brackets"),
        (("--seconds", 1), "argument --seconds: only with --method branch_and_bound or bracket"),
        (("--method", "brackets"), "unknown method 'brackets': did you mean bracket?"),
        (("--method", "bracket", "--radius", 0.1), "--radius is not for --method bracket"),
        (("--method", "bracket", "--attack-results", "x.npz"), "--attack-results: not allowed with --method bracket"),
        (("--method", "bracket", "--norm", 3), "--norm 3 does not apply to bracket"),
        (("--method", "bracket", "--seconds", 0), "--seconds: '0' is not a number above 0"),
        (("--radius", 1, "--attack-results", "x.npz"), "--attack-results: not allowed with argument --radius"),
        (("--attack-results", "x.npz"), "there is no file x.npz"),
        (("--resume",), "nothing to resume"),
    ],
)
def test_bad_input_is_one_line(refused, tmp_path, arguments, message):
    assert message in refused("certify", "--model", "MLP", *arguments, cwd=tmp_path)
    assert not list(tmp_path.glob("runs/*"))


def test_an_unsupported_operation_is_reported_in_one_line(refused, largest, tmp_path, monkeypatch):
    def ibp(*arguments, **how):
        raise certify.UnsupportedOperation("no bounds of sort are known here (why), which is at line 3")

    monkeypatch.setitem(certification.METHODS, "ibp", ibp)
    said = refused("certify", *IBP, "--radius", 0.1, "--count", 2, cwd=tmp_path)
    assert said.endswith(
        "MLP-original.safetensors can't be certified: no bounds of sort are known here (why), which is at line 3"
    )
    assert not list(tmp_path.glob("runs/*"))
    with pytest.raises(InputError, match="can't be certified"):
        evaluate.check(evaluate.parse(["--verify", str(largest)]))


def report(path, capsys):
    """The findings of `--verify` for a file, by its function: for each wrong image the reason, and the summary."""
    status = evaluate.check(evaluate.parse(["--verify", str(path), "--json"]))
    said = json.loads(capsys.readouterr().out)
    assert (status == 1) == bool(said["wrong"])
    return {one["index"]: one["what"] for one in said["wrong"]}, said


def changed(path, folder, **fields):
    """A copy of a file of certificates with other fields of the record or of its result."""
    record = load(path)
    result = record.result._replace(**{k: v for k, v in fields.items() if k in record.result._fields})
    rest = {k: v for k, v in fields.items() if k in record._fields}
    save(folder / "changed.npz", record._replace(result=result, **rest))
    return folder / "changed.npz"


def test_true_certificates_are_verified(largest, capsys):
    wrong, said = report(largest, capsys)
    assert wrong == {}
    assert (said["certified"], said["fooled"], said["open"], said["refuted"]) == (11, 1, 0, 0)
    assert (said["proved_anew"], said["unproved"]) == (11, 0)
    assert evaluate.check(evaluate.parse(["--verify", str(largest)])) == 0
    assert capsys.readouterr().out.splitlines() == [
        "12 images, 11 certified, 1 fooled, 0 open, 0 wrong",
        "not refuted by an attack: 11 of 11 that are certified",
        "re-proved by ibp: 11 of 11",
    ]


REFUTED = "refuted, by an adversarial image within its radius"


def test_false_certificates_are_refuted_or_not_proved(largest, tmp_path, capsys):
    result = load(largest).result
    radius, flags, margin = result.radius.copy(), result.certified.copy(), result.margin.copy()
    radius[2] = 0.15  # there are adversarial images within it
    radius[4] *= 1.3  # more than can be proved, but the attack finds nothing within it
    flags[11], radius[11], margin[11] = True, 0.01, 1  # the image is misclassified
    fooled = np.zeros(12, bool)
    path = changed(largest, tmp_path, radius=radius, certified=flags, margin=margin, fooled=fooled)
    wrong, said = report(path, capsys)
    assert wrong == {2: [REFUTED], 4: ["not proved anew"], 247: [REFUTED]}
    assert (said["refuted"], said["proved_anew"], said["unproved"]) == (2, 10, 1)
    assert evaluate.check(evaluate.parse(["--verify", str(path)])) == 1
    assert f"image 2: {REFUTED}" in capsys.readouterr().out


def test_other_false_entries_are_found(largest, tmp_path, capsys):
    record = load(largest)
    result = record.result
    images, margin, fooled, flags = (
        np.array(a) for a in (result.images, result.margin, result.fooled, result.certified)
    )
    margin[0] = np.nan
    fooled[1] = True
    flags[2], fooled[2], images[2] = False, True, 1 - images[2]
    images[3] += 0.01
    path = changed(largest, tmp_path, images=images, margin=margin, fooled=fooled, certified=flags)
    wrong, _ = report(path, capsys)
    assert wrong[0] == ["certified without a positive margin"]
    assert wrong[1] == ["certified and fooled", "not misclassified"]
    assert "farther than its radius" in wrong[2]
    assert "not the original image" in wrong[3]
    assert set(wrong) == {0, 1, 2, 3}
    about = record.about | {"options": {"radius": 0.5}}
    wrong, _ = report(changed(largest, tmp_path, about=about), capsys)
    assert set(map(tuple, wrong.values())) == {("at another radius than was asked for",)}


def test_files_that_cannot_be_verified_are_refused(largest, tmp_path):
    record = load(largest)
    result = record.result
    for fields, message in (
        ({"about": record.about | {"weights": "other"}}, "other weights"),
        ({"about": record.about | {"method": "ibq"}}, "is of ibq in norm inf, which is unknown here"),
        ({"about": record.about | {"norm": 3.0}}, "is of ibp in norm 3, which is unknown here"),
        ({"labels": np.asarray(record.labels) + 1}, "other labels"),
        ({"images": np.zeros((12, 5, 5, 1))}, "another shape"),
        ({"radius": result.radius - 1}, "its certificates or its radii are invalid"),
        ({"radius": result.radius * np.nan}, "its certificates or its radii are invalid"),
        ({"certified": result.certified + 2}, "its certificates or its radii are invalid"),
        ({"margin": result.margin[1:]}, "not of one length"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.check(evaluate.parse(["--verify", str(changed(largest, tmp_path, **fields))]))


def test_a_certificate_of_the_real_attack_is_not_contradicted(largest):
    """The attack `nearest` finds no adversarial image within the certified radius."""
    record = load(largest)
    classifier = load_classifier(checkpoint.shipped() / "MLP-original.safetensors")
    val = data.load_split("val")
    images = data.normalize(val.images[record.indices])
    distance = attack.nearest(classifier, images, record.labels, norm=np.inf).distance
    assert (np.asarray(distance) > record.result.radius)[record.result.certified].all()


# Brackets

BRACKET = (*MODEL, "--method", "bracket")
BRACKETS = "MLP-original-bracket-linf-val"


@pytest.fixture(scope="module")
def brackets(run, tmp_path_factory):
    """A file of the brackets of two images, one of which is misclassified, and the output of the command."""
    folder = tmp_path_factory.mktemp("brackets")
    status, out, err = run("certify", *BRACKET, "--seconds", 3, "--ids", "247,5", cwd=folder)
    assert status == 0, err
    return folder / "runs" / f"{BRACKETS}.npz", out


def test_a_bracket_is_between_a_certificate_and_an_adversarial_image(brackets, capsys):
    path, out = brackets
    record = load(path)
    assert record.about["options"] == {"seconds": 3.0}
    lower, upper, images = record.result
    assert (lower[0], upper[0]) == (0, 0)
    assert 0.01 < lower[1] <= upper[1] < 0.1
    val = data.load_split("val")
    classifier = load_classifier(checkpoint.shipped() / "MLP-original.safetensors")
    assert classifier(images).argmax(1)[1] != val.labels[5]
    np.testing.assert_allclose(abs(images[1] - data.normalize(val.images[5])).max(), upper[1], rtol=1e-4)
    assert [line.split(":")[0] for line in out.splitlines()] == [
        *("bracket", "apart", "others", "cost", "results", "figure"),
    ]
    assert f"lower end {lower[1]:.4g}, upper end {upper[1]:.4g}, medians of 1 images, of norm inf" in out
    assert "1 misclassified, 0 with no adversarial image found" in out
    assert path.with_suffix(".png").exists()
    wrong, said = report(path, capsys)
    assert wrong == {}
    assert (said["found"], said["proved"], said["refuted"]) == (2, 1, 0)


def test_false_brackets_are_found(brackets, tmp_path, capsys, monkeypatch):
    # The attack gets less effort, which suffices here.
    monkeypatch.setattr(verify_brackets, "EFFORT", "fast")
    path, _ = brackets
    record = load(path)
    val = data.load_split("val")
    indices = np.array([5, 7, 9, 11, 13, 15])
    original = np.asarray(data.normalize(val.images[indices]))
    images = np.concatenate([record.result.images[1:], original[1:]])
    images[2, 0, 0, 0] = 1.5
    images[3] = np.clip(images[3] + 0.001, 0, 1)
    distance = record.result.upper[1]
    lower = np.array([2 * distance, 0, 0, 0, 0.15, 0])
    upper = np.array([1.5 * distance, 1, 1, np.inf, np.inf, np.inf])
    fields = {"lower": lower, "upper": upper, "images": images, "indices": indices, "labels": val.labels[indices]}
    changed_ = changed(path, tmp_path, **fields)
    wrong, said = report(changed_, capsys)
    refuted = "refuted, by an adversarial image within its lower end"
    assert wrong == {
        5: ["lower end above the upper one", "not at the stated distance", refuted],
        7: ["not misclassified", "not at the stated distance"],
        9: ["not in [0, 1]", "not misclassified", "not at the stated distance"],
        11: ["not the original image"],
        13: [refuted],
    }
    assert (said["images"], said["found"], said["proved"], said["refuted"]) == (6, 3, 2, 2)
    assert evaluate.check(evaluate.parse(["--verify", str(changed_)])) == 1
    out = capsys.readouterr().out
    assert "6 images, 3 with an adversarial image, 5 wrong" in out
    assert "lower ends not refuted by an attack: 0 of 2; they are not proved anew" in out


def test_brackets_are_summarized_and_resumed(tmp_path, monkeypatch, capsys):
    """The command with a stand-in for `bracket` that gives fixed ends."""
    ends = {0: (0.0, 0.0), 1: (0.0297, 0.03), 2: (0.048, 0.05), 3: (0.03, np.inf), 4: (0.01, 0.02)}
    asked = []

    def made_up(classifier, images, labels, *, norm, seconds):
        new = [data.load_split("val").labels[:5].tolist().index(label) for label in labels]
        asked.append((new, seconds))
        return Bracket(*np.array([ends[i] for i in new], np.float32).T, np.asarray(images))

    monkeypatch.setattr(bracketing, "bracket", made_up)
    arguments = (*BRACKET, "--output", tmp_path, "--count")
    said(monkeypatch, capsys, *arguments, 2)
    summary = json.loads(said(monkeypatch, capsys, *arguments, 5, "--resume", "--seconds", 60, "--json"))
    assert [place for new, _ in asked for place in new] == [0, 1, 2, 3, 4]  # each image once
    assert {seconds for _, seconds in asked} == {60}
    assert summary["medians"] == {"lower": pytest.approx(0.02985), "upper": pytest.approx(0.04)}
    assert summary["within"] == {"0.01": 0.25, "0.05": 0.5}
    assert (summary["images"], summary["misclassified"], summary["found"]) == (5, 1, 3)
    assert summary["figure"] == str(tmp_path / f"{BRACKETS}.png")
    text = said(monkeypatch, capsys, *arguments, 5, "--resume")
    assert "25.00% within 1%, 50.00% within 5%" in text
    assert "1 misclassified, 1 with no adversarial image found" in text
    run = bracketing.prepare(command_line.parse([*map(str, (*arguments, 5))]))
    assert run.status(load(run.path).result) == "1 within 1%, 3 open"
    with pytest.raises(InputError, match=r"other options \(it had seconds 60.0\)"):
        said(monkeypatch, capsys, *arguments, 5, "--resume", "--seconds", 2)
    nothing = said(monkeypatch, capsys, *BRACKET, "--output", tmp_path / "wrong", "--count", 1)
    assert "lower end -, upper end -, medians of 0 images" in nothing


@pytest.mark.parametrize("change", [{"lower": -1.0}, {"lower": np.inf}, {"upper": np.nan}])
def test_damaged_files_of_brackets_are_refused(tmp_path, change):
    fine = {"lower": 0.1, "upper": np.inf} | change
    ends = {key: np.array([value]) for key, value in fine.items()}
    result = Bracket(**ends, images=np.zeros((1, 2, 2, 1)))
    save(tmp_path / "some.npz", Record(np.arange(1), np.arange(1), result, {"norm": 2.0}))
    with pytest.raises(InputError, match="is damaged: its brackets are invalid"):
        load(tmp_path / "some.npz")


# Smoothing

SMOOTHING = (*MODEL, "--method", "smoothing", "--sigma", 0.25, "--samples", 600)


def test_smoothing_certifies_the_smoothed_classifier_and_is_resumed(run, tmp_path, monkeypatch, capsys):
    arguments = (*SMOOTHING, "--output", tmp_path, "--ids")
    summary = json.loads(said(monkeypatch, capsys, *arguments, "3,14,0", "--json"))
    path = tmp_path / "MLP-original-smoothing-l2-sigma0.25-val.npz"
    assert summary["results"] == str(path)
    assert summary["options"] == {"sigma": 0.25, "samples": 600, "failure": 0.001, "seed": 0}
    first = load(path)
    assert first.indices.tolist() == [3, 14, 0]
    result = first.result
    np.testing.assert_array_equal(result.counts.sum(1), 600)
    np.testing.assert_array_equal(result.abstained, result.classes < 0)
    assert summary["accuracy"] == (result.classes == first.labels).mean()
    text = said(monkeypatch, capsys, *arguments, "3,14,0,7", "--resume")
    assert [line.split(":")[0] for line in text.splitlines()] == [
        *("certified", "accuracy", "radius", "how", "cost", "results"),
    ]
    assert "of 4 images, in norm 2, of the smoothed classifier" in text
    # An image's noise depends on its index in the split alone, not on the other images.
    alone = json.loads(said(monkeypatch, capsys, *SMOOTHING, "--output", tmp_path / "alone", "--ids", "7", "--json"))
    np.testing.assert_array_equal(load(path).result.counts[3], load(tmp_path / alone["results"]).result.counts[0])
    with pytest.raises(InputError, match="is of smoothing; certify once more with another --seed"):
        evaluate.main(["--verify", str(path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*MODEL, "--method", "smoothing"), "--method smoothing needs --sigma"),
        ((*SMOOTHING, "--radius", 1), "--radius is not for --method smoothing"),
        ((*SMOOTHING, "--norm", "inf"), "--norm inf does not apply to smoothing"),
        ((*SMOOTHING, "--attack-results", "a.npz"), "not allowed with --method smoothing"),
        ((*MODEL, "--sigma", 0.5), "--sigma: only with --method smoothing"),
        ((*SMOOTHING, "--samples", 0), "--samples: '0' is not a whole number of at least 1"),
        ((*SMOOTHING, "--failure", 0.7), "'0.7' is not a number above 0 and at most 0.5"),
    ],
)
def test_bad_options_of_smoothing_are_refused(refused, tmp_path, arguments, message):
    assert message in refused("certify", *arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"radius": np.array([-1.0, 0, 0])},
        {"classes": np.array([10, 0, 0])},
        {"counts": np.zeros((3, 10))},
        {"counts": np.zeros((2, 10), int)},
        {"abstained": np.array([2, 0, 0])},
    ],
)
def test_damaged_files_of_smoothing_are_refused(tmp_path, change):
    counts = np.full((3, 10), 60)
    fine = {"classes": np.array([3, -1, 0]), "abstained": np.array([False, True, False]), "radius": np.zeros(3)}
    about = {"norm": 2.0, "method": "smoothing"}
    path = tmp_path / "some.npz"
    record = Record(np.arange(3), np.arange(3), Smoothed(counts=counts, **fine), about)
    save(path, record)
    np.testing.assert_array_equal(load(path).result.counts, counts)
    save(path, record._replace(result=record.result._replace(**change)))
    with pytest.raises(InputError, match="is damaged"):
        load(path)
