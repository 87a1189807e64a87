"""Figures of results. Each public function returns the content of a PNG file."""

import io
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from mnist_jax.geometry import exact_norm

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
LATEX: Any = {"text.usetex": True, "font.family": "serif"}  # added to STYLE where LaTeX typesets
COLORS = {"train": "#4477aa", "test": "#cc6677"}  # of two curves in contrast
# A colour for each family of networks or attacks, and a line style for each variant within it; see `_styles`.
FAMILIES = ("#4477aa", "#cc6677", "#117733", "#ddaa33", "#222222", "#66bbdd", "#882255")
VARIANTS: Sequence[Any] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (5, 1.2, 1, 1.2, 1, 1.2)))
SIGNED = matplotlib.colormaps["RdBu_r"]  # colours of perturbations
GREY = "#888888"
LEAST_FARTHER = 1e-4  # relative excess over the best known distance at which the log scale draws all smaller ones
IN_AXES: Any = {"xycoords": "axes fraction", "textcoords": "offset points"}


def history(epochs: Sequence[dict[str, Any]], title: str) -> bytes:
    """Loss and accuracy by epoch, on the training batches and on the split `test`.

    Args:
      epochs: a record for each epoch: `epoch`, `train_loss`, `test_loss`, `train_accuracy`, `test_accuracy`.
      title: of the figure.
    """
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
    """Val error of networks by several recipes: a line for each network, on a log scale.

    Args:
      rows: for each network `{"network": name, "errors": {recipe: (mean, standard deviation)}}`, in percent, with the
        same recipes in every row, three at most.
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
                # Only the smallest mean and the first recipe's get a number; more numbers would overlap.
                if mean == min(means) or label == next(iter(markers)):
                    axes.annotate(
                        f"{mean:.2f}", (mean, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7
                    )
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


def attack(
    image: np.ndarray,
    adversarial: np.ndarray,
    *,
    before: tuple[str, float],
    after: tuple[str, float],
    norm: float,
    latex: bool = False,
) -> bytes:
    """An image, the perturbation with its p-norm, and the adversarial image, side by side.

    Args:
      image: `[H, W]`, `[H, W, 1]` or `[H, W, 3]` in [0, 1]. Of a pixel with several channels, the perturbation of
        largest size is drawn.
      adversarial: of the same shape.
      before: the class that the network predicts of the image, and its confidence in it, in [0, 1].
      after: likewise of the adversarial image.
      norm: p.
      latex: typeset with LaTeX, where it is installed.
    """
    latex = latex and latex_available()
    r = np.subtract(adversarial, image, dtype=np.float64)
    limit = float(np.abs(r).max()) or 1.0
    size = _number(float(exact_norm(r[None], norm)[0]), 4)
    titles = [(f"Prediction: {_text(name, latex)}", f"Confidence: {_percent(c, latex)}") for name, c in (before, after)]
    titles.insert(1, ("Perturbation", f"${_norm_of_r(norm)} = {size}$"))
    letters = len("Prediction: ") + max(len(str(name)) for name, _ in (before, after))
    panels = (_pixels(image), signed(r, limit), _pixels(adversarial))
    with matplotlib.rc_context(STYLE | (LATEX if latex else {})):
        figure = Figure(figsize=(7.2, min(2.34 * image.shape[0] / image.shape[1], 6) + 0.86), layout="compressed")
        for axes, panel, (first, second) in zip(figure.subplots(1, 3), panels, titles, strict=True):
            _show(axes, panel)
            # Two texts, as a formula in the second line would move the first one.
            for text, height in ((first, 21), (second, 6)):
                axes.annotate(text, (0.5, 1), (0, height), ha="center", fontsize=min(10, 300 / letters), **IN_AXES)
        _scale(figure, limit)
        return _png(figure)


def attacks(
    images: np.ndarray,
    adversarials: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    predictions: Sequence[Any] | np.ndarray,
    distances: Sequence[float] | np.ndarray,
    norm: float,
) -> bytes:
    """Attacks on N images: each image, adversarial image and perturbation, with the classes and the distance above.

    Args:
      images: `[N, H, W]`, `[N, H, W, 1]` or `[N, H, W, 3]` in [0, 1].
      adversarials: of the same shape.
      labels: `[N]`, the class of each image.
      predictions: `[N]`, the class that the network predicts of each adversarial image.
      distances: `[N]`, p-norms of the perturbations; 0 where the image is adversarial already, inf where the attack
        failed, which is drawn pale.
      norm: p.
    """
    distances = np.asarray(distances, np.float64)
    perturbations = np.subtract(adversarials, images, dtype=np.float64)
    largest = np.abs(perturbations).max(tuple(range(1, perturbations.ndim)))
    changed = largest[np.isfinite(distances) & (largest > 0)]
    # The scale of colours is the median image's: with the largest, a single image would make all others pale.
    limit = float(np.median(changed)) if changed.size else 1.0
    classes = [f"{_text(label)} → {_text(prediction)}" for label, prediction in zip(labels, predictions, strict=True)]
    titles = list(zip(classes, [_number(d, 3) if np.isfinite(d) else "failed" for d in distances], strict=True))
    longest = max((len(left) + len(right) + 2 for left, right in titles), default=1)
    columns = max(1, min(5, len(images), 115 // longest))  # 115 letters of a title fit beside each other
    rows = max(1, -(-len(images) // columns))
    height, width = images.shape[1:3]
    cell = min(7.2 / columns, 3.6)
    with matplotlib.rc_context(STYLE):
        size = (cell * columns, rows * (0.19 + cell * height / width / 3.25) + 0.5)
        figure = Figure(figsize=size, layout="compressed")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(images) :]:
            axes.set_axis_off()
        gap = np.ones((height, -(-width // 20), 3))
        for i, (axes, found) in enumerate(zip(grid, np.isfinite(distances), strict=False)):
            panels = (_pixels(images[i]), gap, _pixels(adversarials[i]), gap, signed(perturbations[i], limit))
            _show(axes, np.concatenate(panels, 1), alpha=1 if found else 0.3)
            for side, title in zip(("left", "right"), titles[i], strict=True):
                axes.set_title(title, loc=side, fontsize=7, pad=2, color="black" if found else GREY)
        text = f"image, adversarial, perturbation $r$; class → prediction, ${_norm_of_r(norm)}$"
        figure.suptitle(text, fontsize=8)
        _scale(figure, limit, extend="both" if (changed > limit).any() else "neither")
        return _png(figure)


def automatic(
    confidence: Sequence[float] | np.ndarray,
    norm_history: Sequence[float] | np.ndarray,
    *,
    p: float,
    thresholds: Sequence[float],
    kept: int | None = None,
) -> bytes:
    """The course of the attack `automatic` on one image: confidence in the label and norm of the perturbation by step.

    Args:
      confidence: `[steps]`, in [0, 1].
      norm_history: `[steps]`, p-norms.
      p: of the norm.
      thresholds: the confidences at which the loss changes.
      kept: the step whose image is the result, or None.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        marker = "o" if len(confidence) < 4 else ""
        histories = (confidence, norm_history)
        for axes, values, color in zip((above, below), histories, COLORS.values(), strict=True):
            axes.plot(range(len(values)), values, color=color, linewidth=1.3, marker=marker, markersize=4)
            if kept is not None:
                axes.axvline(kept, color=GREY, linewidth=0.8, zorder=1)
                axes.plot(kept, values[kept], "o", color=color, markeredgecolor="white", markersize=7, zorder=3)
        for threshold in thresholds:
            above.axhline(threshold, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            place = IN_AXES | {"xycoords": ("axes fraction", "data")}
            above.annotate(f"{100 * threshold:g}%", (1, threshold), (4, 0), va="center", fontsize=7, **place)
        if kept is not None:
            text = f"kept: step {kept}, ${_norm_of_r(p)} = {_number(norm_history[kept], 4)}$"
            place = IN_AXES | {"xycoords": above.get_xaxis_transform()}
            side = ("left", "center", "right")[min(3 * kept // len(confidence), 2)]
            above.annotate(text, (kept, 1), (0, 4), ha=side, fontsize=8, **place)
        above.set(ylabel="confidence in label", ylim=(-0.03, 1.03))
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        below.set(xlabel="step", ylabel=f"${_norm_of_r(p)}$")
        below.set_ylim(bottom=0)
        below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        below.margins(x=0.02)
        figure.align_ylabels()
        return _png(figure)


def accuracy_by_radius(curves: Mapping[str, np.ndarray], norm: float, *, radii: Sequence[float] | None = None) -> bytes:
    """Robust accuracy by radius of several networks: the share of images without an adversarial image found within it.

    Args:
      curves: `{network: distances [N]}`, to the nearest adversarial images found: 0 where the image is misclassified,
        inf where the attack failed. Networks whose names agree before the first `-` (before the first `_` where no
        name has a `-`) have the same colour, and names that agree after it the same line style.
      norm: p of the distances.
      radii: radii to mark on the curves, such as those of a table.
    """
    marked = np.asarray([] if radii is None else radii, np.float64)
    finite = [distances[np.isfinite(distances)] for distances in curves.values()]
    limit = max([*(np.quantile(found, 0.99) for found in finite if found.size), *(1.02 * marked)], default=0) or 1
    styles = _styles(list(curves))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        # The legend lists the most robust network first, as the curves lie in the figure.
        for name in sorted(curves, key=lambda name: -np.minimum(curves[name], limit).mean()):
            x = _steps(limit, curves[name])
            axes.step(x, _farther(curves[name], x), where="post", label=name, **styles[name])
            shares = _farther(curves[name], marked)
            axes.plot(marked, shares, "o", color=styles[name]["color"], markersize=4, zorder=3)
        _accuracy_axes(axes, limit, norm)
        figure.legend(loc="outside right upper", handlelength=2.8, fontsize=8)
        return _png(figure)


def certified_by_radius(radii: np.ndarray, norm: float, distances: np.ndarray | None = None) -> bytes:
    """Certified accuracy by radius and, where an attack's distances are given, robust accuracy by radius.

    The images between the two curves are open: no adversarial image within the radius was found, nor was it proved that
    there is none.

    Args:
      radii: `[N]`, the largest certified radius of each image, 0 where there is none.
      norm: p of radii and distances.
      distances: `[N]`, to the nearest adversarial images found: 0 where the image is misclassified, inf where the
        attack failed.
    """
    radii = np.asarray(radii, np.float64)
    both = [radii] if distances is None else [radii, np.asarray(distances, np.float64)]
    limit = max((np.quantile(shown, 0.99) for each in both if (shown := each[np.isfinite(each)]).size), default=0) or 1
    x = _steps(limit, *both)
    certified, robust = _farther(radii, x), _farther(both[-1], x)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        if distances is not None:
            axes.step(x, robust, where="post", color=COLORS["test"], label="robust: no adversarial image found")
            axes.fill_between(x, certified, robust, step="post", color=GREY, alpha=0.25, linewidth=0, label="open")
        axes.step(x, certified, where="post", color=COLORS["train"], label="certified")
        _accuracy_axes(axes, limit, norm)
        axes.set_ylabel("accuracy" if distances is not None else "certified accuracy")
        if distances is not None:
            axes.legend(loc="upper right", fontsize=8)  # the curves fall, which leaves room there
        return _png(figure)


def brackets(lower: np.ndarray, upper: np.ndarray, norm: float) -> bytes:
    """Brackets of the distances from N images to their nearest adversarial images, a vertical segment for each image.

    The images are in the order of their upper ends. Where no adversarial image was found, the segment is dotted and
    reaches the upper edge.

    Args:
      lower: `[N]`, distances within which it is proved that there is no adversarial image.
      upper: `[N]`, distances of the adversarial images found: 0 where the image is misclassified, inf where none was
        found.
      norm: p.
    """
    order = np.lexsort((lower, upper))
    low, high = np.asarray(lower, np.float64)[order], np.asarray(upper, np.float64)[order]
    place, found = np.arange(1, len(order) + 1), np.isfinite(high)
    limit = 1.06 * max(low.max(initial=0), high[found].max(initial=0)) or 1
    room = 400 / max(len(order), 1)  # width of an image's segment and margins, in points; the axes are about 400 wide
    mark = min(max(0.8 * room, 1.5), 6)
    ends: Any = {"marker": "_", "markersize": mark, "markeredgewidth": 1.4, "linestyle": "", "clip_on": False}
    segment: Any = {"color": GREY, "linewidth": min(max(0.3 * room, 0.5), 1.6), "alpha": 0.6}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.vlines(place[found], low[found], high[found], **segment)
        if not found.all():
            missing = {"label": "none found", "linestyle": VARIANTS[2]}
            axes.vlines(place[~found], low[~found], limit, **segment, **missing)
        right = high > 0
        axes.plot(place[right], low[right], color=COLORS["train"], label="proved: none is nearer", zorder=3, **ends)
        label = "found: an adversarial image"
        axes.plot(place[found], high[found], color=COLORS["test"], label=label, zorder=3, **ends)
        axes.set(xlim=(0.5, max(len(order), 1) + 0.5), ylim=(0, limit))
        axes.set(xlabel="images, in the order of their upper ends", ylabel=f"distance, ${_norm_of_r(norm)}$")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="x", visible=False)
        # Above the axes, where it hides no segment.
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8, markerscale=8 / mark)
        return _png(figure)


def defended(
    curves: Mapping[str, tuple[np.ndarray | None, np.ndarray]], norm: float, limit: float, *, mark: float | None = None
) -> bytes:
    """Robust and certified accuracy by radius of several networks.

    Args:
      curves: `{network: (radii, distances)}`: the largest certified radii `[N]`, 0 where there is none, or None to draw
        no such curve; and the distances `[N]` to the nearest adversarial images found.
      norm: p of radii and distances.
      limit: largest radius shown.
      mark: a radius to mark by a vertical line, such as the one that the networks were trained for.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for color, (name, (radii, distances)) in zip(FAMILIES, curves.items(), strict=False):
            x = _steps(limit, *(np.asarray(each, float) for each in (radii, distances) if each is not None))
            robust = _farther(np.asarray(distances, float), x)
            axes.step(x, robust, where="post", color=color, label=_text(name))
            if radii is not None:
                certified = _farther(np.asarray(radii, float), x)
                axes.step(x, certified, where="post", color=color, linestyle=VARIANTS[1])
                axes.fill_between(x, certified, robust, step="post", color=color, alpha=0.12, linewidth=0)
        if mark is not None:
            axes.axvline(mark, color=GREY, linewidth=0.8, linestyle=VARIANTS[2])
        _accuracy_axes(axes, limit, norm)
        lines, names = axes.get_legend_handles_labels()
        both: Sequence[tuple[Any, str]] = (("-", "robust, as far as attacks tell"), (VARIANTS[1], "certified"))
        for style, what in both:
            lines.append(Line2D([], [], color=GREY, linestyle=style))
            names.append(what)
        # Above the axes, where it hides no curve.
        axes.legend(lines, names, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize=8)
        return _png(figure)


def compared(image: np.ndarray, found: Mapping[str, tuple[np.ndarray, str, float]], norm: float) -> bytes:
    """The adversarial images of one image on several networks: a row for each, of image, perturbation and their sum.

    Args:
      image: `[H, W]`, `[H, W, 1]` or `[H, W, 3]` in [0, 1].
      found: `{network: (adversarial image, class that the network predicts of it, distance)}`.
      norm: p.
    """
    perturbations = {name: np.subtract(x, image, dtype=np.float64) for name, (x, *_) in found.items()}
    limit = max((float(np.abs(r).max()) for r in perturbations.values()), default=0) or 1.0
    height = 2.0 * image.shape[0] / image.shape[1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.0, (height + 0.25) * len(found) + 0.6), layout="compressed")
        for row, (name, (adversarial, prediction, distance)) in zip(
            figure.subplots(len(found), 3, squeeze=False), found.items(), strict=True
        ):
            panels = (_pixels(image), signed(perturbations[name], limit), _pixels(adversarial))
            titles = (_text(name), f"${_norm_of_r(norm)} = {_number(distance, 3)}$", f"seen as {_text(prediction)}")
            for axes, panel, title in zip(row, panels, titles, strict=True):
                _show(axes, panel)
                axes.set_title(title, fontsize=8, pad=3)
        _scale(figure, limit)
        return _png(figure)


def grid(rows: Mapping[str, np.ndarray], titles: Sequence[str]) -> bytes:
    """A table of images, with a name at the left of each row and a title above each column.

    Args:
      rows: `{name: images}`, each `[N, H, W, 1]` or `[N, H, W, 3]` in [0, 1].
      titles: of the N columns.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.9 + 0.95 * len(titles), 0.95 * len(rows) + 0.3), layout="compressed")
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        for row, (name, images) in zip(axes, rows.items(), strict=True):
            for cell, image in zip(row, images, strict=True):
                _show(cell, _pixels(image))
            row[0].set_ylabel(_text(name), fontsize=8)
        for cell, title in zip(axes[0], titles, strict=True):
            cell.set_title(_text(title), fontsize=7, pad=3)
        return _png(figure)


