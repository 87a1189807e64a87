"""Certificates against exact minima, exact arithmetic, attacks, and functions that have fooled other verifiers."""

import itertools
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import linear
import numpy as np
import pytest
from jax import lax
from scipy import optimize, special

from mnist_jax import Classifier, attack, certify, data, load_classifier
from mnist_jax.certify import driver, largest_radius
from mnist_jax.certify.constants import Constants
from mnist_jax.certify.ibp import kernel as by_intervals
from mnist_jax.geometry import INF, exact_norm
from mnist_jax.jaxprs import program

METHODS = {"ibp": certify.ibp, "crown": certify.crown, "alpha_crown": partial(certify.alpha_crown, steps=4)}
SHAPE = (2, 3, 1)


def relu_network(params, x):
    h = jax.nn.relu(x.reshape(len(x), -1) @ params[0] + params[1][None])
    h = jax.nn.relu(h @ params[2] + params[3][None])
    return h @ params[4] + params[5][None]


def max_network(params, x):
    h = x.reshape(len(x), -1) @ params[0] + params[1][None]
    h = jnp.maximum(jnp.maximum(h[:, ::2], h[:, 1::2]), -0.5)
    h = jnp.abs(h @ params[2] + params[3][None])
    return h @ params[4] + params[5][None]


def weights(rng, *sizes, pixels=6):
    params = []
    for inputs, outputs in itertools.pairwise((pixels, *sizes)):
        params += [rng.normal(size=(inputs, outputs)) / np.sqrt(inputs), rng.normal(size=outputs) / 4]
    return tuple(np.asarray(p, np.float32) for p in params)


def least_margin(layers, x, label, radius):
    """The exact least margin of a ReLU network over an Linf ball in [0, 1], by mixed-integer programs.

    Layers are `(w, b)`, between which are ReLUs; everything in double precision.
    """
    low, high = np.maximum(x - radius, 0), np.minimum(x + radius, 1)
    bounds, rows, limits, integral = [(l, h) for l, h in zip(low, high, strict=True)], [], [], [0] * len(x)
    inputs = list(range(len(x)))
    for w, b in layers[:-1]:
        center, width = (low + high) / 2 @ w + b, (high - low) / 2 @ np.abs(w)
        outputs = []
        for j in range(w.shape[1]):
            l, h = center[j] - width[j] - 1e-5, center[j] + width[j] + 1e-5
            y, s = len(bounds), len(bounds) + 1
            bounds += [(0, max(h, 0)), (0, 1)]
            integral += [0, 1]
            outputs.append(y)
            pre = dict(zip(inputs, w[:, j], strict=True))
            rows.append({**pre, y: -1.0})  # pre + b <= y
            limits.append(-b[j])
            rows.append({**{i: -v for i, v in pre.items()}, y: 1.0, s: -min(l, 0)})  # y <= pre + b - l (1 - s)
            limits.append(b[j] - min(l, 0))
            rows.append({y: 1.0, s: -max(h, 0)})  # y <= h s
            limits.append(0.0)
        low, high = np.maximum(center - width, 0), np.maximum(center + width, 0)
        inputs = outputs
    matrix = np.zeros((len(rows), len(bounds)))
    for i, row in enumerate(rows):
        for j, value in row.items():
            matrix[i, j] += value
    w, b = layers[-1]
    least = np.inf
    for other in set(range(w.shape[1])) - {label}:
        c = np.zeros(len(bounds))
        c[inputs] = w[:, label] - w[:, other]
        found = optimize.milp(
            c,
            constraints=optimize.LinearConstraint(matrix, -np.inf, limits),
            bounds=optimize.Bounds(*np.array(bounds).T),
            integrality=integral,
            options={"mip_rel_gap": 0},
        )
        least = min(least, found.fun + b[label] - b[other])
    return least


