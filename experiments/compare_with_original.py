"""Compares the original project's two attacks, one image at a time in PyTorch, with this project's on the same images.

    python experiments/compare_with_original.py --networks MLP CNN [--images 1000] [--original 10] [--npz FOLDER]

Both run in this process, on the first images of `val` that the network classifies correctly: the original's methods on
the first --original of them, ours on --images images at once, twice, as the first time compiles. Networks are the
shipped ones of recipe `original` or, with --npz, state_dicts of the original project in FOLDER/NAME.npz. Needs PyTorch
(`pip install torch`).

The original's loss is the softmax confidence of the label. Its dichotomy bisects the norm in [0, 4] down to 0.001, each
time with up to 1000 steps of Adam on a perturbation that is scaled to the norm and then clipped. Its automatic attack
makes 500 steps on the confidence where that is above 0.2, on confidence plus norm down to 0.1, and on the norm below.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

try:
    import torch
except ImportError as error:
    raise SystemExit("the original's attacks need PyTorch: pip install torch") from error
from peers import network
from tqdm import tqdm

from mnist_jax import attack, data
from mnist_jax.networks import NETWORKS, ORIGINALS
from mnist_jax.storage import checkpoint, pytorch

Model = Callable[["torch.Tensor"], "torch.Tensor"]


def original(trained: checkpoint.Checkpoint) -> Model:
    """The network in PyTorch, in evaluation mode: images `[B, 1, 28, 28]` to probabilities."""
    logits = network(pytorch.to_state_dict(trained.weights, trained.network))
    return lambda images: logits(images).softmax(1)


def fixed_norm(model: Model, image: torch.Tensor, label: int, radius: float, p: float) -> torch.Tensor | None:
    """The original project's method A at one radius: the first adversarial image, or None after 1000 steps."""
    r = torch.zeros_like(image, requires_grad=True)
    adam = torch.optim.Adam([r], lr=0.005)
    for _ in range(1000):
        adam.zero_grad()
        model((image + radius * r / (r.norm(p) + 1e-5)).clamp(0, 1))[0, label].backward()
        adam.step()
        with torch.no_grad():
            adversarial = (image + radius * r / (r.norm(p) + 1e-5)).clamp(0, 1)
            if model(adversarial).argmax() != label:
                return adversarial
    return None


def original_dichotomy(model: Model, image: torch.Tensor, label: int, p: float) -> torch.Tensor:
    low, high, best = 0.0, 4.0, image
    while high - low >= 1e-3:
        middle = (low + high) / 2
        found = fixed_norm(model, image, label, middle, p)
        low, high, best = (middle, high, best) if found is None else (low, middle, found)
    return best


def original_automatic(model: Model, image: torch.Tensor, label: int, p: float) -> torch.Tensor:
    r = torch.zeros_like(image, requires_grad=True)
    adam = torch.optim.Adam([r], lr=1e-3)
    for _ in range(500):
        adversarial = (image + r).clamp(0, 1)
        confidence, norm = model(adversarial)[0, label], (adversarial - image).norm(p)
        loss = confidence if confidence > 0.2 else confidence + norm if confidence > 0.1 else norm
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (image + r).clamp(0, 1).detach()


def run_original(method: Callable, model: Model, images: np.ndarray, labels: np.ndarray, p: float) -> dict:
    """The distances that an attack of the original finds, inf where it fails, and the seconds for one image."""
    distances, began = [], time.perf_counter()
    for image, label in tqdm(list(zip(images, labels, strict=True)), desc=method.__name__, disable=None):
        x = torch.tensor(image.transpose(2, 0, 1)[None])
        found = method(model, x, int(label), p)
        with torch.no_grad():
            success = int(model(found).argmax()) != label
        distances.append(float((found - x).norm(p)) if success else np.inf)
    return {"distances": np.array(distances), "seconds": (time.perf_counter() - began) / max(len(images), 1)}


def run_ours(method: Callable, images: np.ndarray, labels: np.ndarray) -> dict:
    times = []
    for _ in range(2):
        began = time.perf_counter()
        result = method(images, labels)
        distances = np.asarray(result.distance)
        times.append(time.perf_counter() - began)
    gradients = float(np.mean(result.gradients))
    return {"distances": distances, "first": times[0], "seconds": times[1] / len(images), "gradients": gradients}


def compare(name: str, options: argparse.Namespace, split: data.Split) -> list[dict]:
    if options.npz:
        trained = pytorch.load(options.npz / f"{name}.npz", name)
    else:
        trained = checkpoint.load(checkpoint.shipped() / f"{name}-original.safetensors")
    classifier, model = trained.classifier(), original(trained)
    images = np.asarray(data.normalize(split.images[: options.images + 500]))
    labels = split.labels[: len(images)]
    correct = np.flatnonzero(np.asarray(classifier(images).argmax(1)) == labels)[: options.images]
    images, labels = images[correct], labels[correct]
    few = slice(0, options.original)
    dichotomy = partial(attack.dichotomy, classifier, norm=options.norm, high=4.0)
    originals = {
        method: run_original(method, model, images[few], labels[few], options.norm)
        for method in (original_dichotomy, original_automatic)
    }
    rows = []
    for title, theirs, ours in (
        ("dichotomy", original_dichotomy, dichotomy),
        ("dichotomy, only bisected", original_dichotomy, partial(dichotomy, search_first=False)),
        ("automatic", original_automatic, partial(attack.automatic, classifier, norm=options.norm)),
    ):
        a, b = originals[theirs], run_ours(ours, images, labels)
        fooled = np.isfinite(a["distances"])
        ratio = b["distances"][few][fooled] / a["distances"][fooled]
        rows.append(
            {
                "network": name,
                "method": title,
                "original success": float(fooled.mean()) if len(fooled) else None,
                "original seconds": a["seconds"],
                "success": float(np.isfinite(b["distances"]).mean()),
                "median": float(np.median(b["distances"])),
                "seconds": b["seconds"],
                "first call": b["first"],
                "gradients": b["gradients"],
                "times faster": a["seconds"] / b["seconds"],
                "ratio mean": float(ratio.mean()) if len(ratio) else None,
                "ratio max": float(ratio.max()) if len(ratio) else None,
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        "| network | method | original: success | s/image | ours: success | median | ms/image | times faster "
        "| our distance / original's, mean | max |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        theirs = f"{r['original success']:.0%} | {r['original seconds']:.2f}"
        ours = f"{r['success']:.1%} | {r['median']:.3f} | {1e3 * r['seconds']:.2f} | {r['times faster']:.0f}"
        ratios = " | ".join("" if r[k] is None else f"{r[k]:.3f}" for k in ("ratio mean", "ratio max"))
        lines.append(f"| {r['network']} | {r['method']} | {theirs} | {ours} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(ORIGINALS), metavar="NAME")
    parser.add_argument("--norm", type=float, default=2.0)
    parser.add_argument("--images", type=int, default=1000, help="number of images for our attacks")
    parser.add_argument("--original", type=int, default=10, help="images for the original's methods, about 20 s each")
    parser.add_argument("--npz", type=Path, metavar="FOLDER", help="use the state_dicts in this folder instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    options = parser.parse_args()
    split, rows = data.load().val, []
    for name in options.networks:
        rows += compare(name, options, split)
        print(table(rows[-3:]), flush=True)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
