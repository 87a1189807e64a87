"""Requests of the demo's page and their answers, without a browser; test_demo_page.py tests it in one."""

import base64
import itertools
import json
import socket

import numpy as np
import pytest

from mnist_jax import certify, data
from mnist_jax.attack.minimal_norm.nearest import EFFORTS
from mnist_jax.commands import demo as command
from mnist_jax.demo.answers import LEAST, NORMS, Demo, budgets
from mnist_jax.demo.drawing import digit
from mnist_jax.errors import InputError
from mnist_jax.evaluation import predict
from mnist_jax.networks import MLP
from mnist_jax.storage import checkpoint, files, results, verify

NETWORK = "MLP-original"
ASKED = {"image": {"index": 3}, "network": NETWORK, "norm": "2", "effort": "fast"}


@pytest.fixture(scope="module")
def page(mnist):
    demo = Demo([checkpoint.find(NETWORK)], mnist.val)
    assert demo.network(NETWORK).certificate is certify.crown
    demo._loaded[NETWORK] = demo.network(NETWORK)._replace(certificate=certify.ibp)  # which compiles sooner
    return demo


def drawn(image):
    """A request's drawing of a digit."""
    return {"pixels": base64.b64encode(image).decode()}


def test_a_digit_of_mnist_drawn_larger_and_elsewhere_becomes_itself_again(mnist):
    images = mnist.val.images[:300]
    scaled = [np.pad(np.kron(image[..., 0], np.ones((7, 7), np.uint8)), ((40, 0), (3, 31))) for image in images]
    np.testing.assert_array_equal(np.stack([digit(drawing) for drawing in scaled]), images)


def test_a_digit_drawn_in_lines_keeps_its_class(mnist, page):
    # As a mouse draws: black and white, at 10 times the size, at a size that is no multiple of the box's.
    images = mnist.val.images[:100]
    lines = [np.kron(image[..., 0], np.ones((10, 10), np.uint8)) > 127 for image in images]
    drawings = np.stack([digit(255 * line[: 280 - k % 10].astype(np.uint8)) for k, line in enumerate(lines)])
    classifier = page.network(NETWORK).classifier
    before, after = (predict(classifier, each).argmax(1) for each in (images, drawings))
    assert (before == after).mean() >= 0.97