def test_no_margin_exceeds_the_exact_minimum():
    rng = np.random.default_rng(0)
    nearly, better = dict.fromkeys(METHODS, 0), 0.0
    for trial in range(100):
        params = weights(rng, 5, 4, 3)
        classifier = Classifier(relu_network, params)
        image = rng.uniform(size=(1, *SHAPE)).astype(np.float32)
        image[0, :, 0] = np.round(image[0, :, 0])
        label = int(classifier(image)[0].argmax())
        radius = np.float32(rng.choice([0.05, 0.2, 0.6]))
        pairs = [(params[i].astype(float), params[i + 1].astype(float)) for i in (0, 2, 4)]
        exact = least_margin(pairs, image.reshape(-1).astype(float), label, float(radius))
        margins = []
        for name, method in METHODS.items():
            result = method(classifier, image, [label], radius)
            margins.append(float(result.margin[0]))
            assert margins[-1] <= exact + 1e-5, (trial, name)
            assert not (result.certified[0] and exact < -1e-5), (trial, name)
            nearly[name] += exact - margins[-1] < 0.02
        assert margins[0] <= min(margins[1:])
        better += margins[2] - margins[1]
    assert better > 0
    assert nearly["crown"] > 40
    assert nearly["alpha_crown"] >= nearly["crown"] > nearly["ibp"]


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_linear_classifier_is_certified_up_to_its_exact_distance(p):
    rng = np.random.default_rng(int(min(p, 9)))
    w, b, images, labels = linear.random_problem(rng, batch=24)
    classifier = linear.classifier(w, b)
    exact = linear.nearest(w, b, images, labels, p)
    radius = largest_radius(classifier, images.astype(np.float32), labels, norm=p)
    assert (radius <= exact).all()
    np.testing.assert_allclose(radius, exact, rtol=3e-3, atol=1e-4)
    for method in METHODS.values():
        result = method(classifier, images.astype(np.float32), labels, exact * 1.001 + 1e-5, norm=p)
        assert not result.certified.any()
        assert result.certified.dtype == bool


@pytest.mark.parametrize("p", [1, 2, INF])
def test_an_image_without_a_finite_bound_is_neither_certified_nor_fooled(p):
    def network(params, x):
        z = x @ params[0]
        g = jax.nn.relu(z) + jax.nn.relu(-z) + 0.05
        return jnp.stack([1 / (g[:, 0] + jnp.abs(z)[:, 0] - x[:, 0] * 0.04) + 9, jnp.abs(z)[:, 1]], 1)

    classifier = Classifier(network, [np.array([[1, -1], [-1, 2]], np.float32)])
    image = np.full((1, 2), 0.5, np.float32)
    result = certify.crown(classifier, image, [0], 0.3, norm=p)
    assert not result.fooled[0]
    assert not result.certified[0]
    np.testing.assert_array_equal(result.images, image)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_maxima_and_absolute_values_in_every_norm(p):
    """No bound may be above the margins at random images and at those of an attack."""
    rng = np.random.default_rng(7)
    sizes = ((6, 8), (4, 5), (5, 3))
    scale = {1: 1.0, 2: 0.4, INF: 0.1}[p]
    for _ in range(4):
        params = []
        for inputs, outputs in sizes:
            params += [rng.normal(size=(inputs, outputs)), rng.normal(size=outputs) / 4]
        classifier = Classifier(max_network, tuple(np.asarray(w, np.float32) for w in params))
        images = rng.uniform(size=(8, *SHAPE)).astype(np.float32)
        labels = np.asarray(classifier(images).argmax(1))
        r = rng.laplace(size=(3000, *images.shape)) if p == 1 else rng.normal(size=(3000, *images.shape))
        r = np.sign(r) if p == INF else r
        r *= scale / exact_norm(r.reshape(-1, 6), p).reshape(*r.shape[:2], 1, 1, 1)
        points = np.clip(images + r, 0, 1).astype(np.float32)
        logits = np.asarray(classifier(points.reshape(-1, *SHAPE)), float).reshape(3000, 8, 3)
        label = np.take_along_axis(logits, labels[None, :, None], 2)[..., 0]
        others = np.where(np.arange(3) == labels[:, None], -np.inf, logits).max(2)
        least = (label - others).min(0)
        margins = [np.asarray(m(classifier, images, labels, scale, norm=p).margin) for m in METHODS.values()]
        for margin in margins:
            assert (margin <= least).all()
        assert (margins[0] <= margins[1]).all()
        assert (least - margins[2]).mean() < 0.7 * (least - margins[0]).mean()


