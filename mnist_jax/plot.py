"""Figures, from results only. Each function gives the bytes of a PNG."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

STYLE: Any = {
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


def errors(rows: Sequence[dict[str, Any]]) -> bytes:
    """Val error of each network under several recipes, a line a network, smaller to the left.

    A row is `{"network": name, "errors": {label: (mean, standard deviation)}}`, in percent, with the same labels in
    every row.
    """
    markers = dict(zip(rows[0]["errors"], (("o", "#bbbbbb"), ("s", "#4477aa"), ("D", "#cc6677")), strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            means = [mean for mean, _ in row["errors"].values()]
            axes.plot([min(means), max(means)], [y, y], color="#dddddd", linewidth=3, zorder=1, solid_capstyle="round")
            for label, (mean, spread) in row["errors"].items():
                marker, color = markers[label]
                style = {"fmt": marker, "color": color, "markersize": 7, "zorder": 2, "elinewidth": 1.5}
                axes.errorbar(mean, y, xerr=spread or None, label=label if y == 0 else None, **style)
                # The smallest and the first; those between would run into each other.
                if mean == min(means) or label == next(iter(markers)):
                    side: dict[str, Any] = (
                        {"xytext": (-7, -3), "ha": "right"}
                        if mean == min(means)
                        else {"xytext": (0, 6), "ha": "center"}
                    )
                    axes.annotate(f"{mean:.2f}", (mean, y), textcoords="offset points", fontsize=7, **side)
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(FixedLocator([0.3, 0.5, 1, 2, 3, 5]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g} %")
        axes.set_yticks(range(len(rows)), [row["network"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)
        axes.set_xlabel("error on val, the official 10,000 test images (log scale)")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without Matplotlib's version among the metadata, the same figure is the same file.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
