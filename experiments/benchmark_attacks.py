"""Compares attacks on the same images: those of this project, those of PyTorch libraries, and your own.

    python experiments/benchmark_attacks.py --networks MLP-original CNN-original --norms 2 inf --attacks ddn:100 fmn:100
        [--count 250] [--radius 0.1] [--peers PYTHON] [--counted 50] [--freeze] [--output runs/attacks]

Networks are checkpoints (names or paths) and state_dicts of the original project (ARCHITECTURE.npz). Images are the
first --count images of `val` that the network classifies correctly. An attack is `NAME` or `NAME:STEPS`, where NAME is
a function of `mnist_jax.attack` or, as in `mine.py:my_attack`, of a file. STEPS is the number of steps, for `square` of
queries, for `nearest` of gradients or an effort, as in `nearest:fast`. --peers also runs the attacks of the same names
and steps in adv-lib, torchattacks and foolbox, as far as that interpreter has these libraries. A fixed-radius attack
runs at --radius or, without it, in the dichotomy (those of the libraries only run with --radius). The column `forwards`
counts, for our attacks, evaluations that are not part of a gradient; for libraries, all of them.

Every attack runs twice: the first time compiles, and the second is timed. Then it runs on --counted images one by one
while every query is recorded (a forward or a backward pass; a Jacobian of C rows counts C), for the optimality of Cinà
et al., "AttackBench: Evaluating gradient-based attacks for adversarial examples", 2025:

    1 - (area - best area) / (clean accuracy * d_max - best area)

An area is that under the robust accuracy as a function of the distance, up to d_max, the largest of the best known
distances. The distance that an attack reaches is that of the nearest adversarial image among its first 2,000 queries.

Best known distances are stored in `experiments/best_distances`, with the fingerprint of the weights. A run with
--freeze adds a new version if it finds nearer images; existing versions are never changed. Results are kept in
--output, one file for each network and norm. A later run shows the earlier medians beside its own; --table, --figure
and --summary only show what is kept.
"""

import argparse
import hashlib
import importlib.util
import inspect
import io
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peers import Queries, distances

from mnist_jax import attack, data, device, plot
from mnist_jax.attack import AttackResult, methods
from mnist_jax.attack.minimal_norm.nearest import EFFORTS
from mnist_jax.classifier import Classifier
from mnist_jax.commands import console
from mnist_jax.errors import InputError, unknown
from mnist_jax.evaluation import predict
from mnist_jax.storage import checkpoint, files, pytorch

BEST = Path(__file__).with_name("best_distances")
BUDGET = 2000  # queries for each image that count for the optimality, as in AttackBench
SURE = 1e-5  # least margin, relative to the largest logit, by which a frozen image has to be misclassified
FORMAT = 1  # version of the result files

Attack = Callable[..., AttackResult]


class Scene(NamedTuple):
    """One network and norm, with the images to attack."""

    network: str
    trained: checkpoint.Checkpoint
    fingerprint: str  # SHA-256 of the weights
    norm: float
    radius: float | None  # for fixed-radius attacks; None runs them in the dichotomy
    indices: np.ndarray  # places of the images in val
    images: np.ndarray
    labels: np.ndarray

    @property
    def name(self) -> str:
        radius = "" if self.radius is None else f"-radius{self.radius:g}"
        return f"{self.network}-l{self.norm:g}{radius}"


class Row(NamedTuple):
    """The results of one attack."""

    distances: np.ndarray  # `[N]`, inf where it failed
    nearest: np.ndarray  # `[counted]`, the least distance among the first BUDGET queries, inf where none is adversarial
    gradients: float  # mean for an image
    forwards: float  # mean for an image
    seconds: float  # for all images, in the second run
    compile: float  # by how many seconds the first run took longer


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["MLP-original", "CNN-original"], metavar="NETWORK")
    parser.add_argument("--norms", nargs="+", type=float, default=[2.0], metavar="P")
    parser.add_argument("--attacks", nargs="+", default=[], metavar="NAME[:STEPS]")
    parser.add_argument("--count", type=console.number(int, 1), default=250, help="number of images")
    parser.add_argument("--counted", type=console.number(int, 0), default=50, help="images for the optimality")
    parser.add_argument("--radius", type=console.number(float, 0), help="radius of the fixed-radius attacks")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python interpreter that has PyTorch and attack libraries")
    parser.add_argument("--threads", type=console.number(int, 1), default=device.cores(), help="threads of PyTorch")
    parser.add_argument("--freeze", action="store_true", help="add a version of the best known distances")
    parser.add_argument("--table", action="store_true", help="only print the results of earlier runs")
    parser.add_argument("--figure", action="store_true", help="only draw the results of earlier runs")
    parser.add_argument("--summary", action="store_true", help="only show earlier results of --attacks, for all norms")
    parser.add_argument("--output", type=Path, default=Path("runs/attacks"))
    return parser.parse_args()