def exactly(params, x):
    """The logits of `relu_network` in exact arithmetic."""
    h = [Fraction(float(v)) for v in np.ravel(x)]
    for i in (0, 2, 4):
        w, b = params[i], params[i + 1]
        h = [
            sum((h[k] * Fraction(float(w[k, j])) for k in range(len(h))), Fraction(float(b[j])))
            for j in range(w.shape[1])
        ]
        h = h if i == 4 else [max(v, Fraction(0)) for v in h]
    return h


def in_this_order(params, x, order):
    """The logits of `relu_network` in single precision; its sums are added up term by term in the given order."""
    h = np.ravel(x).astype(np.float32)
    for i in (0, 2, 4):
        w, b = params[i], params[i + 1]
        sums = np.zeros(w.shape[1], np.float32) if order != "bias first" else b.copy()
        places = range(len(h)) if order != "backwards" else reversed(range(len(h)))
        for k in places:
            sums = (sums + (h[k] * w[k]).astype(np.float32)).astype(np.float32)
        h = sums if order == "bias first" else (sums + b).astype(np.float32)
        h = h if i == 4 else np.maximum(h, 0)
    return h


@pytest.mark.parametrize("kind", ["usual", "huge", "tiny", "cancelling", "mixed", "denormal"])
def test_bounds_hold_in_exact_arithmetic_and_in_every_order(kind):
    rng = np.random.default_rng(sum(map(ord, kind)))
    certified = 0
    for _ in range(12):
        params = [p.copy() for p in weights(rng, 5, 4, 3)]
        if kind == "huge":
            params = [p * np.float32(1e10) for p in params]
        elif kind == "tiny":
            params = [p * np.float32(1e-11) for p in params]
        elif kind == "denormal":
            params = [p * np.float32(1e-20) for p in params]
        elif kind == "cancelling":  # pairs of weights whose difference is lost in single precision
            big = np.float32(10.0 ** rng.integers(6, 9))
            params[0][1] = big + params[0][1]
            params[0][2] = -big + params[0][2]
            params[2][0], params[2][1] = big, -big
        elif kind == "mixed":
            params = [p * (10.0 ** rng.integers(-9, 9, p.shape)).astype(np.float32) for p in params]
        params = tuple(np.asarray(p, np.float32) for p in params)
        classifier = Classifier(relu_network, params)
        image = rng.uniform(size=(1, *SHAPE)).astype(np.float32)
        image[0, 0, 1:] = image[0, 0, 1]  # so that the pairs of weights multiply equal pixels
        true = exactly(params, image)
        label = max(range(3), key=true.__getitem__)
        for radius in (0.0, 1e-6, 0.01, 0.1):
            r = np.float32(radius)
            corners = [np.clip(image + r * s, 0, 1) for s in (0, 1, -1)]
            corners += [np.clip(image + r * rng.choice([-1, 1], size=image.shape), 0, 1) for _ in range(3)]
            corners = [np.clip(c, image - r, image + r).astype(np.float32) for c in corners]
            least = np.inf
            for x in corners:
                if exact_norm((x.astype(float) - image), INF)[0] > radius:
                    continue
                for logits in (
                    exactly(params, x),
                    *(in_this_order(params, x, order) for order in ("forwards", "backwards", "bias first")),
                ):
                    others = [logits[j] for j in range(3) if j != label]
                    least = min(least, float(logits[label] - max(others)))
            for name, method in METHODS.items():
                result = method(classifier, image, [label], radius)
                assert float(result.margin[0]) <= least, (kind, name, radius)
                certified += bool(result.certified[0])
    assert certified > {"usual": 60, "huge": 60, "tiny": 60}.get(kind, -1)


