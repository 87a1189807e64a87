"""How far `nearest` stays from the exact minimum, and how fast `certify.exact` finds it, on a network small enough for
a mixed-integer program to find it, too.

    python experiments/exact_minimum.py [--images 100] [--norms inf 1] [--effort thorough]

The network has one hidden layer of 20 ReLUs and sees MNIST at 14x14 pixels, the means of 2x2. For each other class the
least norm at which its logit reaches that of the label is a mixed-integer linear program (Tjeng, Xiao & Tedrake,
"Evaluating robustness of neural networks with mixed integer programming", 2019): a hidden unit is on or off, and is
linear on either side. Bounds on the units come from the distance that `nearest` found, as the minimum is not beyond it.
HiGHS solves it, by SciPy (`pip install scipy`).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from tqdm import tqdm

try:
    from scipy import optimize
except ImportError as error:
    raise SystemExit("mixed-integer programs need SciPy: pip install scipy") from error

from mnist_jax import Classifier, attack, certify, data, losses

HIDDEN, EPOCHS, BATCH, RATE = 20, 5, 100, 3e-3
WITHIN = 1e-3  # relative: so near the minimum counts as exact
LOOSER = 1e-4  # relative: so much farther than what was found the program looks, for the rounding of both
GAP = 1e-6  # relative, at which HiGHS stops

Weights = dict[str, jax.Array]


class Minimum(NamedTuple):
    """What the programs of all classes know of the least norm: that of a point, and what none is below."""

    value: float
    bound: float


def apply(weights: Weights, images: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ weights["w"] + weights["b"][None])
    return hidden @ weights["v"] + weights["c"][None]


def smaller(images: np.ndarray) -> np.ndarray:
    """Images `[N, 14, 14, 1]` in [0, 1], of bytes `[N, 28, 28, 1]`."""
    images = np.asarray(data.normalize(images))
    return images.reshape(len(images), 14, 2, 14, 2, 1).mean((2, 4))


def train(split: data.Split, key: jax.Array) -> Weights:
    """The network after some epochs of Adam on the cross-entropy."""
    sizes = {"w": (196, HIDDEN), "b": (HIDDEN,), "v": (HIDDEN, 10), "c": (10,)}
    keys = jax.random.split(key, len(sizes) + 1)
    weights = {n: jax.random.normal(k, s) / s[0] ** 0.5 for (n, s), k in zip(sizes.items(), keys, strict=False)}
    return descended(apply, weights, smaller(split.images), split.labels, keys[-1], epochs=EPOCHS, rate=RATE)


def descended(
    apply: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    images: ArrayLike,
    labels: ArrayLike,
    key: jax.Array,
    *,
    epochs: int,
    rate: float,
) -> Any:
    """The weights after some epochs of Adam on the cross-entropy of images and labels."""
    x, y = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    adam = optax.adam(rate)

    def step(state, batch):
        weights, moments = state
        gradient = jax.grad(lambda w: losses.cross_entropy(apply(w, x[batch]), y[batch]).mean())(weights)
        updates, moments = adam.update(gradient, moments)
        return (optax.apply_updates(weights, updates), moments), None

    @jax.jit
    def run(weights):
        orders = [jax.random.permutation(key, len(y)) for key in jax.random.split(key, epochs)]
        batches = jnp.concatenate(orders).reshape(-1, BATCH)
        return jax.lax.scan(step, (weights, adam.init(weights)), batches)[0][0]

    return run(weights)


def reach(gain: np.ndarray, room: np.ndarray, radius: float, norm: float) -> float:
    """The largest sum of `gain * r` over 0 <= r <= room of that norm at most."""
    if norm == np.inf:
        return float((gain * np.minimum(room, radius)).sum())
    order = np.argsort(-gain)
    before = np.concatenate([[0], room[order].cumsum()[:-1]])
    return float((gain[order] * np.clip(radius - before, 0, room[order])).sum())


def unit_bounds(w: np.ndarray, level: float, image: np.ndarray, radius: float, norm: float) -> tuple[float, float]:
    """Between what a hidden unit stays before its ReLU, in the ball and the box."""
    up, down = np.where(w > 0, 1 - image, image), np.where(w > 0, image, 1 - image)
    return level - reach(abs(w), down, radius, norm), level + reach(abs(w), up, radius, norm)


def program(weights: dict[str, np.ndarray], image: np.ndarray, label: int, other: int, norm: float, radius: float):
    """The result of `scipy.optimize.milp`: the least norm, up to `radius`, at which `other` is as likely as the label.

    The variables are what each pixel gains and what it loses, the largest change of a pixel, the hidden units, and
    whether each of them is on. Every row says that a linear function of them is at least a number.
    """
    pixels, units = len(image), len(weights["b"])
    level = weights["b"] + image @ weights["w"]
    bounds = [unit_bounds(w, z, image, radius, norm) for w, z in zip(weights["w"].T, level, strict=True)]
    low, high = np.transpose(bounds)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    w, unit, pixel = weights["w"].T, np.eye(units), np.eye(pixels)
    none = np.zeros((units, 1))
    difference = weights["v"][:, other] - weights["v"][:, label]
    objective = np.zeros(2 * pixels + 1 + 2 * units)
    objective[2 * pixels if norm == np.inf else slice(2 * pixels)] = 1
    rows = np.block(
        [
            [-w, w, none, unit, 0 * unit],  # a unit is not below what comes in,
            [w, -w, none, -unit, np.diag(low)],  # nor above it where it is on,
            [0 * w, 0 * w, none, -unit, np.diag(high)],  # and zero where it is off
            [-pixel, -pixel, np.ones((pixels, 1)), 0 * w.T, 0 * w.T],
            [np.zeros((1, 2 * pixels + 1)), difference[None], np.zeros((1, units))],
            [-objective[None]],
        ]
    )
    least = [level, low - level, np.zeros(units + pixels), [weights["c"][label] - weights["c"][other], -radius]]
    return optimize.milp(
        objective,
        integrality=np.repeat([0, 1], [2 * pixels + 1 + units, units]),
        bounds=optimize.Bounds(0, np.concatenate([1 - image, image, [1], high, np.ones(units)])),
        constraints=optimize.LinearConstraint(rows, lb=np.concatenate(least)),
        options={"mip_rel_gap": GAP},
    )


def minimum(weights: Weights, image: np.ndarray, label: int, norm: float, found: float) -> Minimum:
    """The least norm at which any other class is as likely as the label; `found` is that of an adversarial image.

    Its value is inf where there is nothing as near as that.

    Raises `RuntimeError` where HiGHS gives up.
    """
    exact = {name: np.asarray(array, float) for name, array in weights.items()}
    flat = np.asarray(image, float).ravel()
    value, bound = np.inf, np.inf
    for other in (c for c in range(10) if c != label):
        radius = min(found * (1 + LOOSER), value)
        result = program(exact, flat, label, other, norm, radius)
        if result.status == 2:  # nothing so near
            bound = min(bound, radius)
        elif result.status:
            raise RuntimeError(result.message)
        else:
            value, bound = min(value, result.fun), min(bound, result.mip_dual_bound)
    return Minimum(value, bound)


def minima(weights: Weights, images: np.ndarray, labels: np.ndarray, norm: float, found: np.ndarray) -> list[Minimum]:
    several = list(zip(images, labels.tolist(), found.tolist(), strict=True))
    return [minimum(weights, image, label, norm, d) for image, label, d in tqdm(several, leave=False, disable=None)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--norms", nargs="+", type=float, default=[np.inf, 1.0], metavar="P")
    parser.add_argument("--effort", default="thorough", choices=("fast", "standard", "thorough"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    mnist = data.load()
    classifier = Classifier(apply, train(mnist.train, jax.random.key(options.seed)))
    images, labels = smaller(mnist.val.images), mnist.val.labels
    right = np.asarray(classifier(images)).argmax(1) == labels
    print(f"accuracy on val: {right.mean():.2%}; the first {options.images} that are classified correctly:")
    images, labels = images[right][: options.images], labels[right][: options.images]
    for norm in options.norms:
        result = attack.nearest(classifier, images, labels, norm=norm, effort=options.effort)
        began = time.perf_counter()
        exact = certify.exact(classifier, images, labels, norm=norm, near=result.images, seconds=30)
        seconds = (time.perf_counter() - began) / len(images)
        lower, upper = np.asarray(exact.lower, float), np.asarray(exact.upper, float)
        found, began = np.asarray(result.distance, float), time.perf_counter()
        least = np.array(minima(classifier.params, images, labels, norm, found))
        ratio = found / least[:, 0]
        print(
            f"l{norm:g}: {np.isfinite(found).mean():.0%} fooled; found / minimum: mean {ratio.mean():.5f}, "
            f"largest {ratio.max():.5f}, within {WITHIN:.1%} on {(abs(ratio - 1) <= WITHIN).mean():.0%}; "
            f"found / lower bound: least {(found / least[:, 1]).min():.6f}; "
            f"{(time.perf_counter() - began) / len(found):.2f} s an image for the program",
            flush=True,
        )
        print(
            f"l{norm:g}: exact: lower / minimum: least {(lower / least[:, 0]).min():.6f}, largest "
            f"{(lower / least[:, 0]).max():.6f}; upper / minimum: largest {(upper / least[:, 0]).max():.6f}; lower end "
            f"within 1.1e-4 of the upper one on {(lower >= upper * (1 - 1.1e-4)).mean():.0%}; "
            f"{seconds:.2f} s an image, with compiling",
            flush=True,
        )


if __name__ == "__main__":
    main()
