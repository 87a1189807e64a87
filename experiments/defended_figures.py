"""Draws the figures of defended networks, on the first images of `val`.

    python experiments/defended_figures.py [--models CNN-best CNN5_bn-ibp-inf-0.3 ...] [--images 100] [--digit 4]
        [--output docs/images]

- defended.png: robust accuracy under the attack `nearest`, and accuracy certified by IBP, against the radius;
- same_digit.png: the nearest adversarial image of one digit on each of the networks;
- filters.png: the filters of the networks' first layers.

The distances and radii are saved in experiments/defended_curves.json, and those that are there are not computed again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mnist_jax import attack, certify, data, plot
from mnist_jax.classifier import Classifier
from mnist_jax.storage import checkpoint, files

KEPT = Path(__file__).with_name("defended_curves.json")


def curves(classifier: Classifier, norm: float, count: int) -> dict[str, list[float]]:
    """The largest radii certified by IBP, and the distances found by `nearest`, of the first `count` images of val."""
    val = data.load().val
    images, labels = np.asarray(data.normalize(val.images[:count])), val.labels[:count]
    found = attack.nearest(classifier, images, labels, norm=norm)
    radii = certify.largest_radius(classifier, images, labels, norm=norm, method=certify.ibp)
    return {"radii": np.asarray(radii, float).tolist(), "distances": np.asarray(found.distance, float).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["CNN-best", "CNN5_bn-ibp-inf-0.3-best"], metavar="NAME")
    parser.add_argument("--norm", type=float, default=np.inf)
    parser.add_argument("--mark", type=float, default=0.3, help="radius that is marked in defended.png")
    parser.add_argument("--limit", type=float, default=0.45, help="largest radius shown in defended.png")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--digit", type=int, default=4, help="index in val of the image in same_digit.png")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    image = np.asarray(data.normalize(data.load().val.images[[options.digit]]))
    label = data.load().val.labels[[options.digit]]
    shown, found, kernels = {}, {}, {}
    for model in options.models:
        trained = checkpoint.load(checkpoint.find(model))
        classifier, name = trained.classifier(), model.removesuffix("-best")
        key = f"{model} l{options.norm:g} {options.images}"
        if key not in kept:
            kept[key] = curves(classifier, options.norm, options.images)
            files.write(KEPT, (json.dumps(kept, indent=0, sort_keys=True) + "\n").encode())
        shown[name] = (np.array(kept[key]["radii"]), np.array(kept[key]["distances"]))
        one = attack.nearest(classifier, image, label, norm=options.norm)
        prediction = int(np.asarray(classifier(one.images)).argmax(1)[0])
        found[name] = (np.asarray(one.images)[0], str(prediction), float(one.distance[0]))
        if "features.0.kernel" in trained.weights:
            kernels[name] = np.asarray(trained.weights["features.0.kernel"])
    files.make_folder(options.output)
    drawn = plot.defended(shown, options.norm, options.limit, mark=options.mark)
    files.write(options.output / "defended.png", drawn)
    files.write(options.output / "same_digit.png", plot.compared(image[0], found, options.norm))
    if kernels:
        files.write(options.output / "filters.png", plot.filters(kernels))


if __name__ == "__main__":
    main()
