"""Attacks images at their largest certified radius and just below it: none may be certified and fooled.

    python experiments/certified_and_fooled.py [--networks MLP CNN] [--recipes best original] [--norms inf 2 1]
        [--method crown] [--count 1000] [--steps 50] [--no-nearest] [--seconds 800] [--total]

For each of the first --count images of val: the largest certified radius, and attacks on the image by `apgd` at
that radius and at 0.999 of it, and by `nearest`. A contradiction is an adversarial image whose distance, in double
precision, is at most the certified radius; a single one would show a bug. Figures are saved in
experiments/certified_and_fooled.json after every few images, and images that are counted there are not done again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mnist_jax import NETWORKS, attack, certify, data
from mnist_jax.classifier import Classifier
from mnist_jax.geometry import exact_norm
from mnist_jax.networks import ORIGINALS
from mnist_jax.storage import checkpoint, files

KEPT = Path(__file__).with_name("certified_and_fooled.json")
PIECE = 100  # number of images between two saves
SLOWLY = 8  # the same for the CNNs, unless by IBP, as each of their images takes long
JUST_BELOW = 0.999  # the second radius attacked, as a share of the certified one
COUNTS = ("images", "certified", "attacks", "contradictions")  # "certified": images with a certified radius above 0


def within(found: Any, images: np.ndarray, radius: np.ndarray, norm: float) -> np.ndarray:
    """For which images `[B]` an attack found an adversarial image at a distance of at most a radius `[B]`."""
    distance = exact_norm(np.asarray(found.images, float) - images, norm)
    return np.asarray(found.success) & (distance <= radius.astype(float))


def figures(classifier: Classifier, images: np.ndarray, labels: np.ndarray, norm: float, options: Any) -> list[int]:
    """The numbers named in `COUNTS` for some images."""
    method = getattr(certify, options.method)
    radius = certify.largest_radius(classifier, images, labels, norm=norm, method=method)
    proved = np.flatnonzero(radius > 0)
    x, y, r = images[proved], labels[proved], radius[proved]
    attacks = [attack.apgd(classifier, x, y, r * share, norm=norm, steps=options.steps) for share in (1, JUST_BELOW)]
    attacks += [attack.nearest(classifier, x, y, norm=norm, effort="fast")] if options.nearest else []
    contradictions = sum(int(within(found, x, r, norm).sum()) for found in attacks)
    return [len(images), len(proved), len(attacks) * len(proved), contradictions]


def work(key: dict[str, str], classifier: Classifier, options: argparse.Namespace, until: float) -> None:
    """Adds images to one row of the file, for one network, norm and method, until the time `until`."""
    rows, split = kept(), data.load().val
    row = next((r for r in rows if r["key"] == key), None)
    if row is None:
        row = {"key": key, **dict.fromkeys(COUNTS, 0)}
        rows.append(row)
    piece = SLOWLY if key["network"].startswith("CNN") and key["method"] != "ibp" else PIECE
    for start in tqdm(range(row["images"], options.count, piece), desc=" ".join(map(str, key.values())), disable=None):
        if time.monotonic() > until:
            return
        part = slice(start, min(start + piece, options.count))
        images, labels = np.asarray(data.normalize(split.images[part])), split.labels[part]
        more = figures(classifier, images, labels, float(key["norm"]), options)
        for name, number in zip(COUNTS, more, strict=True):
            row[name] += number
        files.write(KEPT, json.dumps(rows, indent=0).encode())


def kept() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def total() -> str:
    """A table with a row for each network, norm and method, and one with their sums."""
    rows = kept()
    lines = [f"| network | norm | method | {' | '.join(COUNTS)} |", "|:--|--:|:--|--:|--:|--:|--:|"]
    for row in rows:
        key = row["key"]
        counts = " | ".join(f"{row[name]:,}" for name in COUNTS)
        lines.append(f"| {key['network']} ({key['recipe']}) | {key['norm']} | {key['method']} | {counts} |")
    sums = " | ".join(f"{sum(row[name] for row in rows):,}" for name in COUNTS)
    return "\n".join([*lines, f"| all | | | {sums} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(ORIGINALS), metavar="NAME")
    parser.add_argument("--recipes", nargs="+", default=["best", "original"])
    parser.add_argument("--norms", nargs="+", default=["inf", "2", "1"])
    parser.add_argument("--method", choices=["ibp", "crown", "alpha_crown"], default="crown")
    parser.add_argument("--count", type=int, default=1000, help="number of images, the first of val")
    parser.add_argument("--steps", type=int, default=50, help="steps of apgd")
    parser.add_argument(
        "--no-nearest", dest="nearest", action="store_false", help="leave out the attack nearest, which takes long"
    )
    parser.add_argument("--seconds", type=float, default=800, help="start no further images after this time")
    parser.add_argument("--total", action="store_true", help="only print what is kept")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    for name in () if options.total else options.networks:
        for recipe in options.recipes:
            classifier = checkpoint.load(checkpoint.shipped() / f"{name}-{recipe}.safetensors").classifier()
            for norm in options.norms:
                key = {"network": name, "recipe": recipe, "norm": norm, "method": options.method}
                work(key, classifier, options, until)
    print(total())


if __name__ == "__main__":
    main()
