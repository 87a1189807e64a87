"""Tables of the largest certified radii, and of the distances of the nearest adversarial images found.

    python experiments/certify_table.py [--networks MLP CNN] [--recipes best original] [--norms inf 2 1]
        [--methods ibp crown alpha_crown] [--images 100] [--npz FOLDER] [--seconds 800] [--table]

For each network, norm and method: the largest certified radius of each of the first --images images of val that are
classified correctly; for the method `nearest`, the distance of the adversarial image that it finds. Results are saved
in experiments/certified.json after every few images, and images that are there are not done again: stopped at any time,
or by itself after --seconds, the script continues when it is started again. Times exclude compiling, as the first
images are searched twice.

With --lirpa FOLDER (a checkout of auto_LiRPA 0.7.1; needs PyTorch), the methods `lirpa-ibp`, `lirpa-crown-ibp`,
`lirpa-crown` and `lirpa-alpha_crown` are auto_LiRPA's bounds on the same images, with ten bisections of radii up to
--high.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mnist_jax import NETWORKS, attack, certify, data
from mnist_jax.certify.crown import AT_ONCE
from mnist_jax.classifier import Classifier
from mnist_jax.networks import ORIGINALS
from mnist_jax.storage import checkpoint, files, pytorch

KEPT = Path(__file__).with_name("certified.json")
PIECE = 100  # number of images between two saves
SLOWLY = 24  # the same for CROWN and alpha-CROWN on the CNNs, where each image takes seconds
LIRPA = {  # auto_LiRPA's names of its methods
    "lirpa-ibp": "IBP",
    "lirpa-crown-ibp": "CROWN-IBP",
    "lirpa-crown": "CROWN",
    "lirpa-alpha_crown": "CROWN-Optimized",
}
HALVINGS = 10  # bisections of the radius with auto_LiRPA's bounds

Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def network(name: str, recipe: str, npz: Path | None) -> Any:
    if npz:
        return pytorch.load(npz / f"{name}.npz", name)
    return checkpoint.load(checkpoint.shipped() / f"{name}-{recipe}.safetensors")


def first_correct(classifier: Classifier, count: int) -> tuple[np.ndarray, np.ndarray]:
    split = data.load().val
    images, labels = np.asarray(data.normalize(split.images[: count + 500])), split.labels[: count + 500]
    correct = np.flatnonzero(np.asarray(classifier(images).argmax(1)) == labels)[:count]
    return images[correct], labels[correct]


def ours(method: str, classifier: Classifier, norm: float) -> Search:
    if method == "nearest":
        return lambda images, labels: np.asarray(attack.nearest(classifier, images, labels, norm=norm).distance)
    bound = getattr(certify, method)
    return lambda images, labels: certify.largest_radius(classifier, images, labels, norm=norm, method=bound)


def in_pytorch(trained: Any, name: str) -> Any:
    """A trained network as a PyTorch module."""
    import torch
    import torch_networks

    module = torch_networks.network(name)
    state = pytorch.to_state_dict(trained.weights, trained.network)
    module.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    return module.eval()


def theirs(method: str, trained: Any, name: str, norm: float, options: argparse.Namespace) -> Search:
    """The search for the largest radii by auto_LiRPA's bounds, by bisections of all images at once."""
    sys.path.insert(0, str(options.lirpa))
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    height, width, channels = trained.network.shape
    classes = trained.network.classes
    bounded = BoundedModule(in_pytorch(trained, name), torch.zeros(1, channels, height, width), device="cpu")

    def certified(x: torch.Tensor, radius: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        r = radius.reshape(-1, 1, 1, 1)
        box = {"x_L": (x - r).clamp(0, 1), "x_U": (x + r).clamp(0, 1)} if norm == math.inf else {}
        eps = 0.0 if norm == math.inf else radius
        image = BoundedTensor(x, PerturbationLpNorm(norm=norm, eps=eps, **box))
        optimized = method == "lirpa-alpha_crown"
        with torch.set_grad_enabled(optimized):
            lower, _ = bounded.compute_bounds(x=(image,), method=LIRPA[method], C=c, bound_upper=False)
        return lower.detach().min(1).values > 0

    def search(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels.astype(np.int64))
        others = torch.stack([torch.tensor([j for j in range(classes) if j != label]) for label in y.tolist()])
        c = torch.eye(classes)[y][:, None] - torch.eye(classes)[others]
        low, high = torch.zeros(len(x)), torch.full((len(x),), options.high)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            proved = certified(x, middle, c)
            low, high = torch.where(proved, middle, low), torch.where(proved, high, middle)
        return low.numpy()

    return search


def work(key: dict[str, Any], search: Search, images: np.ndarray, labels: np.ndarray, until: float) -> None:
    """Adds images to one row of the table until the time `until`."""
    rows = kept()
    row = next((r for r in rows if r["key"] == key), None)
    if row is None:
        row = {"key": key, "radii": [], "seconds": 0.0}
        rows.append(row)
    slow = key["network"].startswith("CNN") and key["method"].endswith("crown")
    piece = SLOWLY if slow else PIECE
    warm = False
    for start in tqdm(
        range(len(row["radii"]), len(images), piece), desc=" ".join(map(str, key.values())), disable=None
    ):
        if time.monotonic() > until:
            return
        part = slice(start, start + piece)
        if not (warm or key["method"].startswith("lirpa")):
            first = slice(start, start + AT_ONCE) if slow else part
            search(images[first], labels[first])
            warm = True
        began = time.perf_counter()
        radii = search(images[part], labels[part])
        row["seconds"] += time.perf_counter() - began
        row["radii"] += [float(f"{r:.6g}") for r in radii]
        files.write(KEPT, json.dumps(rows, indent=0).encode())


def kept() -> list[dict[str, Any]]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else []


def table() -> str:
    """A table with a row for each network, norm and method: median and quartiles, and seconds for an image."""
    lines = ["| network | norm | method | images | median | quartiles | s/image |", "|:--|--:|:--|--:|--:|--:|--:|"]
    for row in kept():
        key, radii = row["key"], np.array(row["radii"])
        if not len(radii):
            continue
        low, middle, high = np.quantile(radii, [0.25, 0.5, 0.75])
        lines.append(
            f"| {key['network']} ({key['recipe']}) | {key['norm']} | {key['method']} | {len(radii)} | {middle:.4g} "
            f"| {low:.4g} to {high:.4g} | {row['seconds'] / len(radii):.3g} |"
        )
    return "\n".join(lines)


def pairs() -> str:
    """A table with a row for each network: the median radius certified by CROWN and distance found, by norm."""
    medians: dict[tuple[str, str], dict[tuple[str, str], tuple[float, int]]] = {}
    for row in kept():
        key = row["key"]
        if row["radii"] and key["recipe"] != "npz":
            cells = medians.setdefault((key["network"], key["recipe"]), {})
            cells[key["norm"], key["method"]] = float(np.median(row["radii"])), len(row["radii"])
    lines = ["| network | images | Linf: certified | found | L2: certified | found | L1: certified | found |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for (name, recipe), cells in medians.items():
        columns = [(norm, method) for norm in ("inf", "2", "1") for method in ("crown", "nearest")]
        shown = " | ".join(f"{cells[c][0]:.3g}" if c in cells else "" for c in columns)
        lines.append(f"| {name} ({recipe}) | {min(count for _, count in cells.values())} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(ORIGINALS), metavar="NAME")
    parser.add_argument("--recipes", nargs="+", default=["best", "original"])
    parser.add_argument("--norms", nargs="+", default=["inf", "2", "1"])
    parser.add_argument("--methods", nargs="+", default=["crown", "nearest"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument(
        "--npz",
        type=Path,
        metavar="FOLDER",
        help="use the PyTorch state_dicts in this folder instead of the shipped networks",
    )
    parser.add_argument("--lirpa", type=Path, metavar="FOLDER")
    parser.add_argument("--high", type=float, default=0.064, help="largest radius for auto_LiRPA's bisections")
    parser.add_argument("--seconds", type=float, default=800, help="start no further images after this time")
    parser.add_argument("--table", action="store_true", help="print the saved results, and compute nothing")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    for name in () if options.table else options.networks:
        for recipe in ["npz"] if options.npz else options.recipes:
            trained = network(name, recipe, options.npz)
            classifier = trained.classifier()
            images, labels = first_correct(classifier, options.images)
            for norm in options.norms:
                for method in options.methods:
                    key = {"network": name, "recipe": recipe, "norm": norm, "method": method}
                    p = float(norm)
                    search = theirs(method, trained, name, p, options) if options.lirpa else ours(method, classifier, p)
                    work(key, search, images, labels, until)
    print(table(), pairs(), sep="\n\n")


if __name__ == "__main__":
    main()