@jax.custom_jvp
def flat(x):
    """Three times x, with a derivative of 0, which is wrong."""
    return 3 * x


flat.defjvp(lambda primals, tangents: (flat(*primals), 0 * tangents[0]))

# Functions of d, by how much a pixel is changed. The margin of the classifier is 0.05 minus the function, which is
# above 0.05, or not finite, somewhere in the ball of radius 0.1, so that the image must not be certified.
TRAPS = {
    "stop_gradient": lambda d: lax.stop_gradient(d * 10),
    "a derivative of 0": lambda d: flat(d * 10 / 3),
    "x x": lambda d: d * d * 100,
    "x - x": lambda d: d * 10 - (d - d) * 7,
    "hidden in a loop": lambda d: lax.fori_loop(0, 3, lambda _, x: x * 2, d * 10 / 8),
    "a narrow bump": lambda d: jax.nn.relu(1 - 1e3 * jnp.abs(d - 0.0997)),
    "a narrow bump, by a maximum": lambda d: jnp.maximum(jnp.minimum(1e3 * d - 98.7, 100.7 - 1e3 * d), 0),
    "not finite in the ball": lambda d: 0 * jnp.log(0.0999 - d),
    "a pole in the ball": lambda d: 1e-9 / (0.05 - d),
    "overflow": lambda d: jnp.exp(jnp.exp(d * 1e3)) * 1e-30,
    "infinity less infinity": lambda d: (d + 1) * 1e38 * 10 - (d + 1) * 1e38 * 10,
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("name", METHODS)
def test_no_trap_is_certified(trap, name):
    def apply(_, x):
        d = x.reshape(len(x), -1)[:, :1] - 0.25
        return jnp.concatenate([0.05 + 0 * d, TRAPS[trap](d)], 1)

    classifier = Classifier(apply, None)
    images = jnp.full((1, *SHAPE), 0.25)
    result = METHODS[name](classifier, images, [0], 0.1)
    assert not result.certified[0]
    assert not np.isnan(result.margin[0])


BIG = np.array([1e8, 1, -1e8], np.float32)  # the exact sum is 1; in single precision it may be 0


def beside(level, value):
    """The function of a classifier with two logits: the constant `level`, and `value(p, x)`."""
    return lambda p, x: jnp.concatenate([level + 0 * x[:, :1], value(p, x)], 1)


def gathered(p, x):
    return jax.nn.relu(x.at[:, jnp.array([0, 7])].get(mode="fill", fill_value=-5.0).sum(1, keepdims=True) + 5)


def summed_in_a_loop(p, x):
    return x[:, :1] * lax.scan(lambda c, v: (c + v, None), jnp.float32(0), p)[0]


def of_one_pixel(join):
    """The sum of `join(copy, pixel)` over a hundred copies of a pixel, where `pixel` is broadcast to all copies."""

    def value(p, x):
        row = jnp.broadcast_to(jax.nn.relu(x[:, :1]), (len(x), 100))
        return join(row, jax.nn.relu(x[:, :1])).sum(1, keepdims=True)

    return value


# Parameters and functions of classifiers. The second logit of each is the larger one, at least in exact arithmetic, for
# an image within 0.1 of the image 0.5, so that this must not be certified.
ROUNDED = {
    "a rounded base of a maximum": (
        BIG,
        lambda p, x: jnp.concatenate([0.5 + 0 * x[:, :1], jnp.maximum(x[:, :1] - 9, p.sum())], 1),
    ),
    "a product of two rounded sums": (BIG, beside(0.2, lambda p, x: x[:, :1] * p.sum() * p.sum())),
    "the fill value of a gather": (None, beside(0.55, gathered)),
    "a sum in a loop": (BIG, beside(0.2, summed_in_a_loop)),
    "a power": (np.float32(0.9954956), beside(0.0049120, lambda p, x: x[:, :1] * lax.integer_pow(p, 1024) / 0.6 * 0.5)),
    "half precision": (BIG, beside(0.2, lambda p, x: x[:, :1] * p.sum().astype(jnp.bfloat16).astype(jnp.float32))),
    "a cast of a weight that may be left out": (
        np.float32(1.003),
        beside(0.601, lambda p, x: x[:, :1] * p.astype(jnp.bfloat16).astype(jnp.float32)),
    ),
    "a number broadcast to a row, product": (None, beside(30.0, of_one_pixel(jnp.multiply))),
    "a number broadcast to a row, maximum": (None, beside(55.0, of_one_pixel(jnp.maximum))),
    "a number broadcast to a row, quotient": (None, beside(55.0, of_one_pixel(lambda a, b: a / (b / a + 1e-9)))),
    "below the least normal number": (
        np.array([1e30, 1e-39], np.float32),
        beside(1.0, lambda p, x: x[:, :1] * p[0] * p[1] * p[0]),
    ),
}


@pytest.mark.parametrize("p", [1, INF])
@pytest.mark.parametrize("case", ROUNDED)
def test_errors_of_rounded_constants_are_charged(case, p):
    params, apply = ROUNDED[case]
    classifier = Classifier(apply, params)
    for method in (certify.ibp, certify.crown):
        assert not method(classifier, np.full((1, 2), 0.5, np.float32), [0], 0.1, norm=p).certified[0]


def test_a_classifier_that_changes_precision_is_refused():
    def apply(_, x):
        return jnp.concatenate([x, x.astype(jnp.float64).astype(x.dtype)], 1)

    with jax.enable_x64(True), pytest.raises(certify.UnsupportedOperation, match="one precision"):
        certify.ibp(Classifier(apply, None), np.full((1, 2), 0.5, np.float32), [0], 0.1)


@pytest.mark.parametrize(
    "what",
    ["scatter-add", "reduce_prod", "lgamma", "float16"],
    ids=["scattered", "a product", "not elementary", "of few exponents"],
)
def test_constants_of_unknown_rounding_are_refused(what):
    made = {
        "float16": lambda p: p[0].astype(jnp.float16).astype(jnp.float32),
        "scatter-add": lambda p: jnp.zeros(1).at[jnp.zeros(3, int)].add(p)[0],
        "reduce_prod": jnp.prod,
        "lgamma": lambda p: lax.lgamma(p)[0],
    }[what]
    with pytest.raises(certify.UnsupportedOperation, match=what):
        certify.ibp(Classifier(lambda p, x: x * made(p), BIG), np.full((1, 2), 0.5, np.float32), [0], 0.1)


# Functions of weights, by NumPy or SciPy in double precision and by JAX.
FUNCTIONS_OF_WEIGHTS = {
    **{
        name: (getattr(np, name), getattr(jnp, name)) for name in ("sin", "cos", "tan", "exp", "exp2", "tanh", "arctan")
    },
    **{name: (getattr(np, name), getattr(jnp, name)) for name in ("expm1", "cbrt", "sqrt", "log", "log1p", "square")},
    **{name: (getattr(special, name), getattr(jax.scipy.special, name)) for name in ("erf", "erfc", "expit")},
    "power": (lambda x: np.power(1.25, x), lambda x: jnp.power(1.25, x)),
    "reciprocal root": (lambda x: 1 / np.sqrt(x), lax.rsqrt),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_WEIGHTS)
def test_functions_of_weights_are_within_their_errors(name):
    exactly, function = FUNCTIONS_OF_WEIGHTS[name]
    weights = np.concatenate([s * np.geomspace(1e-6, most, 4000) for s in (-1, 1) for most in (9, 127)])
    weights = weights.astype(np.float32)
    read = program.read(Classifier(lambda p, x: x * function(p)[None], weights), weights.shape, jnp.float32, "cpu")
    constants = Constants(read, [weights])
    for equation in read.equations:
        if not read.depends.issuperset(equation.results):
            constants.work_out(equation)
    (last,) = [n for e in read.equations for n in e.operands if n in constants.errors and read.depends & {*e.results}]
    with np.errstate(all="ignore"):
        true = exactly(weights.astype(float))
    true, value, error = (np.ravel(np.asarray(x, float)) for x in (true, constants[last], constants.error(last)))
    inside = np.isfinite(true) & (np.abs(true) < np.finfo(np.float32).max / 2)
    assert inside.mean() > 0.4
    assert (np.abs(value - true) <= error)[inside].all()


def normalized(p, x):
    """Layer normalization, standardized weights, an inner softmax, and batch normalization by division."""
    h = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1)
    w = (p - p.mean()) / jnp.sqrt(p.var() + 1e-3)
    return (h / jnp.sqrt(p[:1] ** 2 + 1)[None]) * w[None] * jax.nn.softmax(jnp.clip(x, 0, jnp.inf), 1)


