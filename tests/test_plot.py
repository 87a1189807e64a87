import io

import matplotlib.image
import numpy as np
import pytest

from mnist_jax import plot


def epochs(count):
    keys = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return [{"epoch": i + 1} | dict.fromkeys(keys, 1 / (i + 2)) for i in range(count)]


def pixels_of(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


@pytest.mark.parametrize("count", [1, 30])
def test_history_is_a_figure_with_something_on_it_and_the_same_each_time(count):
    png = plot.history(epochs(count), "CNN")
    assert png == plot.history(epochs(count), "CNN")
    pixels = pixels_of(png)
    assert pixels.shape[1] > 2 * pixels.shape[0] > 400
    for color in plot.COLORS.values():
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 20


def test_errors():
    rows = [{"network": name, "errors": {"a": (3.0, 0.0), "b": (1.0, 0.1), "c": (0.4, 0.1)}} for name in ("MLP", "CNN")]
    pixels = pixels_of(plot.errors(rows))
    assert pixels.shape[1] > 1000


def digits(*shape):
    """Images, and the same with a perturbation."""
    random = np.random.default_rng(0)
    images = random.random(shape, np.float32)
    return images, np.clip(images + random.normal(scale=0.1, size=shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "norm"), [((28, 28, 1), 2), ((28, 28), np.inf), ((20, 30, 1), 1), ((60, 20), 1.5), ((16, 16, 3), 2.0)]
)
def test_attack_of_images_of_any_shape(shape, norm):
    image, adversarial = digits(*shape)
    results = {"before": ("7", 0.98), "after": ("3", 0.5), "norm": norm}
    png = plot.attack(image, adversarial, **results)
    assert png == plot.attack(image, adversarial, **results)
    pixels = pixels_of(png)
    assert pixels.shape[1] > 1000
    assert pixels.shape[0] > 300


def test_attack_of_no_size_is_drawn_as_no_change():
    image, _ = digits(8, 8)
    pixels = pixels_of(plot.attack(image, image, before=("7", 1.0), after=("7", 1.0), norm=2))
    height, width = pixels.shape[:2]
    middle = pixels[height // 3 : height // 2, int(width * 0.4) : int(width * 0.6)]
    assert (middle == middle[0, 0]).all()
    assert middle.min() > 0.95


def test_red_is_more_and_blue_is_less():
    image = np.full((2, 2), 0.5)
    colors = plot.signed(np.array([[0.0, 0.2], [-0.2, 0.0]]), 0.2)
    assert colors.shape == (*image.shape, 3)
    assert colors[0, 0].min() > 0.95
    assert colors[0, 1, 0] > colors[0, 1, 2]
    assert colors[1, 0, 0] < colors[1, 0, 2]
    in_colour = plot.signed(np.array([[[0.1, -0.2, 0.0]]]), 0.2)
    np.testing.assert_array_equal(in_colour[0, 0], colors[1, 0])


def test_attack_with_latex_where_there_is_none(monkeypatch):
    monkeypatch.setattr(plot.shutil, "which", lambda program: "/usr/bin/latex" if program == "latex" else None)
    assert not plot.latex_available()
    image, adversarial = digits(28, 28, 1)
    results = {"before": ("50% of $5_", 0.99999), "after": ("T-shirt/top", 0.4), "norm": np.inf}
    assert plot.attack(image, adversarial, latex=True, **results) == plot.attack(image, adversarial, **results)


@pytest.mark.skipif(not plot.latex_available(), reason="LaTeX is not installed")
def test_attack_with_latex():
    image, adversarial = digits(28, 28, 1)
    results = {"before": (r"50% of a_b & {#}^~\ ", 0.99999), "after": ("T-shirt/top", 0.0), "norm": np.inf}
    png = plot.attack(image, adversarial, latex=True, **results)
    assert png == plot.attack(image, adversarial, latex=True, **results)
    assert png != plot.attack(image, adversarial, **results)
    assert not matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize(
    ("confidence", "text"),
    [(0.5, "50.0 %"), (0.9994, "99.9 %"), (0.99999, ">99.9 %"), (1.0, ">99.9 %"), (0.0001, "<0.1 %")],
)
def test_no_confidence_is_rounded_to_all_or_nothing(confidence, text):
    assert plot._percent(confidence, latex=False) == text
    assert plot._percent(confidence, latex=True).replace("$", "") == text.replace(" %", r"\,\%")


@pytest.mark.parametrize(
    ("norm", "text"), [(2, "2"), (2.0, "2"), (1.5, "1.5"), (np.inf, r"\infty"), (float("inf"), r"\infty")]
)
def test_norm_in_a_formula(norm, text):
    assert plot._norm_of_r(norm) == rf"\Vert r \Vert_{{{text}}}"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1.2, "1.20"), (0.05, "0.0500"), (12, "12.0"), (1234, "1.23e+03"), (123, "123")]
)
def test_digits_of_a_distance(value, text):
    assert plot._number(value, 3) == text


