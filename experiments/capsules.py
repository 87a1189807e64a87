"""Attacks CapsNet by three kinds of logits (lengths, squared norms, votes), and draws its reconstructions.

    python experiments/capsules.py [--model CapsNet-best] [--images 100] [--shown 8] [--output docs/images]

The network's logits, the lengths of its capsules, saturate, which may hide its nearest adversarial images from attacks
by gradients. So `nearest` searches on each of three classifiers made of the same weights, and the network itself judges
the images found. For each norm, the table has the share of images that each search fools and the median distance, and
the same for the nearest image of all three searches. capsules.png shows digits, their reconstructions, their nearest
adversarial images in the 2-norm, and reconstructions of these from the capsules of the class predicted and the label.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mnist_jax import attack, data, plot
from mnist_jax.classifier import Classifier
from mnist_jax.evaluation import predict
from mnist_jax.geometry import INF, exact_norm
from mnist_jax.networks import CapsNet, Weights
from mnist_jax.storage import checkpoint, files

NORMS = (2.0, INF)
WAYS = {"lengths": CapsNet.apply, "squared norms": CapsNet.squared_norms, "votes": CapsNet.votes}


def found_by(way: str, weights: Weights, images: np.ndarray, labels: np.ndarray, norm: float):
    """The images that `nearest` finds on a classifier of `WAYS`, and distances, inf where CapsNet is not fooled."""
    found = np.asarray(attack.nearest(Classifier(WAYS[way], weights), images, labels, norm=norm).images)
    fooled = np.asarray(Classifier(CapsNet.apply, weights)(found)).argmax(1) != labels
    return found, np.where(fooled, exact_norm(found.astype(float) - images, norm), np.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="CapsNet-best")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--shown", type=int, default=8, help="digits in the picture")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    trained, val = checkpoint.load(checkpoint.find(options.model)), data.load().val
    classifier, weights = trained.classifier(), trained.weights
    correct = np.flatnonzero(predict(classifier, val.images).argmax(1) == val.labels)[: options.images]
    images, labels = np.asarray(data.normalize(val.images[correct])), val.labels[correct]
    found = {
        (way, norm): found_by(way, weights, images, labels, norm)
        for norm in NORMS
        for way in tqdm(WAYS, desc=f"L{norm:g}", disable=None)
    }
    print("| looked for by | L2: fooled | median | Linf: fooled | median |\n|:--|--:|--:|--:|--:|")
    for way in WAYS:
        show(way, [found[way, norm][1] for norm in NORMS])
    show("all three", [np.min([found[way, norm][1] for way in WAYS], axis=0) for norm in NORMS])

    shown = slice(options.shown)
    adversarial = jnp.asarray(found["lengths", 2.0][0][shown])
    seen = np.asarray(classifier(adversarial)).argmax(1)
    rows = {
        "digit": images[shown],
        "reconstructed": CapsNet.reconstruct(weights, jnp.asarray(images[shown]), labels[shown]),
        "adversarial": adversarial,
        "as it is seen": CapsNet.reconstruct(weights, adversarial, seen),
        "as it was": CapsNet.reconstruct(weights, adversarial, labels[shown]),
    }
    titles = [f"{label}, seen as {other}" for label, other in zip(labels[shown], seen, strict=True)]
    files.write(
        options.output / "capsules.png", plot.grid({name: np.asarray(row) for name, row in rows.items()}, titles)
    )


def show(way: str, distances: list[np.ndarray]) -> None:
    medians = [f"{np.median(d):.3g}" if np.isfinite(np.median(d)) else "" for d in distances]
    cells = [f"{np.isfinite(d).mean():.0%} | {m}" for d, m in zip(distances, medians, strict=True)]
    print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