def test_drawings_of_any_size_and_form_fit_the_image():
    for height, width in ((1, 1), (1, 280), (280, 1), (3, 5), (280, 280)):
        drawing = np.zeros((280, 280), np.uint8)
        drawing[:height, -width:] = 255
        image = digit(drawing)
        rows, columns = np.nonzero(image[..., 0])
        assert image.shape == (28, 28, 1)
        assert max(np.ptp(rows), np.ptp(columns)) == 19
    with pytest.raises(InputError, match="nothing is drawn"):
        digit(np.zeros((280, 280), np.uint8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "../CNN"}, "unknown network"),
        ({"network": ["MLP"]}, "unknown network"),
        ({"norm": 2}, "unknown norm"),
        ({"norm": "0"}, "unknown norm"),
        ({"effort": "10"}, "unknown effort"),
        ({"image": {"index": 10_000}}, "from 0 to 9999"),
        ({"image": {"index": -1}}, "from 0 to 9999"),
        ({"image": {"index": True}}, "from 0 to 9999"),
        ({"image": {"index": 3, "pixels": ""}}, "an image is"),
        ({"image": "3"}, "an image is"),
        ({"image": {"pixels": 784 * [0]}}, "an image is"),
        ({"image": {"pixels": "?"}}, "784 bytes"),
        ({"image": {"pixels": "AAAA"}}, "784 bytes"),
        ({"image": {"pixels": "é"}}, "784 bytes"),
        ({"path": "/etc/passwd"}, "nothing else"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_a_line(page, change, said):
    with pytest.raises(InputError, match=said) as error:
        page.question(ASKED | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("asked", [None, [], "3", {}, {"image": {"index": 3}}])
def test_a_request_is_an_object_with_all_its_keys(page, asked):
    with pytest.raises(InputError, match="a request has"):
        page.question(asked)


def test_pieces_of_a_search_end_at_the_effort(page):
    for norm in NORMS:
        for effort, most in EFFORTS.items():
            pieces = budgets(page.question(ASKED | {"norm": norm, "effort": effort}))
            assert pieces[-1] == (most if norm != "1" else {100: 200, 350: 600, 4000: 8000}[most])
            assert LEAST <= pieces[0] < 2 * LEAST
            assert all(b // 2 == a for a, b in itertools.pairwise(pieces))


def test_an_answer_comes_nearer_and_its_results_hold(page, mnist, tmp_path):
    events = list(page.answer(page.question(ASKED | {"effort": "standard"})))
    json.dumps(files.strict(events), allow_nan=False)
    by_name = {name: [e for e in events if e["event"] == name] for name in ("seen", "found", "certified", "done")}
    assert events[0] == page.seen(page.question(ASKED))
    assert by_name["seen"][0]["class"] == mnist.val.labels[3]
    shares = [event["share"] for event in events if event["event"] == "working"]
    assert (shares, shares[0], shares[-1]) == (sorted(shares), 0, 1)
    found = by_name["found"]
    distances = [event["distance"] for event in found]
    assert len(found) == 3
    assert distances == sorted(distances, reverse=True)
    assert all(event["class"] != mnist.val.labels[3] for event in found)
    assert sum(found[-1]["confidences"]) == pytest.approx(1)
    assert 0 < by_name["certified"][0]["radius"] <= distances[-1]

    (done,) = by_name["done"]
    contents = {name: base64.b64decode(text) for name, text in done["files"].items()}
    assert set(contents) == {f"{NETWORK}-nearest-l2-val-3.png", f"{NETWORK}-nearest-l2-val-3.npz"}
    assert contents[f"{NETWORK}-nearest-l2-val-3.png"].startswith(b"\x89PNG")
    path = tmp_path / "downloaded.npz"
    path.write_bytes(contents[f"{NETWORK}-nearest-l2-val-3.npz"])
    record, network = results.load(path), page.network(NETWORK)
    report = verify.verify(record, network.path, network.classifier, mnist.val, path)
    assert (report["successes"], report["wrong"]) == (1, [])
    assert record.result.distance[0] == distances[-1]
    # The colours are those of the perturbation: white where nothing changes.
    changed = (record.result.images[0] != data.normalize(mnist.val.images[3])).any(-1)
    colors = np.frombuffer(base64.b64decode(found[-1]["perturbation"]), np.uint8).reshape(28, 28, 3)
    assert (colors[~changed] == colors[~changed][0]).all()
    assert (colors[changed] != colors[~changed][0]).any()


def test_two_at_once_get_each_their_own_answer(page, mnist):
    asked = [page.question(ASKED | {"image": image}) for image in ({"index": 3}, drawn(mnist.val.images[17]))]
    alone = [[e for e in page.answer(one) if e["event"] != "done"] for one in asked]
    together = zip(*map(page.answer, asked), strict=True)  # a piece of the one, a piece of the other
    for mine, theirs in zip(alone, zip(*together, strict=True), strict=True):
        assert [e for e in mine if e["event"] != "working"] == [
            e for e in theirs if e["event"] not in ("working", "done")
        ]


def test_a_drawing_has_the_label_that_is_seen_and_its_own_originals(page, mnist, tmp_path):
    image = mnist.val.images[17]
    *_, done = page.answer(page.question(ASKED | {"image": drawn(image)}))
    (name,) = [name for name in done["files"] if name.endswith(".npz")]
    assert name == f"{NETWORK}-nearest-l2-drawn.npz"
    path = tmp_path / name
    path.write_bytes(base64.b64decode(done["files"][name]))
    record = results.load(path)
    assert record.about["split"] == "drawn"
    assert record.labels.tolist() == predict(page.network(NETWORK).classifier, image[None]).argmax(1).tolist()
    np.testing.assert_array_equal(np.load(path)["originals"][0], data.normalize(image))


def test_a_misclassified_image_is_its_own_nearest(page, mnist):
    predictions = predict(page.network(NETWORK).classifier, mnist.val.images[:400]).argmax(1)
    wrong = int(np.flatnonzero(predictions != mnist.val.labels[:400])[0])
    events = list(page.answer(page.question(ASKED | {"image": {"index": wrong}})))
    assert {event["distance"] for event in events if event["event"] == "found"} == {0}
    assert [event["radius"] for event in events if event["event"] == "certified"] == [0]


def test_networks_of_other_images_are_refused(mnist, tmp_path):
    other = MLP.of((9, 7, 1), 3)
    path = tmp_path / "MLP-original.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(other, other.initialize(0), {}))
    with pytest.raises(InputError, match="not of MNIST"):
        Demo([path], mnist.val).network(path.stem)


def test_a_missing_extra_is_one_line(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert refused("demo", cwd=tmp_path) == (
        'error: the page needs starlette and uvicorn: pip install "mnist_jax[demo]"'
    )


def test_an_address_that_is_taken_or_none_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="choose another --port"):
        command.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1"):
        command.listen("192.0.2.1", 0)
