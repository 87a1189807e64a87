"""How well brackets hold the distance of the nearest adversarial image: the row of a network in the README's table.

    python experiments/bracket_table.py [--model MLP-original] [--norm inf] [--images 20] [--seconds 20]

The images are spread evenly over `val`. The row has the medians of both ends, of how far the upper end is above the
lower one, the share of the images where that is at most 1 % and 5 %, and the seconds for all of them, with compiling.
"""

import argparse
import time

import numpy as np

from mnist_jax import bracket, data, load_classifier
from mnist_jax.geometry import INF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="MLP-original")
    parser.add_argument("--norm", type=float, default=INF)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    val, classifier = data.load().val, load_classifier(options.model)
    places = np.arange(options.images) * (len(val.labels) // options.images)
    images, labels = np.asarray(data.normalize(val.images[places])), val.labels[places]
    began = time.monotonic()
    found = bracket(classifier, images, labels, norm=options.norm, seconds=options.seconds)
    took = time.monotonic() - began
    lower, upper = np.asarray(found.lower, float), np.asarray(found.upper, float)
    right = upper > 0
    above = upper[right] / np.maximum(lower[right], 1e-12) - 1
    print("| network | images | lower: median | upper: median | apart: median | within 1 % | within 5 % | seconds |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    shares = " | ".join(f"{(above <= limit + 1e-3).mean():.0%}" for limit in (0.01, 0.05))
    medians = f"{np.median(lower[right]):.4g} | {np.median(upper[right]):.4g} | {np.median(above):.1%}"
    print(f"| {options.model} | {right.sum()} | {medians} | {shares} | {took:.0f} |")


if __name__ == "__main__":
    main()
