"""Times the gradient of an attack on a CPU for networks as users write them, for our layers, and for PyTorch.

    python experiments/benchmark_gradients.py --rounds 15

Three networks: four 3x3 convolutions with two pools, two strided 4x4 convolutions, and a small ResNet with padding.
Each is written with `lax.conv_general_dilated` and `lax.reduce_window`, channels last and channels first, which a
`Classifier` computes by faster formulations (`mnist_jax/jaxprs/fast.py`); with these switched off; with
`mnist_jax.layers`; and in PyTorch, where it is installed. What is timed is the gradient of the margin with respect to
32 images, forward and backward, a few times in a loop, as in an attack. The variants take turns in one process; a
figure is the least time of all rounds, in milliseconds for one image. First, all gradients are compared.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_training import machine, take_turns
from jax import lax

from mnist_jax import layers
from mnist_jax.classifier import Classifier

try:
    import torch
except ImportError:
    torch = None

BATCH, STEPS, STEP = 32, 3, 1e-3  # images, gradients in the loop, and length of a step along a gradient


class Style(NamedTuple):
    """How the operations of a network are written. All styles get images `[B, H, W, C]` and kernels `[h, w, C, O]`."""

    start: Callable[[Any], Any]  # converts images to the style's order of axes
    kernel: Callable[[np.ndarray], Any]
    conv: Callable[..., Any]  # of x, kernel, stride and padding
    pool: Callable[[Any], Any]  # max-pooling of 2 by 2 pixels
    mean: Callable[[Any], Any]  # mean over all pixels
    flat: Callable[[Any], Any]
    relu: Callable[[Any], Any] = jax.nn.relu


def four(style: Style, w: Sequence[Any], x: Any) -> Any:
    for i in range(4):
        x = style.relu(style.conv(x, w[i], 1, 1))
        x = style.pool(x) if i % 2 else x
    return style.flat(x) @ w[4]


def strided(style: Style, w: Sequence[Any], x: Any) -> Any:
    for kernel in w[:2]:
        x = style.relu(style.conv(x, kernel, 2, 1))
    return style.relu(style.flat(x) @ w[2]) @ w[3]


def residual(style: Style, w: Sequence[Any], x: Any) -> Any:
    x = style.relu(style.conv(x, w[0], 1, 1))
    x = style.relu(x + style.conv(style.relu(style.conv(x, w[1], 1, 1)), w[2], 1, 1))
    y = style.conv(style.relu(style.conv(x, w[3], 2, 1)), w[4], 1, 1)
    x = style.relu(style.conv(x, w[5], 2, 0) + y)
    return style.mean(x) @ w[6]


# Each network's function, and the shapes of its weights.
NETWORKS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "four 3x3": (four, ((3, 3, 1, 32), (3, 3, 32, 32), (3, 3, 32, 64), (3, 3, 64, 64), (7 * 7 * 64, 10))),
    "strided 4x4": (strided, ((4, 4, 1, 32), (4, 4, 32, 64), (7 * 7 * 64, 128), (128, 10))),
    "ResNet": (
        residual,
        ((3, 3, 1, 32), *[(3, 3, 32, 32)] * 2, (3, 3, 32, 64), (3, 3, 64, 64), (1, 1, 32, 64), (64, 10)),
    ),
}


def plain(order: str, kernels: str) -> Style:
    """The style of plain JAX, with the axes of images and of kernels in the given orders."""
    first = order == "NCHW"
    axes = (0, 3, 1, 2) if first else (0, 1, 2, 3)
    pixels = (2, 3) if first else (1, 2)
    window = tuple(2 if axis in pixels else 1 for axis in range(4))

    def conv(x, kernel, stride, padding):
        numbers = (order, kernels, order)
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=numbers)

    return Style(
        start=lambda x: x.transpose(axes),
        kernel=lambda k: k.transpose(3, 2, 0, 1) if first and k.ndim == 4 else k,
        conv=conv,
        pool=lambda x: lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID"),
        mean=lambda x: x.mean(pixels),
        flat=lambda x: x.transpose(np.argsort(axes)).reshape(len(x), -1),
    )


CHANNELS_LAST, CHANNELS_FIRST = plain("NHWC", "HWIO"), plain("NCHW", "OIHW")
OURS = CHANNELS_LAST._replace(
    conv=lambda x, kernel, stride, padding: layers.convolution(
        x, kernel, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=layers.NHWC, **layers.PLAIN
    ),
    pool=layers.max_pool,
)


def ascent(network: Callable[..., Any], style: Style, weights: Sequence[np.ndarray], images: np.ndarray, fast: bool):
    """A function without arguments that takes STEPS steps along the gradient of the margin, in JAX."""
    params = [jnp.asarray(style.kernel(w)) for w in weights]
    classifier = Classifier(lambda params, x: network(style, params, style.start(x)), params, fast=fast)

    @jax.jit
    def steps(classifier, x):
        gradient = jax.grad(lambda x: margin(classifier(x)))
        return lax.fori_loop(0, STEPS, lambda _, x: x + STEP * gradient(x), x)

    return partial(steps, classifier, jnp.asarray(images))


def margin(logits: Any) -> Any:
    return (logits[:, 0] - logits[:, 1]).sum()


def ascent_in_torch(network: Callable[..., Any], weights: Sequence[np.ndarray], images: np.ndarray):
    style = Style(
        start=lambda x: x.permute(0, 3, 1, 2),
        kernel=lambda k: torch.tensor(k.transpose(3, 2, 0, 1) if k.ndim == 4 else k),
        conv=lambda x, kernel, stride, padding: torch.conv2d(x, kernel, stride=stride, padding=padding),
        pool=lambda x: torch.max_pool2d(x, 2),
        mean=lambda x: x.mean((2, 3)),
        flat=lambda x: x.permute(0, 2, 3, 1).flatten(1),
        relu=lambda x: x.relu(),
    )
    params = [style.kernel(w) for w in weights]

    def steps():
        x = torch.tensor(images)
        for _ in range(STEPS):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(margin(network(style, params, style.start(x))), x)
            x = x + STEP * gradient
        return x.detach().numpy()

    return steps


def contenders(name: str) -> dict[str, Callable[[], Any]]:
    network, shapes = NETWORKS[name]
    rng = np.random.default_rng(0)
    weights = [(rng.normal(size=s) / math.sqrt(math.prod(s[:-1]))).astype(np.float32) for s in shapes]
    images = rng.random((BATCH, 28, 28, 1), np.float32)
    ways = {
        "channels last": ascent(network, CHANNELS_LAST, weights, images, True),
        "channels first": ascent(network, CHANNELS_FIRST, weights, images, True),
        "as written": ascent(network, CHANNELS_LAST, weights, images, False),
        "our layers": ascent(network, OURS, weights, images, True),
    }
    if torch:
        ways["PyTorch"] = ascent_in_torch(network, weights, images)
    moved = {way: np.asarray(run()) - images for way, run in ways.items()}
    for way, r in moved.items():
        errors = np.abs(r - moved["as written"]).max((1, 2, 3)) / np.abs(r).max()
        if np.median(errors) > 1e-4:  # the median, as an image that crosses a kink may have another gradient
            raise SystemExit(f"{name}: the gradients of {way!r} differ by {np.median(errors):.1e} of the largest")
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(*(f"{name}: {value}" for name, value in machine().items()), sep="\n")
    for name in NETWORKS:
        seconds = take_turns(contenders(name), args.rounds)
        each = {way: min(times) / BATCH / STEPS for way, times in seconds.items()}
        print(f"\n{name}, ms a gradient an image, and as a share of {' and of '.join(list(each)[3:])}")
        for way, time in each.items():
            ratios = (f"{time / each[other]:5.2f}" for other in list(each)[3:])
            print(f"{way:15} {1e3 * time:7.3f}  ", *ratios)


if __name__ == "__main__":
    main()
