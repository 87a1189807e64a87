"""Save and load trained networks, and the state of an interrupted training.

A trained network is a safetensors file with the weights by name, and with the settings that made them as metadata. It
is called `NAME[-DEFENSE-NORM-RADIUS]-RECIPE[-DATASET].safetensors`.
"""

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from mnist_jax import networks
from mnist_jax.classifier import Classifier
from mnist_jax.data import DATASETS
from mnist_jax.errors import InputError, first_line
from mnist_jax.networks import CLASSES, IMAGE_SHAPE, Network, Weights
from mnist_jax.recipe import OF_DEFENCES
from mnist_jax.storage import files
from mnist_jax.version import VERSION

FORMAT = 1  # version of the file format; files of a newer one are refused
KEY = "mnist_jax"  # of the entry in the safetensors metadata

RUNS = Path("runs")  # default folder of the user's own networks and results
SETTLING = 10  # half-seconds at most that `_settle` waits


class Name(NamedTuple):
    """The parts of a checkpoint's name. Where a user's name for it lacks recipe or dataset, these are empty.

    The defence includes norm and radius, as in "ibp-inf-0.3"; a plain network's is empty. An unknown word at the end is
    taken for the name of a dataset of the user's own if it follows a recipe.
    """

    architecture: str
    defense: str = ""
    recipe: str = ""
    dataset: str = ""

    @classmethod
    def parse(cls, stem: str) -> "Name":
        """The parts of a name without suffix. Raises `InputError` where it doesn't begin with a known architecture."""
        architecture, *rest = stem.split("-")
        networks.by_name(architecture)
        own = len(rest) > 1 and rest[-2] in OF_DEFENCES and rest[-1].isidentifier()
        dataset = rest.pop() if own or (rest and rest[-1] in DATASETS) else ""
        recipe = rest.pop() if rest and rest[-1] in OF_DEFENCES else ""
        return cls(architecture, "-".join(rest), recipe, dataset)

    def __str__(self) -> str:
        return "-".join(part for part in (*self[:3], self.dataset if self.dataset != "mnist" else "") if part)