def filters(kernels: Mapping[str, np.ndarray]) -> bytes:
    """The filters of the first layers of several networks, a row for each network, with its own scale of colours.

    Args:
      kernels: `{network: kernel [h, w, 1, N]}`.
    """
    columns = max(kernel.shape[-1] for kernel in kernels.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, (7.2 / columns + 0.28) * len(kernels)), layout="constrained")
        for part, (name, kernel) in zip(
            figure.subfigures(len(kernels), 1, squeeze=False)[:, 0], kernels.items(), strict=True
        ):
            part.suptitle(_text(name), fontsize=8)
            limit = float(np.abs(kernel).max()) or 1.0
            for i, axes in enumerate(part.subplots(1, columns)):
                if i < kernel.shape[-1]:
                    _show(axes, signed(kernel[..., i], limit))
                else:
                    axes.set_axis_off()
        return _png(figure)


def benchmark(rows: Mapping[str, Mapping[str, float]]) -> bytes:
    """Attacks compared: a line for each attack, a panel for each measure.

    Args:
      rows: `{attack: {measure: number}}` with the same measures in every row; numbers that are not finite are not
        drawn. Attacks with the smallest `median`, if that is a measure, come first. Attacks of libraries, which are
        called `NAME-LIBRARY`, have hollow marks.
    """
    names = sorted(rows, key=lambda name: (rows[name].get("median", 0), name), reverse=True)
    panels = list(next(iter(rows.values())))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 1.15 * len(panels), 0.7 + 0.19 * len(names)), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            values = np.array([rows[name][panel] for name in names], float)
            shown = np.isfinite(values)
            for library in (False, True):
                which = np.flatnonzero(shown & np.array([("-" in name) == library for name in names]))
                face = "white" if library else FAMILIES[0]
                axes.plot(values[which], which, "o", color=FAMILIES[0], markerfacecolor=face, markersize=4)
            finite = values[shown]
            if finite.size and finite.min() > 0 and finite.max() > 20 * finite.min():
                axes.set_xscale("log")
            else:
                axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.set_title(_text(panel), fontsize=8)
            axes.tick_params(labelsize=7)
            axes.set_yticks(range(len(names)), [_text(name) for name in names])
            axes.margins(x=0.15)
            axes.set_ylim(-0.6, len(names) - 0.4)
        return _png(figure)


