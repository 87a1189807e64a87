"""How well brackets hold the distance of the nearest adversarial image: the row of a network in the README's table.

    python experiments/bracket_table.py [--model MLP-original] [--norm inf] [--images 50] [--seconds 60]
        [--exact-arithmetic] [--resume]

The images are spread evenly over `val`. They are worked off some at a time, and what is done is kept in
runs/brackets-MODEL-lP.json, with which `--resume` goes on; at the end there is a figure beside it. With
`--exact-arithmetic` (runs/brackets-MODEL-lP-exact.json) the ends are those of exact arithmetic instead of those that
hold for a device that rounds. The row has the
medians of both ends, of how far the upper end is above the lower one, the share of the images where that is at most 1 %
and 5 %, and the seconds for all of them, with compiling.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax import bracket, data, load_classifier, plot
from mnist_jax.geometry import INF

TOGETHER = 5  # images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MLP-original")
    parser.add_argument("--norm", type=float, default=INF)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--exact-arithmetic", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    val, classifier = data.load().val, load_classifier(options.model)
    places = np.arange(options.images) * (len(val.labels) // options.images)
    images, labels = np.asarray(data.normalize(val.images[places])), val.labels[places]
    exact, norm = options.exact_arithmetic, options.norm
    path = Path("runs") / f"brackets-{options.model}-l{norm:g}{'-exact' * exact}.json"
    path.parent.mkdir(exist_ok=True)
    done: dict[str, Any] = {"lower": [], "upper": [], "seconds": 0.0}
    if options.resume:
        done = json.loads(path.read_text())
    for start in range(len(done["lower"]), len(images), TOGETHER):
        some, began = slice(start, start + TOGETHER), time.monotonic()
        how = {"norm": norm, "seconds": options.seconds, "device": not exact}
        found = bracket(classifier, images[some], labels[some], **how)
        for name in ("lower", "upper"):
            done[name] += np.asarray(getattr(found, name), float).tolist()
        done["seconds"] += time.monotonic() - began
        path.write_text(json.dumps(done))
        print(f"{len(done['lower'])} of {len(images)} images, {done['seconds']:.0f} s", flush=True)
    lower, upper = np.array(done["lower"]), np.array(done["upper"])
    right = upper > 0
    above = upper[right] / np.maximum(lower[right], 1e-12) - 1
    path.with_suffix(".png").write_bytes(plot.brackets(lower[right], upper[right], options.norm))
    print("| network | images | lower: median | upper: median | apart: median | within 1 % | within 5 % | seconds |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    shares = " | ".join(f"{(above <= limit + 1e-3).mean():.0%}" for limit in (0.01, 0.05))
    medians = f"{np.median(lower[right]):.4g} | {np.median(upper[right]):.4g} | {np.median(above):.1%}"
    print(f"| {options.model} | {right.sum()} | {medians} | {shares} | {done['seconds']:.0f} |")


if __name__ == "__main__":
    main()