def test_normalization_layers_and_softmax_are_bounded():
    p = np.array([1.0, -2.0, 0.5], np.float32)
    x = np.random.default_rng(0).uniform(size=(4, 3)).astype(np.float32)
    classifier = Classifier(normalized, p)
    at_once = certify.crown(classifier, x, None, 0.0)
    logits = np.sort(np.asarray(classifier(x)), 1)
    np.testing.assert_allclose(at_once.margin, logits[:, -1] - logits[:, -2], atol=1e-3)
    assert (np.asarray(certify.crown(classifier, x, None, 0.01).margin) < at_once.margin).all()


def test_planted_adversarial_images_are_not_certified():
    """Networks with one known adversarial image, in a bump too narrow for any gradient to point there."""
    rng = np.random.default_rng(11)

    def apply(params, x):
        planted, w = params
        x = x.reshape(len(x), -1)
        bump = jax.nn.relu(1 - 50 * jnp.abs(x - planted[None]).sum(1, keepdims=True))
        logits = x @ w
        return jnp.concatenate([logits[:, :1] + 3 - 100 * bump, logits[:, 1:]], 1)

    for _ in range(10):
        planted = rng.uniform(0.2, 0.8, 6).astype(np.float32)
        classifier = Classifier(apply, (planted, 0.1 * rng.normal(size=(6, 3)).astype(np.float32)))
        image = (planted + rng.uniform(-0.1, 0.1, 6)).astype(np.float32).reshape(1, *SHAPE)
        away = float(np.abs(image.reshape(-1).astype(float) - planted).max())
        found = attack.pgd(classifier, image, [0], 0.1, steps=20)
        assert not found.success[0]
        for method in METHODS.values():
            assert not method(classifier, image, [0], away * (1 + 1e-6)).certified[0]
        assert certify.crown(classifier, image, [0], (away - 0.03) / 2 if away > 0.06 else 0.001).certified[0]