def distance_and_time(panels: Mapping[str, Mapping[str, Mapping[str, float]]]) -> bytes:
    """Mean excess of attacks' distances over the best known ones, against the seconds that they take, on log scales.

    Args:
      panels: `{title: {attack: {"ratio to best", "success", "seconds", ...}}}`, a panel for each norm, for example.
        Attacks of libraries, called `NAME-LIBRARY`, have hollow marks; an attack that fails on some image is not drawn.
        The efforts of one attack, called `NAME:STEPS`, are joined by a line.
    """
    families = dict.fromkeys(name.partition("-")[0].partition(":")[0] for rows in panels.values() for name in rows)
    colors = {family: FAMILIES[i % len(FAMILIES)] for i, family in enumerate(families)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 2.4 * len(panels), 3.0), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, rows) in zip(all_axes, panels.items(), strict=True):
            lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for name, row in rows.items():
                ours, _, library = name.partition("-")
                if row["success"] == 1:
                    farther = max(row["ratio to best"] - 1, LEAST_FARTHER)
                    lines.setdefault((ours.partition(":")[0], library), []).append((row["seconds"], farther))
            for (family, library), points in lines.items():
                style = {"color": colors[family], "markerfacecolor": "white" if library else colors[family]}
                axes.plot(*zip(*sorted(points), strict=True), "o-", linewidth=0.8, markersize=4.5, **style)
            axes.set(xscale="log", yscale="log", xlabel="seconds", title=title)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
            axes.xaxis.set_minor_formatter(NullFormatter())
        all_axes[0].set_ylabel("farther than the best known")
        keys = [Line2D([], [], color=color, marker="o", linestyle="", label=_text(f)) for f, color in colors.items()]
        keys += [Line2D([], [], color=GREY, marker="o", markerfacecolor="white", linestyle="", label="of a library")]
        figure.legend(handles=keys, loc="outside right center", fontsize=8)
        return _png(figure)


