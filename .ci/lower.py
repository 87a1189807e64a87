"""Lowers training, evaluation, attacks, certificates and defences, in every norm, for GPUs and TPUs, without compiling.

So a machine without these devices finds programs that use what one of them lacks: an operation, or 64-bit numbers.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mnist_jax import Classifier, certify, defend, load_classifier, training, unstable
from mnist_jax.attack import methods
from mnist_jax.certify.smoothing import votes
from mnist_jax.data import Split, normalize
from mnist_jax.networks import NETWORKS, ORIGINALS, Network
from mnist_jax.recipe import RECIPES, Recipe

PLATFORMS = ("cuda", "rocm", "tpu")
NORMS = (0, 1, 1.5, 2, np.inf)
BATCH = 8
FEW: dict[str, Any] = {"steps": 3, "searches": 1, "queries": 3, "effort": 60, "radius": 0.1}  # options of attacks

IMAGES = jax.ShapeDtypeStruct((BATCH, 28, 28, 1), jnp.float32)
LABELS = jax.ShapeDtypeStruct((BATCH,), jnp.int32)


def abstract(tree: Any) -> Any:
    """The pytree with shapes and types in place of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree)


def training_steps(network: type[Network], recipe: Recipe) -> tuple[Callable, tuple]:
    """A function of three training steps by a recipe, and its abstract arguments."""
    recipe = replace(recipe, batch_size=BATCH)
    split = Split(jax.ShapeDtypeStruct((64, 28, 28, 1), jnp.uint8), jax.ShapeDtypeStruct((64,), jnp.int32))
    state = jax.eval_shape(partial(training.start, network, recipe, steps=9), jax.random.key(0))
    batches = jax.ShapeDtypeStruct((3, BATCH), jnp.int32)
    run = partial(training.train_steps, network, recipe, 9)
    return run, (state, split, batches, jax.eval_shape(jax.random.key, 0))


def attacking(method: str, norm: float) -> Callable:
    options = {name: value for name, value in FEW.items() if name in methods.parameters(method)}
    return lambda classifier, images, labels, key: methods.METHODS[method](
        classifier, images, labels, norm=norm, key=key, **options
    )


def certifying(bound: Callable, norm: float) -> Callable:
    return lambda classifier, images, labels: bound(classifier, images, labels, 0.01, norm=norm)


def programs() -> Iterator[tuple[str, Callable, tuple]]:
    """The programs to lower: name, function, abstract arguments."""
    for name, network in NETWORKS.items():
        for recipe in RECIPES if name in ORIGINALS else RECIPES[:1]:
            yield f"training {name}-{recipe}", *training_steps(network, network.recipe(recipe))
        classifier = Classifier(network.apply, jax.eval_shape(network.initialize, jax.random.key(0)))
        raw = jax.ShapeDtypeStruct(IMAGES.shape, jnp.uint8)
        yield f"evaluation {name}", lambda classifier, images: classifier(normalize(images)), (classifier, raw)
    classifier: Classifier = abstract(load_classifier("CNN"))
    dense: Classifier = abstract(load_classifier("MLP"))  # alpha-CROWN of a CNN takes a minute to trace
    for bound, bounded in ((certify.ibp, classifier), (certify.crown, classifier), (certify.alpha_crown, dense)):
        for norm in (1, 2, np.inf):
            yield f"{bound.__name__} L{norm:g}", certifying(bound, norm), (bounded, IMAGES, LABELS)
    for name, defense in defend.DEFENSES.items():
        for norm in defense.norms:
            kind = "best" if defense.gpu is None else "gpu"
            network = NETWORKS["CNN5_bn" if kind == "best" else "CNN7_bn"]
            trained = f"training {network.__name__}-{name}-{norm:g}-{kind}"
            yield trained, *training_steps(network, defend.recipe(name, network, norm, 0.3, kind))
    key = jax.eval_shape(jax.random.key, 0)
    sigma, many = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    yield "smoothing", votes, (classifier, sigma, jax.ShapeDtypeStruct((28, 28, 1), jnp.float32), key, many)
    for method in methods.METHODS:
        for norm in NORMS:
            if not methods.objection(method, norm):
                yield f"{method} L{norm:g}", attacking(method, norm), (classifier, IMAGES, LABELS, key)


def main() -> None:
    allowed = [export.DisabledSafetyCheck.custom_call(unstable.LAYOUT)]
    failed = 0
    for name, function, arguments in programs():
        began = time.perf_counter()
        try:
            export.export(jax.jit(function), platforms=PLATFORMS, disabled_checks=allowed)(*arguments)
            said = "lowered"
        except Exception as error:
            failed += 1
            said = f"{type(error).__name__}: {error}"
        print(f"{name:32}{time.perf_counter() - began:6.1f} s  {said}", flush=True)
    sys.exit(f"{failed} programs can't be lowered for {', '.join(PLATFORMS)}" if failed else 0)


if __name__ == "__main__":
    main()
