"""The package as it is installed: from a wheel, with its data, from any folder."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mnist_jax.storage import checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("mnist_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_has_the_data_and_every_shipped_network(installed):
    data = {path.name for path in (ROOT / "mnist_jax/data/mnist").iterdir()}
    assert {path.name for path in (installed / "mnist_jax/data/mnist").iterdir()} == data
    shipped = {path.name for path in checkpoint.shipped().glob("*.safetensors")}
    assert {path.name for path in (installed / "mnist_jax/checkpoints").glob("*.safetensors")} == shipped
    assert (installed / "mnist_jax/py.typed").exists()  # so that type checkers read the annotations
    assert not (installed / "tests").exists()


def test_commands_work_from_any_folder_once_installed(installed, run, few_digits, tmp_path):
    arguments = ("--model", "MLP", "--data-dir", few_digits, "--json")
    status, out, err = run("evaluate", *arguments, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert status == 0, err
    assert json.loads(out)["networks"][0]["path"] == str(installed / "mnist_jax/checkpoints/MLP-best.safetensors")


def test_importing_the_package_leaves_out_what_is_slow_and_rarely_needed():
    slow = ("matplotlib", "tensorflow_datasets", "orbax", "scipy.optimize", "scipy.stats")
    program = f"import sys, mnist_jax; print([m for m in {slow} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
