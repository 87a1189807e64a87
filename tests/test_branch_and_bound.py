"""Branch and bound against exact minima, attacks and itself; and brackets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_certify import SHAPE, least_margin, max_network, relu_network, weights

from mnist_jax import Classifier, attack, bracket, certify, unstable
from mnist_jax.certify import driver, linear
from mnist_jax.certify.branch_and_bound import _searched
from mnist_jax.certify.domains import _score
from mnist_jax.certify.relaxations import Interval
from mnist_jax.certify.search import BranchAndBound, crown_with_roots
from mnist_jax.geometry import INF, exact_norm
from mnist_jax.jaxprs import program

branch_and_bound = partial(certify.branch_and_bound, domains=200)


def problems(count, seed=0):
    """Random networks, each with an image, its label, a radius, and the exact least margin within it."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        params = weights(rng, 5, 4, 3)
        classifier = Classifier(relu_network, params)
        image = rng.uniform(size=(1, *SHAPE)).astype(np.float32)
        label, radius = int(classifier(image)[0].argmax()), np.float32(rng.choice([0.05, 0.2, 0.4]))
        pairs = [(params[i].astype(float), params[i + 1].astype(float)) for i in (0, 2, 4)]
        yield (
            classifier,
            image,
            label,
            radius,
            least_margin(pairs, image.reshape(-1).astype(float), label, float(radius)),
        )


def test_it_says_what_the_mixed_integer_program_says():
    more = 0
    for classifier, image, label, radius, exact in problems(60):
        result = branch_and_bound(classifier, image, [label], radius)
        assert float(result.margin[0]) <= exact + 1e-5
        assert not (result.certified[0] and exact < 1e-6)
        assert not (result.fooled[0] and exact > 1e-5)
        if abs(exact) > 5e-3:  # nearer to zero it may take more
            assert bool(result.certified[0]) == (exact > 0)
        more += bool(result.certified[0]) and not certify.crown(classifier, image, [label], radius).certified[0]
    assert more >= 3


@pytest.mark.parametrize("norm", [1, 2, INF])
def test_no_attack_breaks_what_it_certifies(norm):
    """Maxima of two values, against a constant, and absolute values: steps of every kind that is divided."""
    rng = np.random.default_rng(4)
    params = weights(rng, 8, 6, 3)
    params = (*params[:2], rng.normal(size=(4, 6)).astype(np.float32) / 2, *params[3:])
    classifier = Classifier(max_network, params)
    images = rng.uniform(size=(12, *SHAPE)).astype(np.float32)
    labels = np.asarray(classifier(images).argmax(1))
    distance = np.asarray(attack.nearest(classifier, images, labels, norm=norm, effort="thorough").distance)
    radius = np.where(np.isfinite(distance), distance, 1) * rng.uniform(0.6, 1.05, 12).astype(np.float32)
    result, weaker = (
        method(classifier, images, labels, radius, norm=norm) for method in (branch_and_bound, certify.crown)
    )
    certified = np.asarray(result.certified)
    assert (radius[certified] < distance[certified]).all()
    assert certified.sum() > np.asarray(weaker.certified).sum()
    found = np.asarray(result.images)[np.asarray(result.fooled)]
    assert (np.asarray(classifier(found)).argmax(1) != labels[np.asarray(result.fooled)]).all()
    assert (exact_norm(found.astype(float) - images[result.fooled], norm) <= radius[result.fooled] * (1 + 1e-5)).all()


