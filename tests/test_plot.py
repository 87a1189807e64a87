import io

import matplotlib.image
import numpy as np
import pytest

from mnist_jax import plot


def epochs(count):
    keys = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    return [{"epoch": i + 1} | dict.fromkeys(keys, 1 / (i + 2)) for i in range(count)]


@pytest.mark.parametrize("count", [1, 30])
def test_history_is_a_figure_with_something_on_it_and_the_same_each_time(count):
    png = plot.history(epochs(count), "CNN")
    assert png == plot.history(epochs(count), "CNN")
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]
    assert pixels.shape[1] > 2 * pixels.shape[0] > 400
    for color in plot.COLORS.values():
        wanted = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) < 0.02).sum() > 20


def test_errors():
    rows = [{"network": name, "errors": {"a": (3.0, 0.0), "b": (1.0, 0.1), "c": (0.4, 0.1)}} for name in ("MLP", "CNN")]
    pixels = matplotlib.image.imread(io.BytesIO(plot.errors(rows)), format="png")
    assert pixels.shape[1] > 1000
