"""How often branch and bound decides whether there is an adversarial image within a radius, for several networks.

    python experiments/questions.py [--networks dense2 dense4 dense6 max mean] [--seconds 20] [--resume]

The networks are trained here (from weights as PyTorch draws them; Adam 1e-3, cross-entropy, 10 epochs, nothing against
overfitting, seed 0): 2, 4 and 6 hidden layers of 256 ReLUs; and a convolution (5x5, stride 2, 8 filters), a pool (2x2,
of the maximum or of the mean) and a hidden layer of 64. A question is an image and a radius: the first images of `val`
that are classified correctly, each at two radii in Linf. `nearest` at thorough effort searches first. Verdicts are kept
in runs/questions-NAME.json as they come, with which `--resume` goes on. A row of the table has the numbers of questions
that are certified, have an adversarial image, and stay open; the numbers that CROWN certifies and finds adversarial
images for; and the seconds for all questions, with compiling.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from exact_minimum import descended
from jax.typing import ArrayLike

from mnist_jax import Classifier, attack, certify, data, layers

HIDDEN, EPOCHS, RATE = 256, 10, 1e-3  # units in a hidden layer; epochs of training; Adam's learning rate
TOGETHER = 10  # questions between two saves of the verdicts
# For each network, the number of images, and the radii.
QUESTIONS = {
    "dense2": (15, (0.03, 0.05)),
    "dense4": (15, (0.03, 0.05)),
    "dense6": (15, (0.03, 0.05)),
    "max": (10, (0.03, 0.05)),
    "mean": (10, (0.03, 0.05)),
}

Weights = list[jax.Array]


def dense(weights: Weights, x: jax.Array) -> jax.Array:
    """Logits of dense layers with ReLUs between them; the weights are the matrix and the biases of each layer."""
    x = x.reshape(len(x), -1)
    for n in range(0, len(weights), 2):
        x = x @ weights[n] + weights[n + 1][None]
        x = jax.nn.relu(x) if n + 2 < len(weights) else x
    return x


def pooled(pool: Callable[[jax.Array], jax.Array], weights: Weights, x: jax.Array) -> jax.Array:
    """Logits of a convolution with ReLUs, a pool and dense layers; the first weights are the convolution's."""
    x = layers.convolution(x, weights[0], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return dense(weights[2:], pool(jax.nn.relu(x + weights[1][None, None, None])))


def mean_pool(x: jax.Array) -> jax.Array:
    """The means of all 2 by 2 squares of pixels, which don't overlap."""
    return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3]).mean((2, 4))


def network(name: str) -> tuple[Callable, list[tuple[int, ...]]]:
    """The function of the network of that name, and the shapes of its weights."""
    if name.startswith("dense"):
        widths = [784, *[HIDDEN] * int(name.removeprefix("dense")), 10]
        return dense, [shape for a, b in itertools.pairwise(widths) for shape in ((a, b), (b,))]
    pool = {"max": layers.max_pool, "mean": mean_pool}[name]
    return partial(pooled, pool), [(5, 5, 1, 8), (8,), (6 * 6 * 8, 64), (64,), (64, 10), (10,)]


def train(name: str, split: data.Split) -> Classifier:
    """The network of that name, trained on a split."""
    apply, shapes = network(name)
    keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
    fans = [np.prod(shape[:-1]) for shape in shapes[::2] for _ in range(2)]  # inputs of a unit, for weights and biases
    weights = [
        jax.random.uniform(key, shape, minval=-1, maxval=1) / fan**0.5
        for key, shape, fan in zip(keys, shapes, fans, strict=False)
    ]
    images = np.asarray(data.normalize(split.images))
    return Classifier(apply, descended(apply, weights, images, split.labels, keys[-1], epochs=EPOCHS, rate=RATE))


def asked(name: str, classifier: Classifier, split: data.Split) -> tuple[float, list[np.ndarray]]:
    """The accuracy of a network; and the images, labels and radii of its questions."""
    images, labels = np.asarray(data.normalize(split.images)), split.labels
    right = np.asarray(classifier(images)).argmax(1) == labels
    count, radii = QUESTIONS[name]
    images, labels = (np.concatenate([part[right][:count]] * len(radii)) for part in (images, labels))
    return float(right.mean()), [images, labels, np.repeat(np.array(radii, np.float32), count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    mnist = data.load()
    print("| network | accuracy | questions | certified | fooled | open | by CROWN: certified, fooled | seconds |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.networks:
        classifier = train(name, mnist.train)
        accuracy, given = asked(name, classifier, mnist.val)
        path = Path("runs") / f"questions-{name}.json"
        path.parent.mkdir(exist_ok=True)
        done: dict[str, Any] = {"certified": [], "fooled": [], "seconds": 0.0}
        if options.resume and path.exists():
            done = json.loads(path.read_text())
        for start in range(len(done["certified"]), len(given[0]), TOGETHER):
            some, began = [part[start : start + TOGETHER] for part in given], time.monotonic()
            result = certify.branch_and_bound(classifier, *some, seconds=options.seconds, search=thorough)
            for verdict in ("certified", "fooled"):
                done[verdict] += np.asarray(getattr(result, verdict)).tolist()
            done["seconds"] += time.monotonic() - began
            path.write_text(json.dumps(done))
            print(f"{name}: {len(done['certified'])} of {len(given[0])}", file=sys.stderr, flush=True)
        certified, fooled = (sum(done[verdict]) for verdict in ("certified", "fooled"))
        weaker = certify.crown(classifier, *given)
        by_crown = f"{int(weaker.certified.sum())}, {int(weaker.fooled.sum())}"
        count = len(given[0])
        row = (name, f"{accuracy:.2%}", count, certified, fooled, count - certified - fooled, by_crown)
        print("|", *(f"{part} |" for part in row), f"{done['seconds']:.0f} |", flush=True)


def thorough(classifier: Classifier, images: ArrayLike, labels: ArrayLike, radius: ArrayLike, *, norm: float) -> Any:
    """`nearest` at thorough effort, as `branch_and_bound` calls a search: it looks beyond the radius, too."""
    return attack.nearest(classifier, images, labels, norm=norm, effort="thorough")


if __name__ == "__main__":
    main()
