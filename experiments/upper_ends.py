"""What attacks at a radius break, and `nearest` finds only farther away: whether its distances can be trusted.

    python experiments/upper_ends.py [--models CNN-trades-inf-0.3-best] [--radius 0.3] [--norm inf] [--images 50]
        [--attacks square auto_attack] [--efforts standard thorough] [--resume]

For each network the images are spread evenly over `val`. The attacks at a radius run on all of them, and so does
`nearest` at each effort. The table has, for each network and effort: the share of the images that the attacks leave
robust at the radius, and that `nearest` leaves robust; and of the images that an attack breaks, the share for which
`nearest` finds a distance above the radius, and above 1.005 times the radius. The images are worked off some at a time,
and what is done is kept in runs/upper-ends-MODEL-lP-RADIUS.json, with which `--resume` goes on. A model is a name or a
path.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mnist_jax import attack, data, load_classifier
from mnist_jax.geometry import INF

TOGETHER = 8  # images
ROUNDING = 1 + 1e-5  # relative: distances are single precision
CLOSE = 1.005  # times the radius is the second limit


def distances(classifier, images, labels, options: argparse.Namespace) -> dict[str, list[float]]:
    """The distances that each attack and each effort of `nearest` finds, inf where it fails."""
    found = {}
    for name in options.attacks:
        found[name] = getattr(attack, name)(classifier, images, labels, options.radius, norm=options.norm).distance
    for effort in options.efforts:
        found[effort] = attack.nearest(classifier, images, labels, norm=options.norm, effort=effort).distance
    return {name: np.asarray(distance, float).tolist() for name, distance in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["CNN-trades-inf-0.3-best"])
    parser.add_argument("--radius", type=float, default=0.3)
    parser.add_argument("--norm", type=float, default=INF)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--attacks", nargs="+", default=["square", "auto_attack"])
    parser.add_argument("--efforts", nargs="+", default=["standard", "thorough"])
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    val = data.load().val
    places = np.arange(options.images) * (len(val.labels) // options.images)
    images, labels = np.asarray(data.normalize(val.images[places])), val.labels[places]
    rows = []
    for model in options.models:
        classifier, short = load_classifier(model), Path(model).name.removesuffix(".safetensors")
        path = Path("runs") / f"upper-ends-{short}-l{options.norm:g}-{options.radius:g}.json"
        path.parent.mkdir(exist_ok=True)
        done: dict[str, list[float]] = {name: [] for name in (*options.attacks, *options.efforts)}
        if options.resume and path.exists():
            done = json.loads(path.read_text())
        for start in range(len(next(iter(done.values()))), len(images), TOGETHER):
            some = slice(start, start + TOGETHER)
            for name, found in distances(classifier, images[some], labels[some], options).items():
                done[name] += found
            path.write_text(json.dumps(done))
            print(f"{model}: {len(done[options.efforts[0]])} of {len(images)} images", flush=True)
        limit = options.radius * ROUNDING
        broken = np.min([done[name] for name in options.attacks], axis=0) <= limit
        for effort in options.efforts:
            nearest = np.array(done[effort])
            farther = [(nearest[broken] > limit * times).sum() / max(broken.sum(), 1) for times in (1, CLOSE)]
            cells = (1 - broken.mean(), (nearest > limit).mean(), *farther)
            rows.append(f"| {short} | {effort} | " + " | ".join(f"{share:.1%}" for share in cells) + " |")
    print(f"| network | effort | robust: {', '.join(options.attacks)} | `nearest` | broken, found farther | by 0.5 % |")
    print("|:--|:--|--:|--:|--:|--:|", *rows, sep="\n")


if __name__ == "__main__":
    main()
