"""Linear classifiers, and the exact distance of the nearest adversarial image, inside the box or without it."""

import jax.numpy as jnp
import numpy as np

from mnist_jax import Classifier, geometry


def apply(params, images):
    return images.reshape(len(images), -1) @ params["w"] + params["b"][None]


def random_problem(rng, *, batch=32, shape=(5, 4, 1), classes=5, free=False):
    """A classifier, images and labels; `free` keeps the images away from the box, which then does not bind.

    The weights are float32 numbers, in float64: nothing is lost on the way into a classifier.
    """
    pixels = int(np.prod(shape))
    w = rng.normal(size=(pixels, classes)).astype(np.float32).astype(float)
    images = rng.uniform(size=(batch, pixels))
    if free:
        images = 0.45 + 0.1 * images
    else:
        images[rng.uniform(size=images.shape) < 0.3] = 0
        images[rng.uniform(size=images.shape) < 0.1] = 1
    b = (-w.sum(0) / 2 + 0.2 * rng.normal(size=classes)).astype(np.float32).astype(float)
    images = images.astype(np.float32).astype(float)
    return w, b, images.reshape(batch, *shape), (images @ w + b).argmax(1)


def classifier(w, b, dtype=np.float32):
    return Classifier(apply, {"w": jnp.asarray(w, dtype), "b": jnp.asarray(b, dtype)})


def whole_numbers(shape, classes, seed=0):
    """A classifier whose logits of whole pixels are exact, in any order of summation."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-3, 4, (int(np.prod(shape)), classes)).astype(np.float32)
    return Classifier(apply, {"w": w, "b": np.arange(classes, dtype=np.float32)})


def grey_levels(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def nearest(w, b, images, labels, p):
    """Distances `[B]`: for each other class the least p-norm in the box at which the margin is zero, by bisection.

    For p = 0 how many pixels it takes.
    """
    x = images.reshape(len(images), -1)
    logits = x @ w + b
    best = np.full(len(x), np.inf)
    for other in range(len(b)):
        gradient = w[:, labels].T - w[:, [other]].T
        margin = logits[np.arange(len(x)), labels] - logits[:, other]
        room = np.where(gradient < 0, 1 - x, x)
        distance = [one_plane(*row, p) for row in zip(np.abs(gradient), room, margin, strict=True)]
        best = np.where(labels == other, best, np.minimum(best, distance))
    return best


def one_plane(a, room, fall, p):
    if (a * room).sum() <= fall:
        return np.inf
    if p == 0:  # the pixels that lower the margin most, each as far as the box allows
        return 1.0 + np.searchsorted(np.sort(a * room)[::-1].cumsum(), fall)
    if p == 1:  # fractional knapsack
        order = np.argsort(-a)
        before = np.cumsum((a * room)[order]) - (a * room)[order]
        steps = np.where((a * room)[order] > 0, (a * room)[order], 1)
        return (room[order] * np.clip((fall - before) / steps, 0, 1)).sum()
    weight = (a / a.max()) ** (geometry.dual(p) - 1)
    low, high = 1e-15, 1e15
    for _ in range(100):
        middle = (low * high) ** 0.5
        enough = (a * np.minimum(room, middle * weight)).sum() >= fall
        low, high = (low, middle) if enough else (middle, high)
    return np.linalg.norm(np.minimum(room, high * weight), p)
