"""The table of accuracies: the original project's networks by both recipes, over several seeds, beside its own figures.

    python experiments/accuracy_table.py [--recipes original best] [--networks CNN ...] [--seeds 5]

Each training is a run of `python -m mnist_jax.train`. Results that are in --output are not computed again, so that an
interrupted table can be continued. On 2 cores all of it takes about two hours.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mnist_jax import plot
from mnist_jax.storage import files

# Accuracies in percent on train, test and val, from the README of the original project.
ORIGINAL = {
    "MLP": (98.70, 97.05, 96.92),
    "MLP_d": (95.76, 96.15, 95.58),
    "MLP_bn": (99.54, 97.99, 97.77),
    "CNN": (99.62, 98.95, 99.05),
    "CNN_d": (99.00, 98.78, 98.99),
    "CNN_bn": (99.93, 99.22, 99.20),
}
SPLITS = ("train", "test", "val")
SEEDS = {"original": 5, "best": 3}  # number of seeds of each recipe


def path(network: str, recipe: str, seed: int, output: Path) -> Path:
    return output / f"seed-{seed}" / f"{network}-{recipe}.json"


def trained(network: str, recipe: str, seed: int, output: Path) -> dict:
    """The result of one training, from --output if it is there, else trained now."""
    result = path(network, recipe, seed, output)
    if not result.exists():
        folder = result.parent
        arguments = ["--model", network, "--recipe", recipe, "--seed", str(seed), "--output", str(folder), "--json"]
        interrupted = folder / f"{network}-{recipe}.state"
        arguments += ["--resume"] if interrupted.is_dir() else []
        command = [sys.executable, "-m", "mnist_jax.train", *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result.write_text(done.stdout)
    return json.loads(result.read_text())


def statistics(results: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation, over the seeds, of the accuracies on the three splits, in percent."""
    percent = 100 * np.array([[result["accuracies"][split] for split in SPLITS] for result in results])
    return percent.mean(0), percent.std(0, ddof=1) if len(results) > 1 else np.zeros(3)


def table(results: dict[tuple[str, str], list[dict]], networks: list[str]) -> str:
    lines = [
        "| network | recipe | seeds | train | test | val | val error | seconds |",
        "|:--|:--|--:" + "|--:" * 5 + "|",
    ]
    for network in networks:
        train, test, val = (f"{accuracy:.2f}" for accuracy in ORIGINAL[network])
        lines.append(f"| **{network}** | original project | 1 | {train} | {test} | {val} | {100 - float(val):.2f} | |")
        for (name, recipe), runs in results.items():
            if name == network:
                mean, spread = statistics(runs)
                cells = [f"{m:.2f}" + f" ± {s:.2f}" * (len(runs) > 1) for m, s in zip(mean, spread, strict=True)]
                seconds = np.median([run["history"][-1]["seconds"] for run in runs])
                cells += [f"{100 - mean[2]:.2f}", f"{seconds:.0f}"]
                lines.append(f"| | `{recipe}` | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(results: dict[tuple[str, str], list[dict]], networks: list[str]) -> bytes:
    rows = []
    for network in networks:
        errors = {"original project": (100 - ORIGINAL[network][2], 0.0)}
        for (name, recipe), runs in results.items():
            if name == network:
                mean, spread = statistics(runs)
                errors[f"recipe {recipe}"] = (100 - mean[2], spread[2])
        rows.append({"network": network, "errors": errors})
    return plot.errors(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["original", "best"], choices=SEEDS)
    parser.add_argument("--networks", nargs="+", default=list(ORIGINAL), choices=ORIGINAL)
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: 5 for original, 3 for best)")
    parser.add_argument("--done", action="store_true", help="only what is in --output already")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy_table"))
    parser.add_argument("--figure", type=Path, help="draw the val errors too, as this PNG")
    options = parser.parse_args()

    jobs = [
        (network, recipe, seed)
        for recipe in options.recipes
        for network in options.networks
        for seed in range(options.seeds or SEEDS[recipe])
        if not options.done or path(network, recipe, seed, options.output).exists()
    ]
    results: dict[tuple[str, str], list[dict]] = {}
    for network, recipe, seed in tqdm(jobs, desc="trainings", disable=None):
        results.setdefault((network, recipe), []).append(trained(network, recipe, seed, options.output))
    print(table(results, options.networks))
    if options.figure:
        files.write(options.figure, figure(results, options.networks))


if __name__ == "__main__":
    main()
