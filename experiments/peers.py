"""Runs attacks of PyTorch libraries on one network, for `benchmark_attacks.py`, which starts it in an own interpreter.

    python experiments/peers.py REQUEST.npz ANSWER.npz

Needs torch, numpy, and any of adv-lib, torchattacks and foolbox. The request has `images [N, 1, 28, 28]`, `labels [N]`,
the network's state_dict as `weights/NAME`, and `what`, a JSON object: `attacks` (names with steps, as in `ddn:100`),
`norm`, `radius`, `threads`, `counted` (the number of images on which queries are counted) and `budget` (the number of
queries that count). The answer has, for every attack of every library that takes the norm, `NAME/images
[N, 1, 28, 28]`, `NAME/success [N]` and `NAME/nearest [counted]`, and in `what` the counts, the seconds and the errors.
"""

import importlib
import json
import math
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LIBRARIES = ("adv_lib", "torchattacks", "foolbox")


class Queries:
    """Records the queries that an attack makes about one image: their number, and the nearest adversarial image.

    A query is the forward or the backward pass of one image. After `budget` of them, queries are only counted.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.forwards = self.backwards = 0
        self.nearest = math.inf
        self.image: np.ndarray | None = None

    def about(self, image: np.ndarray | None, label: int = 0, norm: float = 2.0) -> None:
        """Starts to record queries about this image; with None they are only counted."""
        self.image, self.label, self.norm = image, label, norm
        self.forwards = self.backwards = 0
        self.nearest = math.inf

    def forward(self, images: np.ndarray, logits: np.ndarray) -> None:
        left = self.budget - self.forwards - self.backwards
        self.forwards += len(logits)
        if self.image is None or left <= 0:
            return
        images, logits = np.asarray(images)[:left], np.asarray(logits)[:left]
        inside = ((images >= 0) & (images <= 1)).reshape(len(images), -1).all(1)
        fooled = inside & (logits.argmax(1) != self.label) & np.isfinite(logits).all(1)
        if fooled.any():
            self.nearest = min(self.nearest, float(distances(images[fooled], self.image[None], self.norm).min()))

    def backward(self, rows: int) -> None:
        self.backwards += rows


def distances(images: np.ndarray, originals: np.ndarray, norm: float) -> np.ndarray:
    """p-norms `[N]` of the differences, in double precision; for p = 0 the number of pixels that differ."""
    r = np.asarray(images, np.float64) - np.asarray(originals, np.float64)
    return np.linalg.norm(r.reshape(len(r), -1), norm, axis=1)


def network(weights: dict[str, np.ndarray]) -> Callable:
    """The network of a state_dict in PyTorch, in evaluation mode: images `[B, 1, 28, 28]` to logits."""
    import torch

    layers: dict[tuple[str, int], dict[str, Any]] = {}
    for name, array in weights.items():
        part, index, field = name.split(".")
        layers.setdefault((part, int(index)), {})[field] = torch.tensor(array)
    order = sorted(layers, key=lambda place: (place[0] == "classifier", place[1]))

    def forward(x):
        for place in order:
            w = layers[place]
            x = x.flatten(1) if place[0] == "classifier" else x
            if "running_mean" in w:
                x = torch.nn.functional.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])
            elif w["weight"].ndim == 4:
                x = torch.nn.functional.conv2d(x, w["weight"], w["bias"]).relu()
                x = torch.nn.functional.max_pool2d(x, 2)
            else:
                x = torch.nn.functional.linear(x, w["weight"], w["bias"])
                x = x if place == order[-1] else x.relu()
        return x

    return forward


def counted(forward: Callable, queries: Queries) -> Any:
    """The network as a module that reports its forward and backward passes to `queries`."""
    import torch

    class Network(torch.nn.Module):
        def forward(self, images):
            logits = forward(images)
            queries.forward(images.detach().numpy(), logits.detach().numpy())
            if logits.requires_grad:
                logits.register_hook(lambda gradient: queries.backward(len(gradient)))
            return logits

    return Network().eval()


def adv_lib(model: Any, norm: float, radius: float | None) -> dict[str, Callable]:
    """The attacks of adv-lib in this norm, by our attacks' names: functions of images, labels and perhaps `steps`."""
    for missing in ("torchvision", "torchvision.models", "torchvision.transforms", "visdom"):
        stand_in(missing)  # adv-lib imports these for parts that no attack here uses
    al = importlib.import_module("adv_lib.attacks")

    p = f"l{norm:g}" if math.isfinite(norm) else "linf"
    table: dict[str, Callable] = {}
    if norm == 2:
        table |= {
            # Without rounding to grey levels, which is adv-lib's default, distances are smaller.
            "ddn": lambda x, y, **o: al.ddn(model, x, y, levels=None, **o),
            "carlini_wagner": lambda x, y, **o: al.carlini_wagner_l2(model, x, y, **renamed(o, "max_iterations")),
        }
    if norm in (2, math.inf):
        table["deepfool"] = lambda x, y, **o: al.df(model, x, y, norm=norm, **o)
    if norm in (1, 2):
        first = {"init_lr_distance": 20} if norm == 1 else {}
        table["alma"] = lambda x, y, **o: al.alma(model, x, y, distance=p, **first, **renamed(o, "num_steps"))
    if norm in (1, 2, math.inf):
        table["fab"] = lambda x, y, **o: al.fab(model, x, y, norm=norm, **renamed(o, "n_iter"))
    if norm in (0, 1, 2, math.inf):
        table["fmn"] = lambda x, y, **o: al.fmn(model, x, y, norm=norm, **o)
        table["pdpgd"] = lambda x, y, **o: al.pdpgd(model, x, y, norm=norm, **renamed(o, "num_steps"))
    if norm == 0:
        table["sigma_zero"] = lambda x, y, **o: al.sigma_zero(model, x, y, **renamed(o, "num_steps"))
    if radius is not None and norm in (1, 2, math.inf):
        table["apgd"] = lambda x, y, **o: al.apgd(model, x, y, radius, norm=norm, **renamed(o, "n_iter"))
    if radius is not None and norm == math.inf:
        table["pgd"] = lambda x, y, **o: al.pgd_linf(model, x, y, radius, **o)
    return table