def test_any_multipliers_give_a_bound_where_the_signs_are_as_supposed():
    rng = np.random.default_rng(2)
    params = weights(rng, 5, 4, 3)
    classifier = Classifier(relu_network, params)
    image, radius = jnp.asarray(rng.uniform(size=(1, *SHAPE)), jnp.float32), jnp.full(1, 0.3)
    computation = program.read(classifier, SHAPE, jnp.float32, driver.OTHERS)
    points = jnp.clip(image + rng.uniform(-0.3, 0.3, (4000, *SHAPE)).astype(np.float32), 0, 1)
    first = points.reshape(4000, -1) @ params[0] + params[1][None]
    second = jax.nn.relu(first) @ params[2] + params[3][None]
    logits = classifier(points)

    @jax.jit
    def bounded(splits, amounts):
        walk = linear.walk(classifier, image, radius, INF, computation)
        walk.splits = splits
        walk.forwards(lambda walk, place, factors, interval, wanted: interval)
        function = jnp.array([1.0, -1.0, 0.0])[None, :, None]
        center, off = walk.combined({computation.logits: 1.0})
        constant = (function * center - jnp.abs(function) * off).sum((0, 1))
        end = len(computation.equations)

        def less(place, a):
            return splits[place] * amounts[place]

        return walk.back(end, {computation.logits: function}, constant, multipliers=less)[0][0]

    places = [i for i, equation in enumerate(computation.equations) if equation.name == "max"]
    seen = 0
    for _ in range(40):
        signs = [rng.choice([-1, 0, 0, 0, 1], size) for size in (5, 4)]
        inside = np.ones(4000, bool)
        for values, sign in zip((first, second), signs, strict=True):
            inside &= (np.asarray(values) * sign >= 0).all(1)
        splits = {p: jnp.asarray(s, jnp.int8)[None, :, None] for p, s in zip(places, signs, strict=True)}
        amounts = {
            p: jnp.asarray(rng.exponential(0.3, (1, len(s), 1)), jnp.float32)
            for p, s in zip(places, signs, strict=True)
        }
        if inside.any():
            seen += 1
            assert float(bounded(splits, amounts)) <= float((logits[:, 0] - logits[:, 1])[inside].min()) + 1e-5
    assert seen > 10


def test_the_same_number_of_domains_gives_the_same_bits():
    classifier, image, label, radius, _ = next(p for p in problems(20) if p[3] > 0.3)
    one, two = (certify.branch_and_bound(classifier, image, [label], radius, domains=7) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)


def steep(network, scale):
    """A network with larger weights, images, their labels, and radii just below the distance of what fools it."""
    rng = np.random.default_rng(7)
    params = tuple((p * scale).astype(np.float32) if p.ndim > 1 else p for p in weights(rng, 12, 12, 3))
    classifier = Classifier(network, params)
    images = rng.uniform(size=(12, *SHAPE)).astype(np.float32)
    labels = np.asarray(classifier(images).argmax(1))
    distance = np.asarray(attack.nearest(classifier, images, labels, norm=INF, effort="thorough").distance)
    return classifier, images, labels, np.where(np.isfinite(distance), distance, 1) * np.float32(0.97)


def test_what_is_not_done_in_time_is_open():
    """The time of all ends before anything is settled, and a domain suffices for some."""
    given = steep(relu_network, 4)
    crown, counts = certify.crown(*given), []
    for how in ({"seconds": 1e-9}, {"domains": 1}, {"domains": 200}):
        result = certify.branch_and_bound(*given, **how)
        assert (np.asarray(result.margin) >= np.asarray(crown.margin) - 1e-4).all()  # another program rounds otherwise
        open_ = ~np.asarray(result.certified | result.fooled)
        assert (np.asarray(result.margin)[open_] <= 0).all()
        counts.append(int(result.certified.sum()))
    assert counts[0] < counts[1] < counts[2]


def test_the_scale_of_the_logits_is_of_no_matter():
    rng = np.random.default_rng(5)
    params = weights(rng, 5, 4, 3)
    classifier = Classifier(relu_network, params)
    images = rng.uniform(size=(6, *SHAPE)).astype(np.float32)
    labels = classifier(images).argmax(1)
    radius = 1.1 * certify.largest_radius(classifier, images, labels)
    results = []
    for scale in (1.0, 2.0**12, 2.0**-12):
        scaled = Classifier(relu_network, (*params[:4], params[4] * scale, params[5] * scale))
        results.append(branch_and_bound(scaled, images, labels, radius))
        np.testing.assert_array_equal(results[-1].certified, results[0].certified)
        np.testing.assert_allclose(results[-1].margin / scale, results[0].margin, rtol=1e-2, atol=1e-3)
    assert results[0].certified.sum() >= 2


def test_what_crown_settles_by_itself_is_settled():
    classifier, image, label, *_ = next(problems(1))
    x = jnp.asarray(image)
    with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("standard"):
        given = image, np.array([label], np.int32), np.full(1, 1e-5, np.float32)
        result, roots = crown_with_roots(classifier, *given, norm=INF)
        search = BranchAndBound(classifier, INF, *given)
        search.run(60.0, 2)
    assert result.certified.all()
    assert not roots
    assert float(classifier(x)[0].max()) == float(classifier(x)[0, label])
    assert search.states[0].done
    assert search.states[0].least() > 0