@pytest.mark.parametrize("p", [2, INF])
def test_no_image_is_certified_and_fooled(mnist, p):
    classifier = load_classifier("MLP")
    images, labels = np.asarray(data.normalize(mnist.val.images[:24])), mnist.val.labels[:24]
    found = attack.nearest(classifier, images, labels, norm=p, effort="fast")
    for share in (1.0, 0.5):
        radius = np.where(found.success, np.asarray(found.distance), 1) * share
        result = certify.crown(classifier, images, labels, radius, norm=p)
        distance = exact_norm(np.asarray(found.images, float) - images, p)
        assert not (np.asarray(result.certified) & np.asarray(found.success) & (distance <= radius)).any()
        assert not (np.asarray(result.certified) & np.asarray(result.fooled)).any()
        shown = np.asarray(result.images)[np.asarray(result.fooled)]
        assert (exact_norm(shown - images[np.asarray(result.fooled)].astype(float), p) <= radius[result.fooled]).all()
        assert share != 0.5 or np.asarray(result.certified).mean() > 0.2


def test_ibp_bounds_of_a_cnn_are_below_the_margins_that_an_attack_reaches(mnist):
    classifier = load_classifier("CNN_bn")
    images, labels = np.asarray(data.normalize(mnist.val.images[:16])), mnist.val.labels[:16]
    for radius in (0.0, 1e-3):
        result = certify.ibp(classifier, images, labels, radius)
        logits = np.asarray(classifier(images), float)
        label = logits[np.arange(16), labels]
        logits[np.arange(16), labels] = -np.inf
        assert (np.asarray(result.margin) <= label - logits.max(1)).all()
        if not radius:
            np.testing.assert_allclose(result.margin, label - logits.max(1), rtol=2e-2)
            assert result.certified.all()


