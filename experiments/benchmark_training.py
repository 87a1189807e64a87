"""Times one epoch of training, and other formulations of the CNN's layers that were tried.

    python experiments/benchmark_training.py --networks MLP CNN --rounds 5 --fraction 0.2

The contenders take turns in one process, so that disturbances of the machine affect all of them. A ratio is a median
over the rounds divided by this project's median over the same rounds: above 1 is slower than this project.

- ours: `training.epoch` with the original hyperparameters (Adam, batch 32), the program that real training runs.
- plain: the same networks with `lax.conv_general_dilated` and `nnx.max_pool`, as other backends than the CPU get them.
- torch: the original project's loop, where PyTorch is installed: a shuffling DataLoader over tensors, the network in
  train mode with a softmax at its end, cross-entropy on top, Adam. "indexed" replaces the DataLoader, which collects
  a batch item by item, by indexing the tensors.

A formulation is timed only after its logits and gradients have agreed with those of `lax.conv_general_dilated`.
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mnist_jax import data, layers, losses, training
from mnist_jax.device import cores
from mnist_jax.networks import CNN, NETWORKS, ORIGINALS, Network, Weights

try:
    import torch
    import torch_networks
except ImportError:
    torch = None

Block = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # images, kernel, bias -> relu(max_pool(conv + bias))
Logits = Callable[[Weights, jax.Array], jax.Array]

FIRST_USE = """
import time; start = time.perf_counter()
import jax
from mnist_jax import data, networks, training
imported = time.perf_counter()
train = jax.device_put(data.load().train)
loaded = time.perf_counter()
network = networks.by_name({name!r})
recipe = network.recipe("original")
state = training.start(network, recipe, jax.random.key(0), recipe.steps(len(train.labels)))
next(training.epoch(network, recipe, train, state))
print(imported - start, loaded - imported, time.perf_counter() - loaded)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(ORIGINALS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, default=1.0, help="of an epoch to run; times are scaled up")
    parser.add_argument("--formulations", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    args = parser.parse_args()
    if args.rounds < 1 or not 0.002 <= args.fraction <= 1:
        parser.error("--rounds must be at least 1 and --fraction between 0.002 and 1")

    train = jax.device_put(data.load().train)
    results: dict[str, Any] = {"machine": machine(), "fraction": args.fraction, "rounds": args.rounds}
    print(*(f"{name}: {value}" for name, value in results["machine"].items()), sep="\n")
    if torch is None:
        print("PyTorch is not installed: the original loop is left out.")
    results["matrix product, GFLOP/s"] = rate = matrix_product_rate(args.rounds)
    print(f"matrix product, float32, 2048 x 2048, through jax: {rate:.0f} GFLOP/s")
    results["epochs"] = epochs_table(args.networks, train, args.fraction, args.rounds, rate)
    results["start"] = start_table(args.networks, train)
    if args.formulations:
        results["formulations"] = formulations_table(train, args.rounds, args.fraction)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


def machine() -> dict[str, str]:
    """The device, the processor and the versions of packages, in words."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy") + (("torch",) if torch else ())
    return {
        "device": ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()})),
        "cores": f"{cores()} usable of {os.cpu_count()}, {processor()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def take_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each contender in each round, after one call of each that isn't counted.

    Each round begins with another contender.
    """
    for run in contenders.values():
        jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            jax.block_until_ready(contenders[name]())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product_rate(rounds: int, size: int = 2048) -> float:
    """The speed of a product of two float32 matrices of this size in GFLOP/s, the median over the rounds."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a: a @ a)
    seconds = take_turns({"product": lambda: product(a)}, max(rounds, 5))["product"]
    return 2e-9 * size**3 / statistics.median(seconds)


def flop_per_image(network: type[Network]) -> int:
    """FLOP per image of a training step: forward, weight gradients, and input gradients of all layers but the first."""
    image = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    weights = jax.eval_shape(network.initialize, jax.random.key(0))
    with layers.plain():
        forward = list(products(jax.make_jaxpr(network.apply)(weights, image).jaxpr))
    return 3 * sum(forward) - forward[0]


def products(jaxpr: Any) -> Iterator[int]:
    """The FLOP of each product of matrices and each convolution in a jaxpr."""
    for eqn in jaxpr.eqns:
        for inner in jax.core.jaxprs_in_params(eqn.params):
            yield from products(inner)
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            yield 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            outputs = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            yield 2 * eqn.outvars[0].aval.size * kernel.size // outputs


def table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]))


def ratio(seconds: list[float], to: list[float]) -> float:
    """The ratio of two medians."""
    return statistics.median(seconds) / statistics.median(to)


# One epoch ------------------------------------------------------------------------------------------------------------


def epochs_table(names: list[str], train: data.Split, fraction: float, rounds: int, rate: float) -> dict[str, Any]:
    """A row for each network and contender, with the times of a whole epoch."""
    images = max(32, round(fraction * len(train.labels)))
    scale = len(train.labels) / images
    part = data.Split(train.images[:images], train.labels[:images])
    print(f"\nOne epoch of {len(train.labels):,} images, from {rounds} rounds of {images:,} images:\n")
    print(
        "FLOP: 2 for each multiply-add of matrix products and convolutions, in the forward pass, the gradients by the"
    )
    print("weights, and the gradients by the inputs of all layers but the first.\n")
    results, rows = {}, []
    for name in names:
        print(f"{name} ...", file=sys.stderr)
        network = NETWORKS[name]
        contenders: dict[str, Callable[[], Any]] = {"ours": partial(epoch, network, part)}
        if name.startswith("CNN"):
            contenders["plain"] = partial(epoch, plain(network), part)
        if torch:
            contenders |= torch_epochs(name, network, part)
        seconds = {k: [scale * t for t in v] for k, v in take_turns(contenders, rounds).items()}
        results[name] = {"seconds": seconds, "MFLOP an image": flop_per_image(network) / 1e6}
        for who, times in seconds.items():
            speed = 1e-9 * flop_per_image(network) * len(train.labels) / statistics.median(times)
            flop = f"{flop_per_image(network) / 1e6:.2f}"
            cells = [f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{ratio(times, seconds['ours']):.2f}"]
            rows.append([f"{name} {who}", *cells, flop, f"{speed:.1f}", f"{speed / rate:.0%}"])
    table(["", "median s", "min s", "of ours", "MFLOP/image", "GFLOP/s", "of matrix product"], rows)
    return results


def epoch(network: type[Network], train: data.Split) -> training.State:
    """Trains one epoch by recipe `original`, from new weights."""
    recipe = network.recipe("original")
    state = training.start(network, recipe, jax.random.key(0), recipe.steps(len(train.labels)))
    for progress in training.epoch(network, recipe, train, state):
        state = progress.state
    return state


def plain(network: type[Network]) -> type[Network]:
    """The network as every backend but the CPU gets it: `lax.conv_general_dilated` and `nnx.max_pool`."""

    class Plain(network):  # type: ignore[valid-type, misc]
        def __call__(self, *arguments, **options):
            with mock.patch.object(lax, "platform_dependent", lambda *arrays, default, **_: default(*arrays)):
                return super().__call__(*arguments, **options)

    return Plain


def torch_epochs(name: str, network: type[Network], train: data.Split) -> dict[str, Callable[[], None]]:
    """The original loop, and the same one without its DataLoader."""
    torch.set_num_threads(cores())
    images = torch.tensor(np.asarray(data.normalize(np.asarray(train.images)))).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(np.asarray(train.labels)).long()
    model = torch_networks.network(name).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=network.learning_rate)
    dataset = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(dataset, batch_size=network.batch_size, shuffle=True)

    def indexed():
        return ((images[i], labels[i]) for i in torch.randperm(len(images)).split(network.batch_size))

    def run(batches: Callable[[], Any]) -> None:
        for x, y in batches():
            optimizer.zero_grad()
            model.loss(x, y).backward()
            optimizer.step()

    return {"torch": lambda: run(lambda: loader), "torch, indexed": lambda: run(indexed)}


def start_table(names: list[str], train: data.Split) -> dict[str, Any]:
    """Times before the first training step: tracing and compiling here, and the start of a fresh process."""
    print("\nBefore the first step, in seconds. trace, compile: the program of real training and the plain one, here.")
    print("import, data, first steps: a fresh process, with no compilation cache, until the first 71 steps are done.\n")
    results, rows = {}, []
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    for name in names:
        row = [*compile_seconds(NETWORKS[name], train)]
        row += compile_seconds(plain(NETWORKS[name]), train) if name.startswith("CNN") else [math.nan, math.nan]
        command = [sys.executable, "-c", FIRST_USE.format(name=name)]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        row += map(float, output.split())
        results[name] = row
        rows.append([name, *("-" if math.isnan(s) else f"{s:.2f}" for s in row), f"{sum(row[4:]):.2f}"])
    table(["", "trace", "compile", "plain: trace", "compile", "import", "data", "first steps", "in all"], rows)
    return results


def compile_seconds(network: type[Network], train: data.Split) -> list[float]:
    """Seconds of tracing and of compiling the program of 100 training steps."""
    recipe = network.recipe("original")
    total = recipe.steps(len(train.labels))
    state = training.start(network, recipe, jax.random.key(0), total)
    batches = np.zeros((100, recipe.batch_size), np.int32)
    start = time.perf_counter()
    lowered = training.train_steps.lower(network, recipe, total, state, train, batches, jax.random.key(0))
    traced = time.perf_counter()
    lowered.compile()
    return [traced - start, time.perf_counter() - traced]


# The formulations that were tried -------------------------------------------------------------------------------------
#
# A convolution is a function of images and kernel, with stride 1 and no padding; a pool is a function of images; a
# block is a function of images, kernel and bias, relu(max_pool(convolution(images) + bias)). The layout of images is
# NHWC in functions whose names begin with nhwc, and CHWN (channels first, batch last) in the others.


def nhwc_columns(tile: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution by patches that computes `tile` neighbouring columns of the output with one matrix."""
    h, w, _, outputs = kernel.shape
    matrix = tile_kernel(kernel, 1, tile)
    y = windows(x, h, w + tile - 1, tile=tile, axis=-1) @ matrix.reshape(-1, tile * outputs)
    return y.reshape(*y.shape[:2], -1, outputs)


def tile_kernel(kernel: jax.Array, rows: int, columns: int) -> jax.Array:
    """Copies of a kernel `[h, w, C, O]` moved to each output of a tile of `rows` by `columns`.

    Returns:
      `[h + rows - 1, w + columns - 1, C, rows * columns, O]`.
    """
    moved = [
        jnp.pad(kernel, ((i, rows - 1 - i), (j, columns - 1 - j), (0, 0), (0, 0)))
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.stack(moved, 3)


def quarters(x: jax.Array) -> list[jax.Array]:
    """The four arrays of pixels that have the same place in each 2x2 window."""
    return [x[:, i::2, j::2] for i in range(2) for j in range(2)]


def plain_maximum(parts: list[jax.Array]) -> jax.Array:
    a, b, c, d = parts
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@jax.custom_jvp
def winner(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum with a gradient that goes to one of the two, which takes a single comparison."""
    return jnp.maximum(a, b)


@winner.defjvp
def winner_jvp(primals, tangents):
    return jnp.maximum(*primals), jnp.where(primals[0] >= primals[1], *tangents)


def winner_of_pairs(parts: list[jax.Array]) -> jax.Array:
    a, b, c, d = parts
    return winner(winner(a, b), winner(c, d))


def first_maximum(parts) -> tuple[jax.Array, jax.Array]:
    """The maximum of four arrays, and the index of the first array that has it."""
    largest = plain_maximum(parts)
    a, b, c, _ = parts
    return largest, jnp.where(a == largest, 0, jnp.where(b == largest, 1, jnp.where(c == largest, 2, 3)))


@jax.custom_jvp
def masked_pool(x: jax.Array) -> jax.Array:
    """A pool of CHWN whose gradient is broadcast over each window and masked, and so written once, without strides."""
    return plain_maximum(quarters(x))


@masked_pool.defjvp
def masked_pool_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    largest, index = first_maximum(quarters(x))
    c, h, w, n = largest.shape
    place = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    mask = index.astype(jnp.int8)[:, :, None, :, None] == place
    return largest, jnp.where(mask, t.reshape(c, h, 2, w, 2, n), 0).sum((2, 4))


@jax.custom_jvp
def masked_maximum(y: jax.Array) -> jax.Array:
    """The maximum over the first axis, of size 4, with a masked gradient as in `masked_pool`."""
    return plain_maximum(list(y))


@masked_maximum.defjvp
def masked_maximum_jvp(primals, tangents):
    (y,), (t,) = primals, tangents
    largest, index = first_maximum(list(y))
    place = jnp.arange(4, dtype=jnp.int8).reshape(4, *[1] * largest.ndim)
    return largest, jnp.where(index.astype(jnp.int8) == place, t, 0).sum(0)


def windows(x: jax.Array, h: int, w: int, stride: int = 1, tile: int = 1, axis: int = 0) -> jax.Array:
    """The patches of h by w pixels, `[C, H, W, N]` to `[h * w * C, H', W', N]`.

    They begin at every `stride`-th row and every `tile`-th column, and are concatenated along `axis`.
    """
    height, width = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // tile + 1
    slices = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + tile * (width - 1) + 1 : tile]
        for i in range(h)
        for j in range(w)
    ]
    return jnp.concatenate(slices, axis)


def times_matrix(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """The product of the transpose of `[K, O]` and `[K, ...]`: `[O, ...]`."""
    return (matrix.T @ x.reshape(len(x), -1)).reshape(-1, *x.shape[1:])


def patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution as the product of its kernel and the patches of its input."""
    return times_matrix(kernel.reshape(-1, kernel.shape[-1]), windows(x, *kernel.shape[:2]))


def columns(tile: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`nhwc_columns` for CHWN."""
    h, w, _, outputs = kernel.shape
    matrix = tile_kernel(kernel, 1, tile).reshape(-1, tile * outputs)
    y = times_matrix(matrix, windows(x, h, w + tile - 1, tile=tile))
    _, height, width, n = y.shape
    return y.reshape(tile, outputs, height, width, n).transpose(1, 2, 3, 0, 4).reshape(outputs, height, -1, n)


def rows_of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution that gathers only the rows of patches, and adds up a product for each column of the kernel."""
    h, w, _, outputs = kernel.shape
    width = x.shape[2] - w + 1
    gathered = windows(x, h, 1)
    products = [times_matrix(kernel[:, j].reshape(-1, outputs), gathered[:, :, j : j + width]) for j in range(w)]
    return functools.reduce(jnp.add, products)


def multiply_and_add(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of one input channel as a sum of shifted images times numbers, which XLA fuses into one loop."""
    h, w, _, outputs = kernel.shape
    height, width = x.shape[1] - h + 1, x.shape[2] - w + 1
    weights = kernel.reshape(h, w, outputs, 1, 1, 1)
    products = [weights[i, j] * x[:, i : i + height, j : j + width] for i in range(h) for j in range(w)]
    return functools.reduce(jnp.add, products)


@jax.custom_vjp
def correlation(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`patches` with the input gradient computed by `patches` too, from the padded gradient and the flipped kernel."""
    return patches(x, kernel)


def correlation_forward(x, kernel):
    return patches(x, kernel), (x, kernel)


def correlation_backward(residuals, g):
    x, kernel = residuals
    h, w, c, outputs = kernel.shape
    by_kernel = windows(x, h, w).reshape(h * w * c, -1) @ g.reshape(outputs, -1).T
    padded = jnp.pad(g, ((0, 0), (h - 1, h - 1), (w - 1, w - 1), (0, 0)))
    return patches(padded, kernel[::-1, ::-1].swapaxes(2, 3)), by_kernel.reshape(kernel.shape)


correlation.defvjp(correlation_forward, correlation_backward)


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Winograd's convolution F(2x2, 3x3), Lavin & Gray 2016: 16 multiplications for four outputs in place of 36."""
    images = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
    kernels = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
    outputs = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])
    (c, height, width, n), o = x.shape, kernel.shape[-1]
    h, w = (height - 2) // 2, (width - 2) // 2
    tiles = [[x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for j in range(4)] for i in range(4)]
    v = jnp.stack([tile for row in on_both_sides(images, tiles) for tile in row]).reshape(16, c, -1)
    u = jnp.einsum("ai,bj,ijco->aboc", kernels, kernels, kernel).reshape(16, o, c)
    m = (u @ v).reshape(4, 4, o, h, w, n)
    y = on_both_sides(outputs, m)
    return jnp.stack([jnp.stack(row, 3) for row in y], 2).reshape(o, 2 * h, 2 * w, n)


def on_both_sides(matrix: np.ndarray, grid: Any) -> list[list[jax.Array]]:
    """`matrix @ grid @ matrix.T` for a square grid of arrays and numbers that are -1, 0 or 1."""

    def times(parts):
        return [sum(int(m) * part for m, part in zip(row, parts, strict=True) if m) for row in matrix]

    size = range(matrix.shape[1])
    columns_done = [times([grid[i][j] for i in size]) for j in size]
    return [times([columns_done[j][i] for j in size]) for i in range(len(matrix))]


def separate(convolution: Callable, pool: Callable, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jax.nn.relu(pool(convolution(x, kernel) + bias[:, None, None, None]))


def bias_last(convolution: Callable, pool: Callable, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A block that adds the bias after the pool, to a quarter of the pixels, with the same bits."""
    return jax.nn.relu(pool(convolution(x, kernel)) + bias[:, None, None, None])


def pool_tiles(slices: Callable, maximum: Callable, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A block that computes the four outputs of a pool's window with one matrix, so that the pool needs no strides."""
    h, w, _, outputs = kernel.shape
    gathered = slices(x, h + 1, w + 1)
    matrix = tile_kernel(kernel, 2, 2).reshape(len(gathered), 4 * outputs)
    y = times_matrix(matrix, gathered)
    return jax.nn.relu(maximum(y.reshape(4, outputs, *y.shape[1:])) + bias[:, None, None, None])


def phases(x: jax.Array) -> list[list[jax.Array]]:
    """The pixels separated by even and odd rows and columns; odd sizes are padded with zeros."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    c, height, width, n = x.shape
    x = x.reshape(c, height // 2, 2, width // 2, 2, n)
    return [[x[:, :, i, :, j] for j in range(2)] for i in range(2)]


def windows_of_phases(x: jax.Array, h: int, w: int) -> jax.Array:
    """`windows(x, h, w, 2, 2)` by slices of `phases` without strides, whose gradients are plain sums."""
    parts = phases(x)
    height, width = (x.shape[1] - h) // 2 + 1, (x.shape[2] - w) // 2 + 1
    slices = [
        parts[i % 2][j % 2][:, i // 2 : i // 2 + height, j // 2 : j // 2 + width] for i in range(h) for j in range(w)
    ]
    return jnp.concatenate(slices)


def patches_by_phase(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A block by patches that are ordered so that the four outputs of a pool's window are an axis."""
    h, w, _, outputs = kernel.shape
    parts = phases(x)
    height, width = (x.shape[1] - h + 1) // 2, (x.shape[2] - w + 1) // 2

    def four(i, j):
        places = [(i + a, j + b) for a in range(2) for b in range(2)]
        return [parts[p % 2][q % 2][:, p // 2 : p // 2 + height, q // 2 : q // 2 + width] for p, q in places]

    gathered = jnp.concatenate([jnp.stack(four(i, j), 1) for i in range(h) for j in range(w)])
    y = times_matrix(kernel.reshape(-1, outputs), gathered)
    return jax.nn.relu(masked_maximum(y.swapaxes(0, 1)) + bias[:, None, None, None])


def head(weights: Weights, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x @ weights["classifier.0.kernel"] + weights["classifier.0.bias"])
    return x @ weights["classifier.2.kernel"] + weights["classifier.2.bias"]


def nhwc(first: Block, second: Block) -> Logits:
    def logits(weights: Weights, x: jax.Array) -> jax.Array:
        x = first(x, weights["features.0.kernel"], weights["features.0.bias"])
        x = second(x, weights["features.3.kernel"], weights["features.3.bias"])
        return head(weights, x.reshape(len(x), -1))

    return logits


def nhwc_block(tile: int, x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return jax.nn.relu(winner_of_pairs(quarters(nhwc_columns(tile, x, kernel) + bias)))


def batch_last(first: Block, second: Block | None = None) -> Logits:
    """The logits by blocks in CHWN; images and features are transposed once, before the first and after the last."""

    def logits(weights: Weights, x: jax.Array) -> jax.Array:
        x = x.transpose(layers.BATCH_LAST)
        x = first(x, weights["features.0.kernel"], weights["features.0.bias"])
        x = (second or first)(x, weights["features.3.kernel"], weights["features.3.bias"])
        x = x.transpose(layers.BATCH_LAST)
        return head(weights, x.reshape(len(x), -1))

    return logits


def transposed_inside(block: Block) -> Block:
    return lambda x, kernel, bias: block(x.transpose(layers.BATCH_LAST), kernel, bias).transpose(layers.BATCH_LAST)


def in_training(weights: Weights, x: jax.Array) -> jax.Array:
    return CNN.apply_training(weights, x, jax.random.key(0))[0]


def formulations() -> dict[str, Logits]:
    def jnp_max(x):
        return plain_maximum(quarters(x))

    def pairs(x):
        return winner_of_pairs(quarters(x))

    usual = partial(separate, patches, pairs)
    masked = partial(bias_last, patches, masked_pool)
    strided = partial(windows, stride=2, tile=2)
    phased_tiles = partial(pool_tiles, windows_of_phases, masked_maximum)
    return {
        "layers.py in training mode": in_training,
        "layers.py in evaluation mode": CNN.apply,
        "lax.conv_general_dilated, nnx.max_pool": plain(CNN).apply,
        "NHWC: patches, pool as pairs of slices": nhwc(partial(nhwc_block, 1), partial(nhwc_block, 1)),
        "NHWC: the same, conv1 by tiles of 4 columns": nhwc(partial(nhwc_block, 4), partial(nhwc_block, 1)),
        "NHWC: the same, conv2 by tiles of 2 columns": nhwc(partial(nhwc_block, 4), partial(nhwc_block, 2)),
        "CHWN: patches, pool by jnp.maximum of slices": batch_last(partial(separate, patches, jnp_max)),
        "CHWN: patches, pool as pairs of slices (A)": batch_last(usual),
        "A, transposed inside every layer": nhwc(transposed_inside(usual), transposed_inside(usual)),
        "A, bias after the pool": batch_last(partial(bias_last, patches, pairs)),
        "A, conv1 by tiles of 4 columns": batch_last(partial(separate, partial(columns, 4), pairs), usual),
        "A, conv2 by tiles of 2 columns": batch_last(usual, partial(separate, partial(columns, 2), pairs)),
        "A, conv1 as multiply and add": batch_last(partial(separate, multiply_and_add, pairs), usual),
        "A, conv2 by rows of patches": batch_last(usual, partial(separate, rows_of_patches, pairs)),
        "A, conv2 by Winograd F(2x2, 3x3)": batch_last(usual, partial(separate, winograd, pairs)),
        "A, conv2's input gradient as a correlation": batch_last(usual, partial(separate, correlation, pairs)),
        "bias after the pool, masked pool gradient (B)": batch_last(masked),
        "B, conv1 by pool tiles": batch_last(partial(pool_tiles, strided, masked_maximum), masked),
        "B, conv1 by pool tiles, jnp.maximum": batch_last(partial(pool_tiles, strided, plain_maximum), masked),
        "B, conv1 by pool tiles of phases (C)": batch_last(phased_tiles, masked),
        "C, transposed inside every layer": nhwc(transposed_inside(phased_tiles), transposed_inside(masked)),
        "C, conv2 so too": batch_last(phased_tiles),
        "C, conv2 by patches in the order of phases": batch_last(phased_tiles, patches_by_phase),
    }


def check(logits: Logits, weights: Weights) -> float:
    """The largest relative difference of logits and gradients to those of `lax.conv_general_dilated`.

    Raises `AssertionError` above 1e-4.
    """
    # Random images, as MNIST's black pixels have ties in the pools, whose gradient may go to any of the pixels.
    images = jax.random.uniform(jax.random.key(1), (8, *CNN.shape))
    labels = jnp.arange(8)

    @partial(jax.jit, static_argnums=0)
    def everything(logits, weights, images):
        y, pullback = jax.vjp(logits, weights, images)
        return y, pullback(jax.grad(lambda y: margin(y, labels).sum())(y))

    with jax.default_matmul_precision("highest"):
        got, want = (everything(f, weights, images) for f in (logits, plain(CNN).apply))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    error = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)
    assert error <= 1e-4, error
    return error


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The label's logit minus the largest other logit, `[B]`."""
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return logits.max(-1, where=own, initial=-jnp.inf) - logits.max(-1, where=~own, initial=-jnp.inf)


def steps_of(logits: Logits, train: data.Split, steps: int, flat: bool = False) -> tuple[Callable[[], Any], int]:
    """A program of `steps` training steps, without the other work of an epoch, and that number."""
    batches = np.random.default_rng(0).permutation(len(train.labels))[: steps * CNN.batch_size].reshape(steps, -1)
    optimizer = CNN.optimizer(CNN.learning_rate)
    optimizer = optax.flatten(optimizer) if flat else optimizer

    @jax.jit
    def run(weights, train, batches):
        def step(carry, batch):
            weights, state = carry
            images, labels = data.normalize(train.images[batch]), train.labels[batch]
            gradients = jax.grad(lambda w: losses.cross_entropy_of_softmax(logits(w, images), labels).mean())(weights)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(weights, updates), state), None

        return lax.scan(step, (weights, optimizer.init(weights)), batches)[0]

    return partial(run, CNN.initialize(jax.random.key(0)), train, batches), steps


def attack_of(
    logits: Logits, weights: Weights, train: data.Split, batch: int, steps: int
) -> tuple[Callable[[], Any], int]:
    """A program of `steps` gradient steps that lower the margin, as in an attack, and that number."""

    @jax.jit
    def run(weights, images, labels):
        gradient = jax.grad(lambda x: margin(logits(weights, x), labels).sum())
        return lax.fori_loop(0, steps, lambda _, x: jnp.clip(x - 1e-3 * gradient(x), 0, 1), images)

    return partial(run, weights, data.normalize(train.images[:batch]), train.labels[:batch]), steps


def formulations_table(train: data.Split, rounds: int, fraction: float) -> dict[str, Any]:
    weights = CNN.initialize(jax.random.key(0))
    tried = formulations()
    errors = {name: check(logits, weights) for name, logits in tried.items()}
    steps = max(10, round(200 * fraction))
    runs = {f"step, {CNN.batch_size}": {name: steps_of(logits, train, steps) for name, logits in tried.items()}}
    runs[f"step, {CNN.batch_size}"]["layers.py, Adam on one vector"] = steps_of(in_training, train, steps, flat=True)
    for batch in (250, 50):
        runs[f"gradient, {batch}"] = {
            name: attack_of(logits, weights, train, batch, max(2, steps // 5)) for name, logits in tried.items()
        }
    results: dict[str, Any] = {"error": errors}
    print("\nFormulations of the CNN, ms: a training step of a batch, the gradient of the margin by a batch of images,")
    print(f"from {rounds} rounds. Smallest time in brackets. error: largest difference to lax.conv_general_dilated,")
    print("relative to the largest number, of logits and of gradients by weights and images.\n")
    for what, contenders in runs.items():
        print(f"{what} ...", file=sys.stderr)
        seconds = take_turns({name: run for name, (run, _) in contenders.items()}, rounds)
        results[what] = {name: [t / contenders[name][1] for t in times] for name, times in seconds.items()}
    ours, *_ = tried
    rows = []
    for name in runs[f"step, {CNN.batch_size}"]:
        cells = [f"{errors[name]:.0e}" if name in errors else ""]
        for what in runs:
            if times := results[what].get(name):
                cells += [f"{1e3 * statistics.median(times):.2f} ({1e3 * min(times):.2f})"]
                cells += [f"{ratio(times, results[what][ours]):.2f}"]
            else:
                cells += ["", ""]
        rows.append([name, *cells])
    table(["", "error", *(cell for what in runs for cell in (what, "of ours"))], rows)
    return results


if __name__ == "__main__":
    main()
