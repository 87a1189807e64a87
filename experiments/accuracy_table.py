"""The README's accuracy table: every network, by both recipes, over several seeds, beside the original project's.

    python experiments/accuracy_table.py [--recipes original best] [--networks CNN ...] [--seeds 5]

Each training is `python -m mnist_jax.train`, and what is already in --output is not trained again, so an interrupted
table goes on where it stopped. On 2 cores the whole of it takes about two hours.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

# train, test and val accuracy in the README of the original project, in percent.
ORIGINAL = {
    "MLP": (98.70, 97.05, 96.92),
    "MLP_d": (95.76, 96.15, 95.58),
    "MLP_bn": (99.54, 97.99, 97.77),
    "CNN": (99.62, 98.95, 99.05),
    "CNN_d": (99.00, 98.78, 98.99),
    "CNN_bn": (99.93, 99.22, 99.20),
}
SPLITS = ("train", "test", "val")
SEEDS = {"original": 5, "best": 3}


def trained(network: str, recipe: str, seed: int, output: Path) -> dict:
    """The result of one training: read if it is there, else made."""
    folder = output / f"seed-{seed}"
    result = folder / f"{network}-{recipe}.json"
    if not result.exists():
        arguments = ["--model", network, "--recipe", recipe, "--seed", str(seed), "--output", str(folder), "--json"]
        interrupted = folder / f"{network}-{recipe}.state"
        arguments += ["--resume"] if interrupted.is_dir() else []
        command = [sys.executable, "-m", "mnist_jax.train", *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result.write_text(done.stdout)
    return json.loads(result.read_text())


def row(network: str, recipe: str, results: list[dict]) -> str:
    """Mean and sample standard deviation over the seeds, in percent."""
    percent = 100 * np.array([[result["accuracies"][split] for split in SPLITS] for result in results])
    mean, spread = percent.mean(0), percent.std(0, ddof=1) if len(results) > 1 else np.full(3, np.nan)
    cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, spread, strict=True)]
    seconds = np.median([result["history"][-1]["seconds"] for result in results])
    return f"| {network} | {recipe} | {len(results)} | " + " | ".join(cells) + f" | {seconds:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["original", "best"], choices=SEEDS)
    parser.add_argument("--networks", nargs="+", default=list(ORIGINAL), choices=ORIGINAL)
    parser.add_argument("--seeds", type=int, help="how many, from 0 (default: 5 for original, 3 for best)")
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy_table"))
    options = parser.parse_args()

    jobs = [
        (network, recipe, seed)
        for recipe in options.recipes
        for network in options.networks
        for seed in range(options.seeds or SEEDS[recipe])
    ]
    results: dict[tuple[str, str], list[dict]] = {}
    for network, recipe, seed in tqdm(jobs, desc="trainings", disable=None):
        results.setdefault((network, recipe), []).append(trained(network, recipe, seed, options.output))

    print("| network | recipe | seeds | train | test | val | time |")
    print("|:--|:--|--:|--:|--:|--:|--:|")
    for network in options.networks:
        print(f"| {network} | original project | 1 | " + " | ".join(f"{a:.2f}" for a in ORIGINAL[network]) + " | |")
        for recipe in options.recipes:
            print(row(network, recipe, results[network, recipe]))


if __name__ == "__main__":
    main()