def torchattacks(model: Any, norm: float, radius: float | None) -> dict[str, Callable]:
    for missing in ("torchvision", "torchvision.transforms"):
        stand_in(missing)
    ta = importlib.import_module("torchattacks")
    table: dict[str, Callable] = {}
    if norm == 2:
        table["carlini_wagner"] = lambda x, y, **o: ta.CW(model, **o)(x, y)
        table["deepfool"] = lambda x, y, **o: ta.DeepFool(model, **o)(x, y)
    if norm == 1:
        table["ead"] = lambda x, y, **o: ta.EADL1(model, **renamed(o, "max_iterations"))(x, y)
    if radius is None or norm not in (2, math.inf):
        return table
    L = "Linf" if norm == math.inf else "L2"
    table["apgd"] = lambda x, y, **o: ta.APGD(model, norm=L, eps=radius, **o)(x, y)
    table["apgd_targeted"] = lambda x, y, **o: ta.APGDT(model, norm=L, eps=radius, **o)(x, y)
    table["square"] = lambda x, y, **o: ta.Square(model, norm=L, eps=radius, **renamed(o, "n_queries"))(x, y)
    table["auto_attack"] = lambda x, y, **o: ta.AutoAttack(model, norm=L, eps=radius)(x, y)
    if norm == math.inf:
        table["fgsm"] = lambda x, y, **o: ta.FGSM(model, eps=radius)(x, y)
        table["mi_fgsm"] = lambda x, y, **o: ta.MIFGSM(model, eps=radius, **o)(x, y)
        table["pgd"] = lambda x, y, **o: ta.PGD(model, eps=radius, **o)(x, y)
    else:
        table["pgd"] = lambda x, y, **o: ta.PGDL2(model, eps=radius, **o)(x, y)
    return table


