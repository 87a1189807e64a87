"""Runs the Python blocks of the README and of docs/ on two images, and parses the command lines of their shell blocks.

A section begins at a heading of the second level. Its Python blocks run in one folder and one namespace, which at first
has the names of `given`. Command lines are not run: parsing them by the commands' own parsers checks their options.
"""

import contextlib
import importlib
import re
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flax import nnx

import mnist_jax
from mnist_jax import data

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]
COUNT = 2  # images


def given() -> dict[str, Any]:
    """The names that the blocks take as given: images of `val` with labels, a small network of each kind, weights."""
    val = data.load_split("val")
    w = np.random.default_rng(0).normal(0, 0.1, (784, 10)).astype(np.float32)
    return {
        "__name__": "block",
        "mnist_jax": mnist_jax,
        "classifier": mnist_jax.Classifier(lambda w, images: images.reshape(len(images), -1) @ w, w),
        "images": data.normalize(val.images[:COUNT]),
        "labels": np.asarray(val.labels[:COUNT]),
        "w": w,
        "module": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval(),
        "example": torch.zeros(1, 1, 28, 28),
        "model": nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(784, 10, rngs=nnx.Rngs(0))),
    }


def sections(text: str) -> list[str]:
    return re.split(r"^## ", text, flags=re.M)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def run(section: str, name: str) -> None:
    """Runs the Python blocks of a section in a temporary folder. Raises whatever a block raises."""
    names = given()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("checkpoints").symlink_to(TOP / "checkpoints")
        if "net.onnx" in section:
            torch.onnx.export(names["module"], (names["example"],), "net.onnx", dynamo=True, verbose=False)
        for code in blocks(section, "python"):
            exec(compile(code, name, "exec"), names)


def read(section: str) -> None:
    """Parses the command lines of a section.

    Raises `InputError` for options that a command refuses, `FileNotFoundError` for a script that does not exist.
    """
    for line in "".join(blocks(section, "sh")).replace("\\\n", " ").splitlines():
        match shlex.split(line, comments=True):
            case ["python", "-m", module, *options] if module.startswith("mnist_jax."):
                importlib.import_module(module.replace("mnist_jax.", "mnist_jax.commands.")).parse(options)
            case ["python", script, *_] if script.startswith("experiments/"):
                (TOP / script).stat()


def main() -> None:
    failed = 0
    for page in PAGES:
        for section in sections(page.read_text()):
            name = f"{page.relative_to(TOP)}: {section.splitlines()[0] if section else ''}"
            began = time.perf_counter()
            try:
                read(section)
                if blocks(section, "python"):
                    run(section, name)
                    print(f"{name:70}{time.perf_counter() - began:6.1f} s", flush=True)
            except Exception as error:
                failed += 1
                print(f"{name:70}{type(error).__name__}: {error}", flush=True)
    sys.exit(f"{failed} sections fail" if failed else 0)


if __name__ == "__main__":
    main()
