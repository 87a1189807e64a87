"""Draws the documentation's figures of attacks, on the first images of `val`, for the shipped networks.

    python experiments/attack_figures.py [--recipe original] [--images 200] [--output docs/images/attack_results]

- NETWORK-ID.png: the nearest adversarial image that the dichotomy finds for one image;
- many.png: the same for the first twenty images;
- automatic.png: confidence and norm at every step of the automatic attack;
- accuracy.png: the robust accuracy of each network as a function of the radius.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mnist_jax import attack, data, plot
from mnist_jax.attack.minimal_norm.automatic import history
from mnist_jax.commands.prompt import describe
from mnist_jax.networks import NETWORKS, ORIGINALS
from mnist_jax.recipe import RECIPES
from mnist_jax.storage import checkpoint, files

ONE = 4  # index in val of the image for the figures of a single image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="original", choices=RECIPES)
    parser.add_argument("--network", default="CNN", choices=NETWORKS, help="network of all figures but accuracy.png")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--norm", type=float, default=2.0)
    parser.add_argument("--latex", action="store_true", help="typeset text by LaTeX, which has to be installed")
    parser.add_argument("--output", type=Path, default=Path("docs/images/attack_results"))
    options = parser.parse_args()
    files.make_folder(options.output)
    split = data.load().val
    images, labels = np.asarray(data.normalize(split.images[: options.images])), split.labels[: options.images]

    distances = {}
    for name in tqdm(ORIGINALS, disable=None):
        path = checkpoint.shipped() / f"{name}-{options.recipe}.safetensors"
        trained = checkpoint.load(path)
        classifier = trained.classifier()
        result = attack.dichotomy(classifier, images, labels, norm=options.norm)
        distances[name] = np.asarray(result.distance)
        if name == options.network:
            found = np.asarray(result.images)
            seen = describe(classifier, np.stack([images[ONE], found[ONE]]), trained.class_names)
            single = plot.attack(
                images[ONE], found[ONE], before=seen[0], after=seen[1], norm=options.norm, latex=options.latex
            )
            files.write(options.output / f"{name}-{ONE}.png", single)
            first = np.flatnonzero(distances[name] > 0)[:20]
            predictions = np.asarray(classifier(result.images[first])).argmax(1)
            many = plot.attacks(
                images[first], found[first], labels[first], predictions, distances[name][first], options.norm
            )
            files.write(options.output / "many.png", many)
            one = slice(ONE, ONE + 1)
            kept, way = history(classifier, images[one], labels[one], norm=options.norm)
            norms = np.asarray(way.norm)[0]
            place = int(np.abs(norms - float(kept.distance[0])).argmin())
            files.write(
                options.output / "automatic.png",
                plot.automatic(np.asarray(way.confidence)[0], norms, p=options.norm, thresholds=(0.2, 0.1), kept=place),
            )
    files.write(options.output / "accuracy.png", plot.accuracy_by_radius(distances, options.norm))
    for name, found in distances.items():
        print(f"{name}: median {np.median(found[found > 0]):.3f}, fooled {np.isfinite(found).mean():.1%}")


if __name__ == "__main__":
    main()