@pytest.mark.parametrize(
    ("count", "shape"), [(0, (28, 28, 1)), (1, (28, 28, 1)), (7, (28, 28)), (7, (12, 18, 3)), (40, (28, 28, 1))]
)
def test_attacks_of_many_images(count, shape):
    images, adversarials = digits(count, *shape)
    labels = np.arange(count) % 10
    distances = np.where(labels == 3, np.inf, np.where(labels == 5, 0, 1.25))
    arguments = (images, adversarials, labels, (labels + 1) % 10, distances, 2)
    png = plot.attacks(*arguments)
    assert png == plot.attacks(*arguments)
    height, width = pixels_of(png).shape[:2]
    assert width > 500
    assert 100 < height < 1200


def test_attacks_that_all_failed_are_paler():
    images, adversarials = digits(5, 28, 28, 1)
    found, failed = (
        pixels_of(plot.attacks(images, adversarials, ["Ankle boot"] * 5, ["$5"] * 5, [distance] * 5, np.inf))
        for distance in (0.1, np.inf)
    )
    assert failed.mean() > found.mean()


@pytest.mark.parametrize(("kept", "p"), [(None, 2), (0, np.inf), (11, 2)])
def test_automatic(kept, p):
    confidence, norm = np.linspace(1, 0.05, 12), np.linspace(0, 2, 12)
    png = plot.automatic(confidence, norm, p=p, thresholds=(0.4, 0.2, 0.1), kept=kept)
    assert png == plot.automatic(list(confidence), list(norm), p=p, thresholds=(0.4, 0.2, 0.1), kept=kept)
    pixels = pixels_of(png)
    assert pixels.shape[1] > 1.5 * pixels.shape[0] > 600


def test_automatic_of_one_step():
    assert plot.automatic([0.9], [0.0], p=2, thresholds=(), kept=0)


CURVES = {
    "CNN": np.array([0.0, 0.5, 1.0, 1.0, np.inf]),
    "CNN-trades": np.array([1.0, 2.0, np.inf, np.inf]),
    "MLP": np.array([0.0]),
    "MLP_d": np.full(3, np.inf),
}


@pytest.mark.parametrize(
    ("names", "radii"), [(["CNN"], None), (["MLP"], None), (["MLP_d"], None), (list(CURVES), [0.3, 3.0])]
)
def test_accuracy_by_radius(names, radii):
    curves = {name: CURVES[name] for name in names}
    png = plot.accuracy_by_radius(curves, 2, radii=radii)
    assert png == plot.accuracy_by_radius(curves, 2, radii=radii)
    pixels = pixels_of(png)
    assert pixels.shape[1] > 1.5 * pixels.shape[0] > 600


def test_accuracy_is_the_share_of_images_farther_away_than_the_radius(monkeypatch):
    drawn, step = [], plot.Axes.step
    monkeypatch.setattr(plot.Axes, "step", lambda *args, **style: (drawn.append(args[1:]), step(*args, **style)))
    plot.accuracy_by_radius({"CNN": CURVES["CNN"]}, 2, radii=[2.0])
    ((x, y),) = drawn
    np.testing.assert_allclose(x, [0, 0.5, 1, 2.04])
    np.testing.assert_allclose(y, [0.8, 0.6, 0.2, 0.2])


def test_each_of_twelve_networks_has_a_line_of_its_own():
    networks = ("MLP", "MLP_d", "MLP_bn", "CNN", "CNN_d", "CNN_bn")
    for names in (
        networks,
        [f"{name}-{recipe}" for name in networks for recipe in ("best", "original")],
        "abcdefghijkl",
    ):
        styles = plot._styles(list(names))
        assert len({tuple(style.values()) for style in styles.values()}) == len(names)
    assert styles["a"] == {"color": plot.COLORS["train"], "linestyle": "-"}
    both = plot._styles(["CNN-best", "CNN-original", "MLP-best"])
    assert both["CNN-best"]["color"] == both["CNN-original"]["color"] != both["MLP-best"]["color"]
    assert both["CNN-best"]["linestyle"] == both["MLP-best"]["linestyle"] != both["CNN-original"]["linestyle"]