def load(name: str) -> tuple[str, checkpoint.Checkpoint]:
    if name.endswith(".npz"):
        return f"{Path(name).stem}-reference", pytorch.load(name, Path(name).stem)
    path = checkpoint.find(name)
    return path.stem, checkpoint.load(path)


def scene(name: str, norm: float, options: argparse.Namespace) -> Scene:
    title, trained = load(name)
    digest = hashlib.sha256()
    for key, array in sorted(trained.weights.items()):
        digest.update(key.encode() + np.asarray(array, np.float32).tobytes())
    split = data.load(trained.about.get("dataset", "mnist")).val
    few = min(len(split.labels), options.count + options.count // 4 + 100)
    images = np.asarray(data.normalize(split.images[:few]))
    indices = np.flatnonzero(logits_of(trained.classifier(), images).argmax(1) == split.labels[:few])[: options.count]
    labels = split.labels[indices].astype(np.int32)
    return Scene(title, trained, digest.hexdigest(), norm, options.radius, indices, images[indices], labels)


def logits_of(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """Logits `[N, C]`, computed in the highest precision of matrix products."""
    with jax.default_matmul_precision("highest"):
        return predict(classifier, images)


def attack_named(spec: str, at: Scene) -> Attack:
    """The attack `NAME[:STEPS]` or `FILE.py:NAME[:STEPS]` as a function of classifier, images and labels."""
    file, name, steps = None, *spec.partition(":")[::2]
    if name.endswith(".py"):
        file, (name, _, steps) = Path(name), steps.partition(":")
    function = from_file(file, name) if file else getattr(attack, name, None)
    ours = list(methods.METHODS)
    if function is None or (not file and name not in ours):
        raise unknown("attack", name, ours)
    takes = inspect.signature(function).parameters
    if steps and not steps.isdigit() and not ("effort" in takes and steps in EFFORTS):
        raise InputError(f"{spec}: what follows the attack must be its number of steps, as in ddn:100 or nearest:fast")
    counters = [c for c in ("steps", "queries", "effort") if c in takes]
    counters += ["steps"] if any(p.kind is p.VAR_KEYWORD for p in takes.values()) else []
    if steps and not counters:
        raise InputError(f"{name} has no steps; leave :{steps} out")
    options: dict[str, Any] = {"norm": at.norm}
    if steps:
        options[counters[0]] = int(steps) if steps.isdigit() else steps
    if "radius" not in takes:
        return partial(function, **options)
    if at.radius is None:
        return partial(attack.dichotomy, attack=function, **options)
    return lambda classifier, images, labels: function(classifier, images, labels, at.radius, **options)


def from_file(path: Path, name: str) -> Attack:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise InputError(f"{path} has no function {name}")
    return getattr(module, name)


def run_ours(spec: str, at: Scene, counted: int) -> tuple[Row, np.ndarray]:
    """The results of one of our attacks, and the images that it found. Raises `ValueError` for a norm it can't take."""
    classifier, function = at.trained.classifier(), attack_named(spec, at)
    jax.clear_caches()
    times = []
    for _ in range(2):
        began = time.perf_counter()
        result = jax.tree.map(np.asarray, function(classifier, at.images, at.labels))
        times.append(time.perf_counter() - began)
    found = judged(at, result.images, logits_of(classifier, result.images).argmax(1) != at.labels)
    used = (float(result.gradients.mean()), float(result.forwards.mean()))
    nearest = watched(function, at, counted)
    return Row(found, nearest, *used, times[1], max(times[0] - times[1], 0.0)), result.images


def judged(at: Scene, images: np.ndarray, fooled: np.ndarray) -> np.ndarray:
    """Distances `[N]`, recomputed from the images; inf where an image is not `fooled`, or outside box or radius."""
    found = distances(images, at.images, at.norm)
    allowed = fooled & ((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1)
    if at.radius is not None:
        allowed &= found <= at.radius * (1 + 1e-4)
    return np.where(allowed, found, np.inf)


def watched(function: Attack, at: Scene, counted: int) -> np.ndarray:
    """The least distance `[counted]` of an adversarial image among the first BUDGET queries, for the first images."""
    queries = Queries(BUDGET)
    classifier = Classifier(watch(at.trained.network.apply, queries), at.trained.weights)
    nearest = []
    # The first image twice: an attack checks a new classifier first, by queries that are no part of the attack.
    for i in [0, *range(counted)][: len(at.labels) + 1] if counted else []:
        one = slice(i, i + 1)
        queries.about(at.images[i], int(at.labels[i]), at.norm)
        jax.block_until_ready(function(classifier, at.images[one], at.labels[one]))
        jax.effects_barrier()
        nearest.append(queries.nearest)
    return np.array(nearest[1:])


def watch(apply: Callable, queries: Queries) -> Callable:
    """`apply`, which reports every image of a forward or backward pass to `queries`, inside any transformation."""

    def told(params, images):
        logits = apply(params, images)
        jax.debug.callback(queries.forward, images, logits)
        return logits

    def forward(params, images):
        logits, pull_back = jax.vjp(lambda images: apply(params, images), images)
        jax.debug.callback(queries.forward, images, logits)
        return logits, (pull_back, params)

    def backward(kept, cotangent):
        pull_back, params = kept
        jax.debug.callback(lambda rows: queries.backward(len(rows)), cotangent)
        return jax.tree.map(jnp.zeros_like, params), *pull_back(cotangent)

    counted = jax.custom_vjp(told)
    counted.defvjp(forward, backward)
    return counted


def run_peers(at: Scene, options: argparse.Namespace) -> tuple[dict[str, Row], dict[str, np.ndarray]]:
    """The results and images of the attacks of PyTorch libraries, run by the interpreter of --peers."""
    weights = pytorch.to_state_dict(at.trained.weights, at.trained.network)
    what = {
        "attacks": options.attacks,
        "norm": at.norm,
        "radius": at.radius,
        "threads": options.threads,
        "counted": options.counted,
        "budget": BUDGET,
    }
    arrays = {"images": at.images.transpose(0, 3, 1, 2), "labels": at.labels}
    arrays |= {f"weights/{name}": array for name, array in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.npz"), Path(folder, "answer.npz")
        np.savez(request, what=json.dumps(what), **arrays)  # type: ignore[arg-type]
        line = [options.peers, str(Path(__file__).with_name("peers.py")), str(request), str(answer)]
        try:
            subprocess.run(line, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"the peers did not run ({error}); is {options.peers} a Python with PyTorch?") from error
        with np.load(answer) as file:
            got = dict(file)
    said = json.loads(str(got["what"]))
    for name, why in said["failed"].items():
        console.note(f"{name} did not run: {why}")
    rows, images = {}, {}
    for name, numbers in said["attacks"].items():
        images[name] = got[f"{name}/images"].transpose(0, 2, 3, 1)
        found = judged(at, images[name], got[f"{name}/success"])
        rows[name] = Row(found, got[f"{name}/nearest"], compile=0.0, **numbers)
    return rows, images


def best_known(at: Scene) -> tuple[np.ndarray, int]:
    """The stored best known distances of these images `[N]`, inf where there are none; their version, 0 for none."""
    for path in sorted(BEST.glob(f"{at.network}-l{at.norm:g}-v*.npz"), key=version, reverse=True):
        with np.load(path) as file:
            if str(file["fingerprint"]) == at.fingerprint:
                known = dict(zip(file["indices"].tolist(), file["distances"].tolist(), strict=True))
                return np.array([known.get(i, np.inf) for i in at.indices.tolist()]), version(path)
    return np.full(len(at.indices), np.inf), 0


def version(path: Path) -> int:
    return int(path.stem.rpartition("-v")[2])


def freeze(at: Scene, images: dict[str, np.ndarray]) -> Path | None:
    """Writes a new version of the best known distances and returns its path, if any of these images is nearer."""
    known, last = best_known(at)
    best, classifier = known.copy(), at.trained.classifier()
    for found in images.values():
        logits = logits_of(classifier, found)
        own = logits[np.arange(len(logits)), at.labels]
        # More than rounding can undo, so that the distance holds on any machine.
        sure = logits.max(1) - own > SURE * np.abs(logits).max(1)
        best = np.minimum(best, judged(at, found, sure))
    if not (best < known * (1 - 1e-6)).any():  # distances are stored in single precision
        return None
    everything: dict[int, float] = dict(zip(at.indices.tolist(), best.tolist(), strict=True))
    if last:  # distances of images that are not part of this run are copied
        with np.load(BEST / f"{at.network}-l{at.norm:g}-v{last}.npz") as file:
            everything = dict(zip(file["indices"].tolist(), file["distances"].tolist(), strict=True)) | everything
    indices = np.array(sorted(everything))
    values = np.array([everything[i] for i in indices.tolist()], np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, indices=indices, distances=values, fingerprint=at.fingerprint, norm=at.norm)
    BEST.mkdir(exist_ok=True)
    taken = [version(path) for path in BEST.glob(f"{at.network}-l{at.norm:g}-v*.npz")]
    path = BEST / f"{at.network}-l{at.norm:g}-v{max(taken, default=0) + 1}.npz"
    with path.open("xb") as out:
        out.write(buffer.getvalue())
    return path


def optimality(nearest: np.ndarray, best: np.ndarray) -> float:
    """The optimality (see the top of the file) of an attack with the distances `nearest`, given the best known ones.

    All images are classified correctly, so that their clean accuracy is 1. The area under the robust accuracy up to
    d_max is the mean of the distances, clipped at d_max.
    """
    if not len(nearest) or not np.isfinite(best).any():
        return np.nan
    end = best[np.isfinite(best)].max()
    area, least = np.minimum(nearest, end).mean(), np.minimum(best, end).mean()
    return float(1 - (area - least) / (end - least)) if end > least else np.nan


def measures(rows: dict[str, Row], known: np.ndarray) -> dict[str, dict[str, float]]:
    """The numbers of the table for every attack; `known [N]` are the best distances of all attacks and versions."""
    result, best = {}, known.copy()
    for row in rows.values():
        best[: len(row.nearest)] = np.minimum(best[: len(row.nearest)], row.nearest)
    for name, row in rows.items():
        found = row.distances[np.isfinite(row.distances)]
        others = np.minimum.reduce([np.full(len(known), np.inf), *(r.distances for n, r in rows.items() if n != name)])
        with np.errstate(all="ignore"):
            ratios = [row.distances / np.where(np.isfinite(near), near, np.nan) for near in (known, others)]
        result[name] = {
            "success": float(np.isfinite(row.distances).mean()),
            "median": float(np.median(row.distances)),
            "mean": float(found.mean()) if len(found) else np.nan,
            "ratio to best": mean_of_finite(ratios[0]),
            "to others": mean_of_finite(ratios[1]),
            "optimality": optimality(row.nearest, best[: len(row.nearest)]),
            "gradients": row.gradients,
            "forwards": row.forwards,
            "seconds": row.seconds,
            "compile": row.compile,
        }
    return result


def mean_of_finite(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan


def table(title: str, now: dict[str, dict[str, float]], before: dict[str, dict[str, float]]) -> str:
    """A Markdown table of the attacks, by increasing median; `was` is the median of the last run, if it differs."""
    names = list(next(iter(now.values())))
    lines = [f"{title}", "", "| attack | " + " | ".join(names) + " | was |", "|:--" + "|--:" * (len(names) + 1) + "|"]
    for name, row in sorted(now.items(), key=lambda item: (item[1]["median"], -item[1]["success"])):
        cells = [f"{row[m]:.1%}" if m == "success" else "" if np.isnan(row[m]) else f"{row[m]:.4g}" for m in names]
        was = before.get(name, row)["median"]
        cells.append("" if was == row["median"] else f"{was:.4g}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen(rows: dict[str, dict[str, float]], asked: list[str]) -> dict[str, dict[str, float]]:
    """The attacks of --attacks, ours and the libraries' of the same names and steps; all where none are named."""
    return {name: row for name, row in rows.items() if not asked or name.rpartition("-")[0] in asked or name in asked}


def summary(network: str, found: dict[float, dict[str, dict[str, float]]]) -> str:
    """A Markdown table of a network's attacks in all norms: seconds, and the mean distance over the best known one,
    or the success rate where that is below 1. The nearest come first."""

    def cells(row: dict[str, float] | None) -> str:
        if row is None:
            return " | "
        near = f"{row['ratio to best']:.3f}" if row["success"] == 1 else f"fools {row['success']:.0%}"
        return f"{near} | {row['seconds']:.2g}"

    def rank(name: str) -> float:
        rows = [row[name] for row in found.values() if name in row]
        return sum(row["ratio to best"] if row["success"] == 1 else 1e3 for row in rows) / len(rows)

    names = sorted({name: rank(name) for rows in found.values() for name in rows}.items(), key=lambda item: item[1])
    lines = [f"| {network} |" + "".join(f" L{norm:g} | s |" for norm in found), "|:--|" + "--:|--:|" * len(found)]
    lines += [f"| {name} | " + " | ".join(cells(rows.get(name)) for rows in found.values()) + " |" for name, _ in names]
    return "\n".join(lines)


def save(path: Path, at: Scene, rows: dict[str, Row]) -> None:
    about = {
        "format": FORMAT,
        "fingerprint": at.fingerprint,
        "device": device.describe(),
        "rows": {name: row._asdict() | {"distances": None, "nearest": None} for name, row in rows.items()},
    }
    arrays = {
        f"{n}/{k}": getattr(row, k).astype(np.float32) for n, row in rows.items() for k in ("distances", "nearest")
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, about=json.dumps(about), indices=at.indices, **arrays)  # type: ignore[arg-type]
    files.write(path, buffer.getvalue())


def earlier(path: Path, at: Scene) -> dict[str, Row]:
    """The results of earlier runs on these images, from the file `path`."""
    if not path.exists():
        return {}
    try:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            same = about["fingerprint"] == at.fingerprint and np.array_equal(file["indices"], at.indices)
            arrays = {key: np.asarray(file[key], float) for key in file.files if "/" in key} if same else {}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is no file of results, or damaged ({error}); move it away") from error
    if about["format"] > FORMAT or not same:
        raise InputError(f"{path} is of other weights, images or a newer version; choose another --output")
    return {
        name: Row(**numbers | {key: arrays[f"{name}/{key}"] for key in ("distances", "nearest")})
        for name, numbers in about["rows"].items()
    }


def run(at: Scene, options: argparse.Namespace) -> tuple[dict[str, Row], dict[str, np.ndarray]]:
    rows, images = {}, {}
    for spec in options.attacks:
        console.note(f"{at.name}: {spec}")
        try:
            rows[spec], images[spec] = run_ours(spec, at, options.counted)
        except InputError:
            raise
        except ValueError as error:
            if not str(error).startswith("norm must be"):
                raise
            console.note(f"{spec} left out: {error}")
    if options.peers:
        theirs, found = run_peers(at, options)
        rows, images = rows | theirs, images | found
    return rows, images


def benchmark(name: str, norm: float, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Runs the attacks on one network in one norm; stores, prints, draws and returns their numbers, by attack."""
    at = scene(name, norm, options)
    path = options.output / f"{at.name}-{len(at.indices)}.npz"
    before = earlier(path, at)
    new, images = ({}, {}) if options.table or options.figure or options.summary else run(at, options)
    rows = before | new
    if not rows:
        raise InputError(f"there are no results in {path}; name some --attacks")
    if options.freeze and (written := freeze(at, images)):
        console.note(f"new best distances: {written}")
    frozen, which = best_known(at)
    known = np.minimum.reduce([frozen, *(row.distances for row in rows.values())])
    now = measures(rows, known)
    if new:
        save(path, at, rows)
    if new or options.table:
        best = f"best distances v{which}" if which else "best distances of these attacks"
        print(table(f"{at.name}, {len(at.indices)} images, {best}", now, measures(before, known)), flush=True)
    if new or options.figure:
        curves = {row: found.distances for row, found in rows.items()}
        files.write(path.with_suffix(".png"), plot.benchmark(now))
        files.write(path.with_name(path.stem + "-accuracy.png"), plot.accuracy_by_radius(curves, norm))
    return now


def main() -> None:
    options = parse()
    files.make_folder(options.output)
    for name in options.networks:
        found = {norm: benchmark(name, norm, options) for norm in options.norms}
        if options.summary:
            found = {norm: chosen(rows, options.attacks) for norm, rows in found.items()}
            print(summary(name, found), "\n")
            panels = {f"L{norm:g}": rows for norm, rows in found.items()}
            files.write(options.output / f"{name}.png", plot.distance_and_time(panels))


if __name__ == "__main__":
    console.run(lambda _: main())
