"""The table of another dataset: accuracies of networks trained for it, and median distances to adversarial images.

    python experiments/dataset_table.py --dataset fashion_mnist [--data-dir FOLDER] [--recipe best] [--images 100]

The networks are those that `python -m mnist_jax.train --model NAME --recipe RECIPE --dataset DATASET` saved in --runs.
Distances are found by `nearest`, on the first --images correctly classified images of val.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mnist_jax import attack, data
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console, job
from mnist_jax.evaluation import accuracy, predict
from mnist_jax.geometry import INF
from mnist_jax.networks import NETWORKS, ORIGINALS
from mnist_jax.recipe import RECIPES
from mnist_jax.storage import checkpoint

NORMS = (2.0, INF)
HEADER = "| network | train | test | val | median L2 | median Linf |\n|:--|--:|--:|--:|--:|--:|"


def medians(classifier: Classifier, val: data.Split, count: int) -> list[float]:
    """For each norm, the median distance of the first `count` correctly classified images; a failed attack is inf."""
    correct = np.flatnonzero(predict(classifier, val.images).argmax(1) == val.labels)[:count]
    images, labels = np.asarray(data.normalize(val.images[correct])), val.labels[correct]
    found = [attack.nearest(classifier, images, labels, norm=norm).distance for norm in NORMS]
    return [float(np.median(np.asarray(distances, float))) for distances in found]


def row(network: str, dataset: data.Dataset, options: argparse.Namespace) -> str:
    name = checkpoint.Name(network, recipe=options.recipe, dataset=dataset.name)
    path = checkpoint.find(str(name), options.runs)
    trained = checkpoint.load(path)
    job.check_fits(path, trained.network, dataset.name, dataset.val)
    classifier = trained.classifier()
    cells = [f"{accuracy(classifier, getattr(dataset, split)):.2%}" for split in data.SPLITS]
    cells += [f"{distance:.3g}" for distance in medians(classifier, dataset.val, options.images)]
    return f"| {network} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data-dir", type=Path, help="a folder of IDX files")
    parser.add_argument("--recipe", default="best", choices=RECIPES)
    parser.add_argument("--networks", nargs="+", default=list(ORIGINALS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=checkpoint.RUNS)
    options = parser.parse_args()
    dataset = data.load(options.dataset, options.data_dir)
    rows = [row(network, dataset, options) for network in tqdm(options.networks, disable=None)]
    print(HEADER, *rows, sep="\n")


if __name__ == "__main__":
    console.run(lambda _: main())