def test_the_answer_for_an_image_does_not_depend_on_the_others():
    rng = np.random.default_rng(4)
    classifier = Classifier(relu_network, weights(rng, 5, 4, 3))
    images = rng.uniform(size=(11, *SHAPE)).astype(np.float32)
    radius = rng.uniform(0, 0.2, 11)
    together = certify.crown(classifier, images, None, radius)
    for i in (0, 7, 10):
        alone = certify.crown(classifier, images[i : i + 1], None, radius[i])
        np.testing.assert_allclose(together.margin[i], alone.margin[0], rtol=1e-4, atol=1e-5)
        assert together.certified[i] == alone.certified[0]


def test_labels_are_the_predictions_and_wrong_images_are_fooled():
    rng = np.random.default_rng(5)
    classifier = Classifier(relu_network, weights(rng, 5, 4, 3))
    images = rng.uniform(size=(6, *SHAPE)).astype(np.float32)
    predicted = np.asarray(classifier(images).argmax(1))
    own, said = (certify.crown(classifier, images, labels, 0.001) for labels in (None, predicted))
    np.testing.assert_array_equal(own.margin, said.margin)
    wrong = certify.crown(classifier, images, (predicted + 1) % 3, 0.001)
    assert wrong.fooled.all()
    assert not wrong.certified.any()
    np.testing.assert_array_equal(wrong.images, images)
    assert (largest_radius(classifier, images, (predicted + 1) % 3) == 0).all()


def test_no_images_and_double_precision():
    rng = np.random.default_rng(6)
    params = weights(rng, 5, 4, 3)
    classifier = Classifier(relu_network, params)
    empty = certify.crown(classifier, np.zeros((0, *SHAPE), np.float32), None, 0.1)
    assert empty.certified.shape == (0,)
    assert largest_radius(classifier, np.zeros((0, *SHAPE), np.float32), None).shape == (0,)
    images = rng.uniform(size=(3, *SHAPE))
    single = certify.crown(classifier, images.astype(np.float32), None, 0.05)
    with jax.enable_x64(True):
        double = Classifier(relu_network, tuple(np.asarray(p, np.float64) for p in params))
        result = certify.crown(double, images, None, 0.05)
        assert result.margin.dtype == np.float64
    np.testing.assert_allclose(result.margin, single.margin, atol=1e-4)
    assert (np.asarray(result.margin) >= np.asarray(single.margin)).all()


