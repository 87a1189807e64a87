"""Clean, robust and certified accuracies of the defended networks.

    python experiments/defended.py [--models NAME-DEFENSE-NORM-RADIUS ...] [--images 1000] [--alone 100]
        [--searched 20] [--search-seconds 20] [--surrogate CNN-best] [--seconds 800] [--table]

The columns of the table, for each network at the radius that it was trained to resist:

- clean: the accuracy on val;
- robust: the accuracy on the first --images images under several attacks, each on the images that the attacks before it
  did not fool; certified images are not attacked;
- certified, where the norm is inf: the accuracy on all of val that is proved by IBP, by CROWN on the first --crown
  images that IBP leaves open, or by branch and bound;
- open: the attacked images that are neither fooled nor certified, even by branch and bound, which takes at most
  --searched of them for --search-seconds each, if IBP or CROWN certify any image of the network;
- PGD, Square, transfer, `nearest`: the accuracy on the first --alone images under each of these attacks alone, transfer
  being adversarial images of the surrogate; masking: signs of masked gradients in them.

Results are saved in experiments/defended.json after every few images, and what is there is not computed again: stopped
at any time, or by itself after --seconds, the script continues when it is started again.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mnist_jax import Classifier, certify, data, losses, robustness
from mnist_jax.evaluation import accuracy, predict
from mnist_jax.storage import checkpoint, files

KEPT = Path(__file__).with_name("defended.json")
PIECE = 50  # number of images attacked between two saves
PROVED_AT_ONCE = 500  # number of images bounded by intervals between two saves
THOROUGH = 200  # number of first images that `nearest` attacks with effort "thorough"

# A letter for each image of val: certified by IBP, by CROWN, or by branch and bound; not certified by IBP, nor by CROWN
# either, nor by branch and bound either; or misclassified.
BY_IBP, BY_CROWN, BY_SEARCH, OPEN, STILL_OPEN, SEARCHED, WRONG = "icboOsw"
CERTIFIED, UNSETTLED = BY_IBP + BY_CROWN + BY_SEARCH, OPEN + STILL_OPEN + SEARCHED

Figures = dict[str, Any]  # results for a network, as in the file


def subjects(names: list[str]) -> Iterator[tuple[str, Path, float, float]]:
    """Name, file, norm and radius of the defended networks in `names`, or of all that are shipped."""
    paths = [checkpoint.find(name) for name in names] or sorted(checkpoint.shipped().glob("*.safetensors"))
    for path in paths:
        if defense := checkpoint.Name.parse(path.stem).defense:
            _, norm, radius = defense.split("-")
            yield path.stem, path, float(norm), float(radius)


class Kept:
    """The results for all networks, which the file holds."""

    def __init__(self) -> None:
        self.all: dict[str, Figures] = json.loads(KEPT.read_text()) if KEPT.exists() else {}

    def of(self, name: str) -> Figures:
        return self.all.setdefault(name, {"certified": "", "broken": {}, "clean": {}, "alone": {}})

    def save(self) -> None:
        files.write(KEPT, (json.dumps(self.all, indent=0, sort_keys=True) + "\n").encode())


def certify_all(kept: Kept, name: str, classifier: Classifier, radius: float, crown: int, until: float) -> None:
    """Certifies the images of val by IBP, and then at most `crown` of the open ones by CROWN, until a time."""
    figures, val = kept.of(name), data.load().val
    images = np.asarray(data.normalize(val.images))
    correct = np.asarray(losses.accuracy(predict(classifier, val.images), val.labels), bool)
    for start in tqdm(range(0, len(images), PROVED_AT_ONCE), desc=f"{name}, intervals", disable=None):
        places = np.arange(start, min(start + PROVED_AT_ONCE, len(images)))
        if time.monotonic() > until or start < len(figures["certified"]):
            continue
        proved = np.asarray(certify.ibp(classifier, images[places], val.labels[places], radius).certified)
        figures["certified"] += "".join(np.where(proved, BY_IBP, np.where(correct[places], OPEN, WRONG)))
        kept.save()
    tried = figures["certified"].count(BY_CROWN) + figures["certified"].count(STILL_OPEN)
    left = [i for i, what in enumerate(figures["certified"]) if what == OPEN][: max(crown - tried, 0)]
    for i in tqdm(left, desc=f"{name}, CROWN", disable=None):
        if time.monotonic() > until:
            return
        one = certify.crown(classifier, images[[i]], val.labels[[i]], radius)
        mark(figures, i, BY_CROWN if bool(one.certified[0]) else STILL_OPEN)
        kept.save()


def mark(figures: Figures, image: int, letter: str) -> None:
    """Sets the letter of an image of val."""
    letters = figures["certified"]
    figures["certified"] = letters[:image] + letter + letters[image + 1 :]


def unsettled_images(figures: Figures) -> list[int]:
    """Indices in val of the attacked images that are neither fooled nor certified."""
    standing = [int(i) for i, right in figures["clean"].items() if right and i not in figures["broken"]]
    return [i for i in sorted(standing) if figures["certified"] and figures["certified"][i] in UNSETTLED]


def search_some(
    kept: Kept, name: str, model: Classifier, radius: float, most: int, seconds: float, until: float
) -> None:
    """Runs branch and bound on open images, which certifies them or finds adversarial images, until a time."""
    figures, val = kept.of(name), data.load().val
    if not any(letter in CERTIFIED for letter in figures["certified"]):
        return
    left = [i for i in unsettled_images(figures) if figures["certified"][i] != SEARCHED]
    left = left[: max(most - sum(map(figures["certified"].count, BY_SEARCH + SEARCHED)), 0)]
    for i in tqdm(left, desc=f"{name}, branch and bound", disable=None):
        if time.monotonic() > until:
            return
        image, label = np.asarray(data.normalize(val.images[[i]])), val.labels[[i]]
        one = certify.branch_and_bound(model, image, label, radius, seconds=seconds)
        if bool(one.fooled[0]):
            figures["broken"][str(i)] = "branch_and_bound"
        mark(figures, i, BY_SEARCH if bool(one.certified[0]) else SEARCHED)
        kept.save()


def attack_some(
    kept: Kept, name: str, model: Classifier, norm: float, radius: float, options: argparse.Namespace, until: float
) -> None:
    """Attacks the first images of val, by all attacks in turn and by each alone, until a time."""
    figures, val = kept.of(name), data.load().val
    surrogate = checkpoint.load_classifier(options.surrogate)
    for start in tqdm(range(0, options.images, PIECE), desc=f"{name}, attacks", disable=None):
        places = np.arange(start, min(start + PIECE, options.images))
        if time.monotonic() > until or str(places[-1]) in figures["clean"]:
            continue
        images, labels = np.asarray(data.normalize(val.images[places])), val.labels[places]
        effort = "thorough" if start < THOROUGH else "standard"
        attacks = robustness.attempts(model, radius, norm=norm, surrogate=surrogate, effort=effort)
        attacks.pop("square")  # AutoAttack contains it
        known = figures["certified"][start : start + len(places)].ljust(len(places), OPEN)
        proved = np.array([letter in CERTIFIED for letter in known])
        result = robustness.robustness(model, images, labels, radius, attacks, norm=norm, certified=proved)
        by = {i: a for a, broken in result.broken.items() for i in places[broken].tolist()}
        figures["broken"] |= {str(i): attack for i, attack in by.items()}
        figures["clean"] |= {str(i): bool(c) for i, c in zip(places.tolist(), result.clean, strict=True)}
        kept.save()
    images, labels = np.asarray(data.normalize(val.images[: options.alone])), val.labels[: options.alone]
    attacks = robustness.attempts(model, radius, norm=norm, surrogate=surrogate)
    attacks.pop("auto_attack")
    for attack, attempt in attacks.items():
        if time.monotonic() < until and attack not in figures["alone"]:
            one = robustness.alone(model, images, labels, radius, {attack: attempt}, norm=norm)
            figures["alone"] |= one
            kept.save()


def row(name: str, figures: Figures, clean_accuracy: float) -> str:
    clean, broken, alone = figures["clean"], figures["broken"], figures["alone"]
    certified = figures["certified"]
    proved = sum(map(certified.count, CERTIFIED))
    unsettled = len(unsettled_images(figures))
    cells = [name, f"{clean_accuracy:.2%}"]
    cells.append(f"{(sum(clean.values()) - len(broken)) / len(clean):.1%} of {len(clean)}" if clean else "")
    cells.append(f"{proved / len(certified):.2%}" if certified else "")
    cells.append(f"{unsettled / len(clean):.1%}" if certified and clean else "")
    cells += [f"{alone[attack]:.0%}" if attack in alone else "" for attack in ("pgd", "square", "transfer", "nearest")]
    masked = robustness.masking(alone) if "pgd" in alone else []
    cells.append(f"masked ({', '.join(masked)})" if masked else "no sign" if len(alone) > 1 else "")
    return "| " + " | ".join(cells) + " |"


def table(kept: Kept, names: list[str]) -> str:
    head = ["network", "clean", "robust", "certified", "open", "PGD", "Square", "transfer", "`nearest`", "masking"]
    lines = ["| " + " | ".join(head) + " |", "|:--" + "|--:" * (len(head) - 2) + "|:--|"]
    for name, path, *_ in subjects(names):
        if name in kept.all:
            clean = accuracy(checkpoint.load(path).classifier(), data.load().val)
            lines.append(row(name, kept.of(name), clean))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--images", type=int, default=1000, help="number of images that are attacked")
    parser.add_argument("--alone", type=int, default=100, help="number of images for each attack alone")
    parser.add_argument("--crown", type=int, default=200, help="most images bounded by CROWN, for each network")
    parser.add_argument("--searched", type=int, default=20, help="most images for branch and bound, for each network")
    parser.add_argument("--search-seconds", type=float, default=20.0, help="time of branch and bound for an image")
    parser.add_argument("--surrogate", default="CNN-best", help="network whose adversarial images are transferred")
    parser.add_argument("--seconds", type=float, default=800.0)
    parser.add_argument("--table", action="store_true", help="print the saved results, and compute nothing")
    options = parser.parse_args()
    kept, until = Kept(), time.monotonic() + options.seconds
    for name, path, norm, radius in subjects([] if options.table else options.models):
        if options.table:
            continue
        classifier = checkpoint.load(path).classifier()
        if norm == np.inf:
            certify_all(kept, name, classifier, radius, options.crown, until)
        attack_some(kept, name, classifier, norm, radius, options, until)
        if norm == np.inf:
            search_some(kept, name, classifier, radius, options.searched, options.search_seconds, until)
    print(table(kept, options.models))


if __name__ == "__main__":
    main()
