"""Figures, from results only. Each function gives the bytes of a PNG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
COLORS = {"train": "#4477aa", "test": "#cc6677"}


def history(epochs: Sequence[dict[str, Any]], title: str) -> bytes:
    """Loss and error by epoch, on the training batches and on `test`, from a training's history."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        x = [epoch["epoch"] for epoch in epochs]
        marker = "o" if len(x) < 4 else ""
        for split, label in (("train", "train, as trained"), ("test", "test")):
            style = {"color": COLORS[split], "label": label, "marker": marker, "markersize": 4}
            loss.plot(x, [epoch[f"{split}_loss"] for epoch in epochs], **style)
            accuracy.plot(x, [epoch[f"{split}_accuracy"] for epoch in epochs], **style)
        loss.set(xlabel="epoch", ylabel="loss")
        accuracy.set(xlabel="epoch", ylabel="accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        for axes in (loss, accuracy):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        accuracy.legend(loc="lower right")
        figure.suptitle(title, fontsize=10)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without Matplotlib's version among the metadata, the same figure is the same file.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