def test_benchmark_leaves_out_what_is_not_finite():
    numbers = {"median": 0.5, "seconds": 0.01}
    rows = {
        "ddn:100": numbers,
        "ddn:100-adv_lib": {"median": np.inf, "seconds": 10.0},
        "fab": numbers | {"median": np.nan},
    }
    assert pixels_of(plot.benchmark(rows)).shape[1] > 300
    assert pixels_of(plot.benchmark({"one": {"median": np.inf}})).size


def test_distance_and_time_has_a_panel_a_norm():
    row = {"ratio to best": 1.02, "success": 1.0, "seconds": 2.0}
    rows = {"nearest": row, "nearest:100": row | {"ratio to best": 1.0}, "alma:100-adv_lib": row | {"success": 0.5}}
    one, two = (pixels_of(plot.distance_and_time(dict.fromkeys(norms, rows))) for norms in (["L2"], ["L1", "L2"]))
    assert two.shape[1] > one.shape[1]
    without = {name: found for name, found in rows.items() if found["success"] == 1}
    changed = pixels_of(plot.distance_and_time({"L2": without | {"alma:100-adv_lib": row}}))
    assert changed.shape == one.shape
    assert (changed != one).any()


def test_certified_by_radius():
    random = np.random.default_rng(0)
    radii = np.where(random.random(50) < 0.1, 0, random.random(50))
    distances = np.where(radii > 0.9, np.inf, radii * 1.5)  # the attack fails on some
    alone, both = plot.certified_by_radius(radii, np.inf), plot.certified_by_radius(radii, 2, distances)
    assert both == plot.certified_by_radius(radii, 2, distances)
    for png, drawn in ((alone, ("train",)), (both, ("train", "test"))):
        for name, color in plot.COLORS.items():
            wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            near = (np.abs(pixels_of(png) - wanted).max(-1) < 0.02).sum()
            assert (near > 200) == (name in drawn)
    for nothing in (np.zeros(0), np.zeros(3)):
        plot.certified_by_radius(nothing, 1, nothing)


def test_brackets():
    random = np.random.default_rng(0)
    upper = random.random(50)
    lower = upper * random.random(50)
    found = plot.brackets(lower, upper, np.inf)
    assert found == plot.brackets(lower[::-1], upper[::-1], np.inf)  # their order is that of the upper ends
    assert found != plot.brackets(lower, np.where(upper > 0.8, np.inf, upper), np.inf)
    for color in plot.COLORS.values():
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels_of(found) - wanted).max(-1) < 0.02).sum() > 200
    for nothing in (np.zeros(0), np.zeros(3), np.full(2, np.inf)):
        plot.brackets(np.zeros(len(nothing)), nothing, 1)


def test_defended():
    random = np.random.default_rng(0)
    radii = random.random(50)
    curves = {"CNN": (None, radii / 3), "CNN5_bn, ibp": (radii, radii * 1.3)}
    png = plot.defended(curves, np.inf, 1.0, mark=0.3)
    assert png == plot.defended(curves, np.inf, 1.0, mark=0.3)
    pixels = pixels_of(png)
    for color in plot.FAMILIES[:2]:
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 200


def test_compared_and_filters():
    image, adversarial = digits(28, 28, 1)
    one = {"CNN": (adversarial, "3", 0.5)}
    heights = [pixels_of(plot.compared(image, found, 2)).shape[0] for found in (one, one | {"other": (image, "7", 0)})]
    assert heights[1] > 1.5 * heights[0]
    kernels = {name: np.random.default_rng(0).normal(size=(3, 3, 1, count)) for name, count in (("a", 4), ("b", 7))}
    assert pixels_of(plot.filters(kernels)).std() > 0.05


def test_a_grid_of_images():
    some = np.stack([digits(28, 28, 1)[0]] * 3)
    one, two = (pixels_of(plot.grid(dict.fromkeys(names, some), ["7", "2", "1, seen as 4"])) for names in ("a", "ab"))
    assert two.shape[0] > 1.4 * one.shape[0]
    assert one[..., :3].min() < 0.1  # the digits' black
    with pytest.raises(ValueError, match="zip"):
        plot.grid({"a": some}, ["7"])


def test_shares_farther_than_a_radius():
    distances = np.array([0, 1, np.inf, 1])
    np.testing.assert_array_equal(plot._farther(distances, np.array([0, 0.5, 1, 2])), [0.75, 0.75, 0.25, 0.25])
    assert plot._steps(1.5, distances, np.array([0.5, 3])).tolist() == [0, 0.5, 1, 1.5]
