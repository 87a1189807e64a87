"""Whether an image is ever certified and fooled: attacks at the largest radius that is certified, and just below it.

    python experiments/certified_and_fooled.py [--networks MLP CNN] [--recipes best original] [--norms inf 2 1]
        [--method crown] [--count 1000] [--steps 50] [--no-nearest] [--seconds 800] [--total]

For the first so many val images: the largest certified radius of each, `apgd` at that radius and at 0.999 of it, and
the nearest adversarial image by `nearest`. A contradiction is an adversarial image that is no farther away, in double
precision, than what is certified; one of them is a bug. Figures are kept in experiments/certified_and_fooled.json,
after every few images, and what is there is not done again.
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
PIECE = 100  # images between two saves
SLOWLY = 8  # where each takes long
JUST_BELOW = 0.999
COUNTS = ("images", "certified", "attacks", "contradictions")  # certified: at some radius above 0


def within(found: Any, images: np.ndarray, radius: np.ndarray, norm: float) -> np.ndarray:
    """Which images an attack found an adversarial one for, that is not farther away than a radius `[B]`."""
    distance = exact_norm(np.asarray(found.images, float) - images, norm)
    return np.asarray(found.success) & (distance <= radius.astype(float))


def figures(classifier: Classifier, images: np.ndarray, labels: np.ndarray, norm: float, options: Any) -> list[int]:
    """The numbers of `COUNTS` for some images."""
    method = getattr(certify, options.method)
    radius = certify.largest_radius(classifier, images, labels, norm=norm, method=method)
    proved = np.flatnonzero(radius > 0)
    x, y, r = images[proved], labels[proved], radius[proved]
    attacks = [attack.apgd(classifier, x, y, r * share, norm=norm, steps=options.steps) for share in (1, JUST_BELOW)]
    attacks += [attack.nearest(classifier, x, y, norm=norm, effort="fast")] if options.nearest else []
    contradictions = sum(int(within(found, x, r, norm).sum()) for found in attacks)
    return [len(images), len(proved), len(attacks) * len(proved), contradictions]


def work(key: dict[str, str], classifier: Classifier, options: argparse.Namespace, until: float) -> None:
    """Goes on with one network and norm, a piece at a time."""
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
    """A line for each network, norm and method, and one with their sums."""
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
    parser.add_argument("--count", type=int, default=1000, help="of images of val, from the first on")
    parser.add_argument("--steps", type=int, default=50, help="of apgd")
    parser.add_argument("--no-nearest", dest="nearest", action="store_false", help="where it takes long")
    parser.add_argument("--seconds", type=float, default=800, help="begin nothing new after that")
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
