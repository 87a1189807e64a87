"""Measures the seconds until the CNN first has 99 % accuracy on `test`, with an empty and a full compilation cache.

    python experiments/time_to_accuracy.py [--accuracy 0.99] [--repeats 3]

Both are measured in new processes ("cold" with the empty cache, "warm" with the full one). Two times are printed: of
the training, from the compilation of the first step to the end of the epoch that reaches the accuracy, including the
evaluations on `test`; and of the whole command.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time


def train(options: argparse.Namespace, seed: int, cache: str) -> tuple[float, float, int]:
    """Runs a training; returns its seconds up to the accuracy, the seconds of the command, and the epochs needed."""
    arguments = ["--model", options.model, "--recipe", "best", "--epochs", str(options.epochs), "--seed", str(seed)]
    arguments += ["--learning-rate", str(options.learning_rate), "--no-save", "--json"]
    command = [sys.executable, "-m", "mnist_jax.train", *arguments]
    began = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    whole = time.perf_counter() - began
    for record in json.loads(done.stdout)["history"]:
        if record["test_accuracy"] >= options.accuracy:
            return record["seconds"], whole, record["epoch"]
    return float("nan"), whole, options.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="CNN")
    parser.add_argument("--accuracy", type=float, default=0.99)
    parser.add_argument("--epochs", type=int, default=2, help="of the recipe's schedule, which is as short as that")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="large, as the schedule is short")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    print(
        f"{options.model} to {options.accuracy:.1%} on test, recipe best in {options.epochs} epochs "
        f"at {options.learning_rate:g}, median of {options.repeats}:"
    )
    runs: dict[str, list[tuple[float, float, int]]] = {"cold": [], "warm": []}
    for seed in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for start in runs:
                runs[start].append(train(options, seed, cache))
    for start, results in runs.items():
        training, whole, epochs = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"  {start}: {training:5.1f} s of training ({epochs:g} epochs), {whole:5.1f} s for the whole command")


if __name__ == "__main__":
    main()