class Checkpoint(NamedTuple):
    """A trained network.

    Attributes:
      network: its class, made for its images' shape and its number of classes (`Network.of`).
      weights: by name.
      about: how it was made, as far as that is known: `recipe`, `dataset`, `class_names`, `seed`, `hyperparameters`,
        `accuracies` (train, test, val), `history`, `version`.
    """

    network: type[Network]
    weights: Weights
    about: dict[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names by label; numbers where the checkpoint has no names."""
        return tuple(self.about.get("class_names") or map(str, range(self.network.classes)))

    def classifier(self) -> Classifier:
        """The network in evaluation mode as a `Classifier`."""
        return Classifier(self.network.apply, self.weights)


def save(path: str | Path, checkpoint: Checkpoint, aside: Path | None = None) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
      path: of the file, which ends in .safetensors.
      checkpoint: the network to save.
      aside: where an earlier file at `path` is moved to; without it, that is replaced.

    Raises:
      InputError: the file can't be written.
    """
    arrays = {name: np.asarray(array) for name, array in sorted(checkpoint.weights.items())}
    about = checkpoint.about | {"version": VERSION}
    network = checkpoint.network
    what = {"architecture": network.__name__, "shape": list(network.shape), "classes": network.classes}
    header = files.strict({"format": FORMAT, **what, "about": about})
    header["sha256"] = _fingerprint(header, arrays)
    # A single entry, as safetensors writes several in any order, and the same network should give the same file.
    metadata = {KEY: json.dumps(header, sort_keys=True, allow_nan=False)}
    files.write(Path(path), safetensors.numpy.save(arrays, metadata), aside)


def load(path: str | Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
      InputError: the file is missing, truncated, altered, of a newer format, or its weights don't fit its architecture.
    """
    try:
        raw = Path(path).read_bytes()  # by Python, as the safetensors library opens only names in UTF-8
        arrays = dict(sorted(safetensors.numpy.load(raw).items()))
        metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path} ({error.strerror or error})") from error
    except Exception as error:  # the library has its own errors, and raises others for types that NumPy lacks
        raise InputError(
            f"the checkpoint {path} is truncated or altered ({first_line(error)}); train or copy it anew"
        ) from error
    if KEY not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but no checkpoint of mnist_jax; "
            "mnist_jax.pytorch.load reads a PyTorch state_dict"
        )
    altered = InputError(f"the checkpoint {path} has been altered since it was written; train or copy it anew")
    try:
        header = json.loads(metadata[KEY])
        if header["format"] > FORMAT:
            raise InputError(f"the checkpoint {path} was written by a newer mnist_jax; upgrade mnist_jax to read it")
        if header.pop("sha256") != _fingerprint(header, arrays):
            raise altered
        architecture, about = header["architecture"], dict(header["about"])
        # Checkpoints without these entries are older and of MNIST.
        shape, classes = tuple(header.get("shape", IMAGE_SHAPE)), header.get("classes", CLASSES)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, InputError) else altered from error
    network = networks.by_name(architecture).of(shape, classes)
    check_shapes(path, network, arrays)
    return Checkpoint(network, jax.device_put(arrays), about)


def check_shapes(path: str | Path, network: type[Network], arrays: dict[str, np.ndarray]) -> None:
    """Raises `InputError` unless the arrays have the names and shapes of the network's weights."""
    wanted = networks.shapes(network)
    if {name: array.shape for name, array in arrays.items()} != wanted:
        wrong = sorted(k for k in wanted.keys() | arrays.keys() if k not in arrays or wanted.get(k) != arrays[k].shape)
        raise InputError(f"{path} does not hold the weights of {network.__name__}: {', '.join(wrong)} differ")


def _fingerprint(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """The SHA-256 of a checkpoint's header and weights, which tells whether a file was altered."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def shipped() -> Path:
    """The folder of the networks that ship with the project: inside the installed package, or beside it in a clone."""
    here = Path(__file__).parents[1]
    return next((f for f in (here / "checkpoints", here.parent / "checkpoints") if f.is_dir()), here / "checkpoints")


def find(model: str | Path, runs: str | Path = RUNS) -> Path:
    """The path of the checkpoint that a name means, such as `CNN`, `CNN-best` or `MLP-original-fashion_mnist`.

    A name means the newest matching file in `runs`, else the shipped one, of recipe `best` where several match. A name
    without a dataset means mnist. A path, or text with a slash or the suffix .safetensors, is returned as it is.

    Raises:
      InputError: there is no such architecture, or no trained network of that name.
    """
    if isinstance(model, Path) or "/" in model or model.endswith(".safetensors"):
        return Path(model)
    wanted = Name.parse(model)

    def matches(path: Path) -> bool:
        if not path.is_file():  # for example a broken link
            return False
        try:
            name = Name.parse(path.stem)
        except InputError:  # a file with another kind of name
            return False
        return (
            (name.architecture, name.defense) == (wanted.architecture, wanted.defense)
            and wanted.recipe in ("", name.recipe)
            and (wanted.dataset or "mnist") == (name.dataset or "mnist")
        )

    own = [path for path in Path(runs).glob("*.safetensors") if matches(path)]
    if own:
        return max(own, key=lambda path: path.stat().st_mtime_ns)
    with_project = [path for path in shipped().glob("*.safetensors") if matches(path)]
    if with_project:
        return min(with_project, key=lambda path: OF_DEFENCES.index(Name.parse(path.stem).recipe))
    options = {"model": wanted.architecture, "recipe": wanted.recipe, "dataset": wanted.dataset}
    how = " ".join(f"--{option} {value}" for option, value in options.items() if value)
    raise InputError(f"no trained {model} in {runs} or {shipped()}: train it, python -m mnist_jax.train {how}")


def load_classifier(model: str | Path = "CNN") -> Classifier:
    """Loads a trained network by its name or path.

    Args:
      model: a name such as `CNN`, `CNN-original` or `CNN5_bn-mtl_ibp-inf-0.1`, or a path. A name means the user's
        newest network in `runs`, else the shipped one (`checkpoint.find`).

    Returns:
      A classifier that maps float32 images `[B, height, width, channels]` in [0, 1] to logits `[B, C]`.

    Raises:
      InputError: there is no such network, or its file is damaged.
    """
    return load(find(model)).classifier()


def save_state(folder: Path, step: int, state: Any, about: dict[str, Any]) -> None:
    """Saves the state of a training in `folder`; an earlier state stays until this one is whole.

    Args:
      folder: made where it is missing.
      step: a number that is larger than that of the earlier state.
      state: a pytree of arrays.
      about: a description of the training, for JSON.

    Raises:
      InputError: it can't be written.
    """
    import orbax.checkpoint as ocp

    new = not folder.exists()
    try:
        with _manager(folder) as manager:
            manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
            )
    except (OSError, ValueError, RuntimeError) as error:  # Orbax raises any of these where it can't write
        _settle(folder, remove=new)
        raise files.NotWritten(folder, error) from error


def _settle(folder: Path, *, remove: bool) -> None:
    """Waits until Orbax's threads have stopped, which go on writing for a moment after a failure.

    With `remove`, deletes the folder as often as they make it again, for `SETTLING` half-seconds at most.
    """
    for _ in range(SETTLING):
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.5)
        if not (remove and folder.exists()):
            return


def load_state(folder: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    """Loads the state that `save_state` saved last, and its description; `like` is a pytree with the same structure.

    Raises:
      InputError: there is none, or it is damaged or of another network.
    """
    import orbax.checkpoint as ocp

    if not folder.is_dir():
        raise InputError(f"there is nothing to resume: {folder} does not exist")
    try:
        with _manager(folder) as manager:
            step = manager.latest_step()
            if step is None:
                raise InputError(f"there is nothing to resume in {folder}")
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like), about=ocp.args.JsonRestore())
            restored = manager.restore(step, args=args)
            return restored.state, restored.about
    except InputError:
        raise
    except Exception as error:  # Orbax raises many kinds for a damaged state
        raise InputError(f"the state in {folder} is damaged ({first_line(error)}); delete it") from error


def _manager(folder: Path):
    """Orbax's manager of the state in `folder`: one state at a time, written before `save` returns."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised too, and reported by the callers
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options)