def test_without_a_step_to_divide_it_is_crown():
    params = weights(np.random.default_rng(1), 5, 4, 3)

    def smooth(params, x):
        h = jnp.tanh(x.reshape(len(x), -1) @ params[0] + params[1][None])
        return jax.nn.sigmoid(h @ params[2] + params[3][None]) @ params[4] + params[5][None]

    classifier = Classifier(smooth, params)
    images = np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)
    labels = classifier(images).argmax(1)
    results = (method(classifier, images, labels, 0.3) for method in (branch_and_bound, certify.crown))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_labels_and_found_images_are_judged_at_the_highest_precision():
    precisions = []

    def noted(params, x):
        precisions.append(unstable.setting("jax_default_matmul_precision"))
        return x @ params

    classifier, images = Classifier(noted, np.eye(2, dtype=np.float32)), np.full((1, 2), 0.5, np.float32)
    with jax.default_matmul_precision("bfloat16"):
        x, labels, radius = driver.checked(classifier, images, None, 0.1)
        open_ = driver.CertifyResult(jnp.zeros(1, bool), jnp.zeros(1, bool), jnp.zeros(1), x)
        _searched(lambda *given, norm: open_, open_, classifier, x, labels, radius, INF)
    assert set(precisions) == {"highest"}


def test_arguments_are_checked():
    classifier = Classifier(relu_network, weights(np.random.default_rng(0), 5, 4, 3))
    image = np.full((1, *SHAPE), 0.5, np.float32)
    for how, message in (({"seconds": 0}, "seconds"), ({"domains": 0}, "domains"), ({"norm": 3}, "norm must be")):
        with pytest.raises(ValueError, match=message):
            certify.branch_and_bound(classifier, image, [0], 0.1, **how)
    empty = certify.branch_and_bound(classifier, image[:0], np.zeros(0, int), 0.1)
    assert empty.certified.shape == (0,)


def test_a_domain_is_divided_at_the_steps_that_cost_most():
    ramp = type("Ramp", (), {"d": Interval(jnp.array([[-1.0], [-1.0], [0.5]]), jnp.array([[1.0], [3.0], [1.0]]))})
    score = _score(ramp, jnp.array([[-1.0], [-1.0], [-1.0]]), jnp.zeros((3, 1)))
    np.testing.assert_allclose(score[:, 0], [0.5, 0.75, 0.0])


def test_brackets_hold_the_exact_distance():
    for classifier, image, label, _, _ in problems(6, seed=3):
        got = bracket(classifier, image, [label], domains=200)
        lower, upper = float(got.lower[0]), float(got.upper[0])
        assert lower <= upper
        params = classifier.params
        pairs = [(params[i].astype(float), params[i + 1].astype(float)) for i in (0, 2, 4)]
        if lower > 0:
            assert least_margin(pairs, image.reshape(-1).astype(float), label, lower) > -1e-6
        if np.isfinite(upper):
            assert np.asarray(classifier(got.images)).argmax(1)[0] != label
            np.testing.assert_allclose(exact_norm(np.asarray(got.images, float) - image, INF)[0], upper, rtol=1e-5)
            assert lower >= 0.9 * upper


def test_curves_beside_steps_and_what_is_not_finite():
    """A hyperbolic tangent between ReLUs; weights that are dropped, too large, or no numbers are open, not a crash."""

    def mixed(params, x):
        h = jax.nn.relu(x.reshape(len(x), -1) @ params[0] + params[1][None])
        return jax.nn.relu(jnp.tanh(h) @ params[2] + params[3][None]) @ params[4] + params[5][None]

    classifier, *given = steep(mixed, 2)
    result, weaker = branch_and_bound(classifier, *given), certify.crown(classifier, *given)
    assert not result.fooled.any()
    assert int(result.certified.sum()) > int(weaker.certified.sum())
    images, labels = (part[:1] for part in given[:2])
    for value in (1e-40, 3e38, np.nan, -np.inf):
        params = tuple(p.copy() for p in classifier.params)
        params[2][0, 0] = value
        bad = Classifier(mixed, params)
        finite = np.isfinite(np.asarray(bad(images)).sum(1))
        assert not (np.asarray(certify.branch_and_bound(bad, images, labels, 0.2, domains=5).certified) & ~finite).any()