def test_chunks_are_halved_until_memory_suffices():
    classifier = Classifier(relu_network, weights(np.random.default_rng(0), 5, 4, 3))
    images = np.random.default_rng(1).uniform(size=(11, *SHAPE)).astype(np.float32)
    sizes = []

    def of_little_memory(classifier, images, *rest, most, why="RESOURCE_EXHAUSTED: Out of memory", **how):
        sizes.append(len(images))
        if len(images) > most:
            raise jax.errors.JaxRuntimeError(why)
        return by_intervals(classifier, images, *rest, **how)

    result = driver.run(of_little_memory, classifier, images, None, 0.1, norm=INF, at_once=8, most=2)
    assert sizes == [8, 4, 2]
    for got, expected in zip(result, certify.ibp(classifier, images, None, 0.1), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        driver.run(of_little_memory, classifier, images, None, 0.1, norm=INF, at_once=8, most=0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no device"):
        driver.run(of_little_memory, classifier, images, None, 0.1, norm=INF, at_once=8, most=2, why="no device")


def test_a_radius_is_not_rounded_down():
    """0.1 in single precision is above 0.1; 0.7 is below, and has to be raised."""
    classifier = Classifier(relu_network, weights(np.random.default_rng(0), 5, 4, 3))
    for asked in (0.1, 0.7, 0.3, 1 / 3):
        _, _, radius = driver.checked(classifier, np.zeros((2, *SHAPE), np.float32), [0, 0], asked)
        assert (np.asarray(radius, float) >= asked).all()
        np.testing.assert_allclose(radius, asked, rtol=2e-7)


def test_methods_run_inside_jit_and_grad():
    classifier = Classifier(relu_network, weights(np.random.default_rng(0), 5, 4, 3))
    images = np.random.default_rng(1).uniform(size=(4, *SHAPE)).astype(np.float32)
    labels = np.asarray(classifier(images).argmax(1))
    inside = jax.jit(lambda x: certify.crown(classifier, x, labels, 0.05))(images)
    outside = certify.crown(classifier, images, labels, 0.05)
    np.testing.assert_allclose(inside.margin, outside.margin, atol=1e-5)
    gradient = jax.grad(lambda x: certify.ibp(classifier, x, labels, 0.05).margin.sum())(jnp.asarray(images))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_nan_and_infinite_weights_certify_nothing():
    params = list(weights(np.random.default_rng(0), 5, 4, 3))
    for place, bad in itertools.product((0, 3), (np.nan, np.inf)):
        broken = [p.copy() for p in params]
        broken[place].flat[0] = bad
        classifier = Classifier(relu_network, tuple(broken))
        for method in METHODS.values():
            result = method(classifier, np.full((1, *SHAPE), 0.5, np.float32), [0], 0.01)
            assert not result.certified[0]
            assert result.margin[0] == -np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": 3}, "norm must be 1 or 2 or inf, not 3"),
        ({"radius": -1}, "radius must be at least 0"),
        ({"radius": [0.1] * 3}, "radius must be a number, or one for each of the 2 images"),
        ({"labels": [0, 9]}, "labels must be classes from 0 to 2"),
        ({"images": np.full((2, *SHAPE), 2.0)}, r"images must be numbers in \[0, 1\]"),
    ],
)
def test_bad_arguments(change, message):
    given = {"images": np.zeros((2, *SHAPE)), "labels": [0, 0], "radius": 0.1, "norm": INF} | change
    classifier = Classifier(relu_network, weights(np.random.default_rng(0), 5, 4, 3))
    for method in METHODS.values():
        with pytest.raises(ValueError, match=message):
            method(classifier, given["images"], given["labels"], given["radius"], norm=given["norm"])


def test_the_search_finds_the_largest_radius_of_any_method():
    rng = np.random.default_rng(9)
    classifier = Classifier(relu_network, weights(rng, 5, 4, 3))
    images = rng.uniform(size=(9, *SHAPE)).astype(np.float32)
    for method in METHODS.values():
        radius = largest_radius(classifier, images, None, method=method)
        # Margins differ in their last bits from batch to batch.
        assert method(classifier, images, None, radius * (1 - 1e-5)).certified.all()
        farther = np.minimum(radius * 1.002, 1)
        assert not (np.asarray(method(classifier, images, None, farther).certified) & (farther < 1)).any()
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        largest_radius(classifier, images, None, rounds=0)


def test_the_search_compiles_one_program_and_tries_few_radii():
    classifier = Classifier(relu_network, weights(np.random.default_rng(9), 5, 4, 3))
    images = np.random.default_rng(1).uniform(size=(9, *SHAPE)).astype(np.float32)
    sizes = []

    def counted(*args, **kwargs):
        sizes.append(len(args[1]))
        return certify.crown(*args, **kwargs)

    largest_radius(classifier, images, None, method=counted)
    assert min(sizes) > 1  # an image alone is another program
    assert sizes[-1] < 9  # images leave when they are done
    assert sum(sizes) < 9 * 10