def latex_available() -> bool:
    """Whether the programs that Matplotlib needs to typeset with LaTeX are installed."""
    return all(shutil.which(program) for program in ("latex", "dvipng"))


def _farther(distances: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The share of the distances `[N]` that exceed each radius `[R]`: `[R]`."""
    return 1 - np.searchsorted(np.sort(distances), radii, side="right") / max(len(distances), 1)


def _steps(limit: float, *distances: np.ndarray) -> np.ndarray:
    """The radii from 0 to `limit` at which the share of some array of distances changes."""
    return np.unique(np.concatenate([[0, limit], *(each[each < limit] for each in distances)]))


def _accuracy_axes(axes: Axes, limit: float, norm: float) -> None:
    """Sets limits, labels and format of axes that show accuracy by radius."""
    axes.set(xlim=(0, limit), ylim=(0, 1.02), ylabel="accuracy")
    axes.set_xlabel(f"radius, ${_norm_of_r(norm)}$")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))


def _text(value: Any, latex: bool = False) -> str:
    """A name with the characters escaped that have a meaning in LaTeX or, without it, in Matplotlib's mathtext."""
    special: Any = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {character: f"\\{character}" for character in "$%&#_{}"}
    return str(value).translate(str.maketrans(special if latex else {"$": r"\$"}))


def _percent(share: float, latex: bool) -> str:
    """A confidence in percent; it is never rounded to 100 or 0, which no confidence is."""
    more, less = ("$>$", "$<$") if latex else "><"
    text = f"{more}99.9" if share >= 0.9995 else f"{less}0.1" if share < 0.0005 else f"{100 * share:.1f}"
    return text + (r"\,\%" if latex else " %")


def _number(value: float, digits: int) -> str:
    """The number with this many significant digits, trailing zeros included."""
    return f"{value:#.{digits}g}".rstrip(".") if value else "0"


def _norm_of_r(norm: float) -> str:
    """The formula of the p-norm of r."""
    p = r"\infty" if norm == np.inf else f"{norm:g}"
    return rf"\Vert r \Vert_{{{p}}}"


def _pixels(image: np.ndarray) -> np.ndarray:
    """An image, grey or coloured, as colours `[H, W, 3]`."""
    return np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3))


