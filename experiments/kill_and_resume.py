"""Kills trainings and attacks, resumes them, and compares the results with those of an uninterrupted run, bit by bit.

    python experiments/kill_and_resume.py [--kills 30] [--seed 0] [--only train]

Each trial starts the command in an empty folder, kills it (SIGKILL) at a random moment, and resumes it by --resume.
Half of the moments are drawn uniformly between the beginning and the end of the work; the other half are right after a
file has appeared in the folder or disappeared, when a save may be incomplete. In the end the folder must hold the same
files as after an uninterrupted run, with the same bits, and no others. The table counts the outcomes of the trials; the
exit status is 1 if anything differed.
"""

import argparse
import collections
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mnist_jax import data

IMAGES = {"train": 960, "t10k": 320}  # images in the two files; of the first, 800 become the split `train`
COMMANDS = {
    "train": ["--model", "MLP_bn", "--recipe", "best", "--epochs", "40", "--batch-size", "50"],
    "attack": ["--model", "MLP-original", "--method", "ddn", "--steps", "1000"],
}
RESULTS = {"train": "MLP_bn-best.safetensors", "attack": "MLP-original-ddn-l2-val.npz"}
# The commands save every few seconds; here they save more often, so that more kills fall into a save.
OFTEN = "mnist_jax.commands.{0}.SECONDS_BETWEEN_SAVES = 0.1"
BEGINS = {"train": "training ", "attack": "attacking "}  # first words of the line that says that the work begins
JITTER = 0.005  # seconds at most between a change in the folder and the kill


def write_images(folder: Path) -> None:
    """The first images of MNIST as IDX files."""
    dataset = data.load()
    for name, split in (("train", dataset.train), ("t10k", dataset.val)):
        images, labels = split.images[: IMAGES[name], :, :, 0], split.labels[: IMAGES[name]].astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())


class Command:
    """One of `COMMANDS`, on the images in a folder."""

    def __init__(self, name: str, images: Path) -> None:
        self.name = name
        module = {"train": "train", "attack": "job"}[name]
        program = f"import mnist_jax.commands.{name}; {OFTEN.format(module)}; "
        program += "from mnist_jax.commands import console; "
        if name == "attack":  # fewer images between two saves, so that a killed attack has saved some
            program += "mnist_jax.commands.job.CHUNKS_AT_ONCE = 1; "
        program += f"console.run(mnist_jax.commands.{name}.main)"
        self.line = [sys.executable, "-c", program, *COMMANDS[name], "--data-dir", str(images)]

    def start(self, folder: Path, *more: str) -> subprocess.Popen[str]:
        """Starts the command with its results in that folder, and with more options."""
        line = [*self.line, "--output", str(folder), *more]
        return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, folder: Path, *more: str) -> tuple[int, str]:
        """Runs the command to its end; returns its exit status, and what it printed on stderr."""
        process = self.start(folder, *more)
        assert process.stderr is not None
        text = process.stderr.read()
        return process.wait(), text

    def wait_for_work(self, process: subprocess.Popen[str]) -> float:
        """Reads the process's stderr up to the line that says that the work begins; returns the time."""
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(BEGINS[self.name]):
                break
        return time.monotonic()


def names(folder: Path) -> list[str]:
    """The paths of all files and folders in a folder."""
    return sorted(os.path.join(at, name) for at, below, files in os.walk(folder) for name in [*below, *files])


def kill_at_change(process: subprocess.Popen[str], folder: Path, number: int, wait: float) -> bool:
    """Kills the process `wait` seconds after change `number` (from 0) in the folder; returns whether it still ran."""
    before = names(folder)
    while process.poll() is None:
        now = names(folder)
        if now != before:
            before, number = now, number - 1
            if number < 0:
                time.sleep(wait)
                break
    return kill(process)


def kill(process: subprocess.Popen[str]) -> bool:
    """Kills the process; returns whether it still ran."""
    ran = process.poll() is None
    process.kill()
    process.communicate()
    return ran


def changes(command: Command, folder: Path) -> tuple[float, int]:
    """The seconds that an uninterrupted run works, and the number of changes in its folder."""
    process = command.start(folder)
    began, count, before = command.wait_for_work(process), 0, names(folder)
    while process.poll() is None:
        now = names(folder)
        count, before = count + (now != before), now
    process.communicate()
    return time.monotonic() - began, count


def trial(command: Command, folder: Path, whole: Path, chance: random.Random, seconds: float, count: int) -> str:
    """Kills the command once and resumes it; returns the outcome, or "" if it ended before it could be killed."""
    process = command.start(folder)
    if chance.random() < 0.5:
        command.wait_for_work(process)
        wait = chance.uniform(0, seconds)
        time.sleep(wait)
        ran = kill(process)
    else:
        command.wait_for_work(process)
        ran = kill_at_change(process, folder, chance.randrange(count), chance.uniform(0, JITTER))
    if not ran:
        return ""
    result, outcome = RESULTS[command.name], "went on"
    there = (folder / result).exists()
    status, text = command.finish(folder, "--resume")
    if status == 2 and "nothing to resume" in text:
        outcome = "had nothing left to do" if there else "had kept nothing yet, began anew"
        status, text = (0, "") if there else command.finish(folder)
    if status:
        return f"FAILED: {text.splitlines()[-1]}"
    if (folder / result).read_bytes() != (whole / result).read_bytes():
        return f"OTHER BITS, {outcome}"
    left = {path.relative_to(folder) for path in folder.rglob("*")} - {p.relative_to(whole) for p in whole.rglob("*")}
    return f"LEFT {min(left)}, {outcome}" if left else outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=COMMANDS, help="this command")
    options = parser.parse_args()
    wrong = False
    print(f"{'command':8} {'kills':>5}  outcome, with the bits of an uninterrupted run unless it says otherwise")
    for name in [options.only] if options.only else COMMANDS:
        outcomes: collections.Counter[str] = collections.Counter()
        with tempfile.TemporaryDirectory() as scratch:
            images, whole = Path(scratch, "images"), Path(scratch, "whole")
            images.mkdir()
            write_images(images)
            command = Command(name, images)
            command.finish(Path(scratch, "first"))  # it compiles
            seconds, count = changes(command, whole)
            for number in itertools.count():
                chance = random.Random(f"{options.seed} {name} {number}")
                outcome = trial(command, Path(scratch, str(number)), whole, chance, seconds, count)
                outcomes.update([outcome] if outcome else [])
                if outcomes.total() == options.kills:
                    break
        for outcome, times in outcomes.most_common():
            print(f"{name:8} {times:5}  {outcome}", flush=True)
            wrong |= outcome[:4].isupper()
    sys.exit(wrong)


if __name__ == "__main__":
    main()