def foolbox(model: Any, norm: float, radius: float | None) -> dict[str, Callable]:
    fb = importlib.import_module("foolbox")
    kinds = {
        0: {"fmn": "L0FMNAttack", "brendel_bethge": "L0BrendelBethgeAttack"},
        1: {"fmn": "L1FMNAttack", "brendel_bethge": "L1BrendelBethgeAttack", "ead": "EADAttack"},
        2: {
            "fmn": "L2FMNAttack",
            "brendel_bethge": "L2BrendelBethgeAttack",
            "ddn": "DDNAttack",
            "deepfool": "L2DeepFoolAttack",
            "carlini_wagner": "L2CarliniWagnerAttack",
        },
        math.inf: {
            "fmn": "LInfFMNAttack",
            "brendel_bethge": "LinfinityBrendelBethgeAttack",
            "deepfool": "LinfDeepFoolAttack",
        },
    }
    wrapped: Any = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")

    papers = {"EADAttack": {"regularization": 1e-3}}  # the paper's value; Foolbox's default is ten times as large

    def made(kind: str) -> Callable:
        of_paper = papers.get(kind, {})
        return lambda x, y, **o: getattr(fb.attacks, kind)(**of_paper, **o)(wrapped, x, y, epsilons=None)[1]

    return {name: made(kind) for name, kind in kinds.get(norm, {}).items() if hasattr(fb.attacks, kind)}


def renamed(options: dict[str, int], name: str) -> dict[str, int]:
    return {name: options["steps"]} if options else {}


def stand_in(name: str) -> None:
    """Registers an empty module of this name, where the real one can't be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__getattr__ = lambda attribute: None  # type: ignore[method-assign]
        sys.modules[name] = module


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what the libraries print to stderr."""
    before, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = before


def run(attack: Callable, model: Any, queries: Queries, x: Any, y: Any, steps: int | None, what: dict) -> tuple:
    """Runs one attack on all images at once, then on some one by one; returns the arrays and the numbers."""
    import torch

    options = {} if steps is None else {"steps": steps}
    torch.manual_seed(0)
    queries.about(None)
    began = time.perf_counter()
    found = attack(x, y, **options).detach()
    seconds = time.perf_counter() - began
    numbers = {
        "seconds": seconds,
        "gradients": queries.backwards / len(x),
        "forwards": queries.forwards / len(x),
    }
    with torch.no_grad():
        success = (model(found).argmax(1) != y).numpy()
    nearest = []
    for i in range(min(what["counted"], len(x))):
        queries.about(x[i].numpy(), int(y[i]), what["norm"])
        attack(x[i : i + 1], y[i : i + 1], **options)
        nearest.append(queries.nearest)
    return {"images": found.numpy(), "success": success, "nearest": np.array(nearest)}, numbers


def main() -> None:
    import torch

    warnings.filterwarnings("ignore")  # of the libraries
    with np.load(sys.argv[1]) as file:
        request = dict(file)
    what = json.loads(str(request["what"]))
    torch.set_num_threads(what["threads"])
    weights = {name.partition("/")[2]: array for name, array in request.items() if name.startswith("weights/")}
    queries = Queries(what["budget"])
    model = counted(network(weights), queries)
    x, y = torch.tensor(request["images"]), torch.tensor(request["labels"], dtype=torch.int64)
    arrays: dict[str, np.ndarray] = {}
    answer: dict[str, Any] = {"attacks": {}, "failed": {}}
    for library in LIBRARIES:
        with quiet():
            try:
                table = globals()[library](model, what["norm"], what["radius"])
            except ImportError as error:
                answer["failed"][library] = str(error)
                continue
            for asked in what["attacks"]:
                name, _, steps = asked.partition(":")
                if name not in table:
                    continue
                title = f"{asked}-{library}"
                print(title, flush=True)
                try:
                    some, numbers = run(table[name], model, queries, x, y, int(steps) if steps else None, what)
                except Exception as error:  # a library may raise anything; the other attacks still run
                    answer["failed"][title] = f"{type(error).__name__}: {error}"
                    continue
                arrays |= {f"{title}/{key}": array for key, array in some.items()}
                answer["attacks"][title] = numbers
    np.savez(sys.argv[2], what=json.dumps(answer), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
