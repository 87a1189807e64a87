"""Prints digests of every attack's results and of one epoch of training by every recipe, to detect changes of bits.

    python experiments/digests.py > before.txt
    python experiments/digests.py --against before.txt

A refactoring that changes no computation changes no line of the output on the same machine. With --against, only lines
that differ from those of an earlier run are shown, with both versions and the change of the mean distance; the exit
status is then 1 if there are any.

Every attack runs with few steps, in each of its norms, on the first images of `val`; on an MLP also towards targets,
from random starts. Its line has the digest of all arrays of the result, the share of successes and the mean distance of
these. The line of a training has the digest of its weights and statistics.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax import data, networks, training
from mnist_jax.attack import methods
from mnist_jax.commands import console
from mnist_jax.networks import NETWORKS, ORIGINALS
from mnist_jax.recipe import RECIPES
from mnist_jax.storage import checkpoint

NORMS = (0.0, 1.0, 2.0, 3.0, np.inf)
# The radius for each p, for attacks that take one. Chosen.
RADII = {1.0: 10.0, 2.0: 1.2, 3.0: 0.6, np.inf: 0.1}
# Settings of the attacks that have them, smaller than the defaults, to save time.
FEWER = {"steps": 20, "searches": 3, "queries": 200, "restarts": 2}
GROWTH = 1e-3  # relative increase of a mean distance above which the line is marked FARTHER


def digest(tree: Any) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of all arrays of a pytree."""
    digest = hashlib.sha256()
    for leaf in map(np.ascontiguousarray, jax.tree.leaves(tree)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()[:12]


def attacks(network: str, count: int, only: list[str] | None) -> Iterator[str]:
    """A line for every attack and norm."""
    classifier = checkpoint.load(checkpoint.find(network, Path("nowhere"))).classifier()
    split = data.load_split("val")
    images, labels = np.asarray(data.normalize(split.images[:count])), split.labels[:count]
    every: dict[str, dict[str, Any]] = {"": {}}
    if network.startswith("MLP"):
        every["-targets"] = {"targets": (labels + 1) % 10, "key": jax.random.key(3)}
    for method in only or methods.METHODS:
        jax.clear_caches()  # all compiled programs together would exceed Linux's limit of memory mappings
        known = methods.parameters(method)
        how = {name: value for name, value in FEWER.items() if name in known}
        for norm in NORMS:
            if methods.objection(method, norm):
                continue
            run = partial(methods.METHODS[method], classifier, images, labels, norm=norm)
            radius = {"radius": RADII[norm]} if "radius" in known else {}
            for name, more in every.items():
                result = jax.tree.map(np.asarray, run(**radius, **how, **more))
                found = result.distance[result.success]
                mean = float(found.mean(dtype=float)) if len(found) else np.nan
                yield f"{method}{name} l{norm:g} {network} {digest(result)} {result.success.mean():.4f} {mean:.7g}"


def trainings(names: list[str]) -> Iterator[str]:
    """A line for one epoch of every recipe of these networks."""
    for name in names:
        network = networks.by_name(name)
        train = data.Split(*map(jnp.asarray, data.load_split("train")))
        for recipe in RECIPES:
            how = network.recipe(recipe)
            state = training.start(network, how, jax.random.key(0), how.steps(len(train.labels)))
            for progress in training.epoch(network, how, train, state):
                state = progress.state
            kept = training.result(network, state, train)
            yield f"train {recipe} {name} {digest((kept, state._replace(key=jax.random.key_data(state.key))))}"


def compare(line: str, before: dict[str, str]) -> bool:
    """Whether the line is the same as before; if it is not, prints how it differs."""
    name = " ".join(line.split()[:3])
    was = before.get(name)
    if was == line:
        return True
    if was is None:
        print(f"new:     {line}")
        return False
    print(f"before:  {was}\nnow:     {line}")
    if len(line.split()) == 6 and float(was.split()[-1]):
        earlier, now = float(was.split()[-1]), float(line.split()[-1])
        loud = " FARTHER" if now > earlier * (1 + GROWTH) else ""
        print(f"         mean distance {100 * (now / earlier - 1):+.4f} %{loud}")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["MLP-original", "CNN-original"], metavar="NAME")
    parser.add_argument("--attacks", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--train", nargs="*", default=list(ORIGINALS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--against", type=Path, metavar="FILE", help="the output of an earlier run")
    options = parser.parse_args()
    console.start()
    before = {}
    if options.against:
        before = {" ".join(line.split()[:3]): line for line in options.against.read_text().splitlines()}
    same = True
    for network in options.networks:
        for line in attacks(network, options.images, options.attacks):
            if not options.against:
                print(line, flush=True)
            same &= not options.against or compare(line, before)
    for line in trainings(options.train):
        if not options.against:
            print(line, flush=True)
        same &= not options.against or compare(line, before)
    sys.exit(not same)


if __name__ == "__main__":
    main()