def signed(r: np.ndarray, limit: float) -> np.ndarray:
    """A perturbation as colours `[H, W, 3]`: white for zero, blue for -limit and red for limit.

    Of a pixel with several channels, the largest perturbation in absolute value counts.
    """
    r = r.reshape(*r.shape[:2], -1)
    largest = np.take_along_axis(r, np.abs(r).argmax(-1, keepdims=True), -1)[..., 0]
    return SIGNED(Normalize(-limit, limit)(largest))[..., :3]


def _show(axes: Axes, pixels: np.ndarray, alpha: float = 1) -> None:
    """Draws pixels `[H, W, 3]` in a thin frame, without ticks."""
    axes.imshow(pixels, alpha=alpha, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=GREY, linewidth=0.5)


def _scale(figure: Figure, limit: float, extend: str = "neither") -> None:
    """Draws the scale of the colours of perturbations, centred below all axes."""
    colors = ScalarMappable(Normalize(-limit, limit), SIGNED)
    bar = figure.colorbar(colors, ax=figure.axes, location="bottom", shrink=0.3, aspect=30, pad=0.02, extend=extend)
    text = f"{limit:.2g}"
    bar.set_ticks([-limit, 0, limit], labels=[f"$-{text}$", "$0$", f"$+{text}$"])
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set(linewidth=0.5, edgecolor=GREY)


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and line style of each network: its name's first part has a colour, the rest a line style.

    Once all colours are used, families share a colour and differ in their line styles.
    """
    separator = "-" if any("-" in name for name in names) else "_"
    parts = {name: name.partition(separator)[::2] for name in names}
    families, variants = (list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True))
    styles = {}
    for name, (family, variant) in parts.items():
        turn, color = divmod(families.index(family), len(FAMILIES))
        line = VARIANTS[(variants.index(variant) + turn) % len(VARIANTS)]
        styles[name] = {"color": FAMILIES[color], "linestyle": line}
    return styles


def _png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    # Matplotlib's version is left out of the metadata, so that the same figure gives the same file.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
