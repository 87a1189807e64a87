"""`certify.exact` and what it stands on: linear programs over patterns, and bounds where the lead is not positive."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import lax
from test_branch_and_bound import steep
from test_certify import SHAPE, relu_network, weights

from mnist_jax import Classifier, attack, bracket, certify
from mnist_jax.certify import domains, driver, pattern
from mnist_jax.certify.domains import Domain
from mnist_jax.certify.search import NARROWED, STEPS, TRIED, BranchAndBound, Task, _worthwhile, lanes_for
from mnist_jax.geometry import INF, exact_norm

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import exact_minimum

PIXELS = 2


def one_layer(params, x):
    return exact_minimum.apply(params, x)


def problems(count, seed=0):
    """Networks of one hidden layer, an image and its label."""
    rng = np.random.default_rng(seed)
    while count:
        params = {
            "w": rng.normal(size=(PIXELS**2, 6)),
            "b": rng.normal(size=6) / 2,
            "v": rng.normal(size=(6, 10)),
            "c": rng.normal(size=10) / 2,
        }
        params = {name: array.astype(np.float32) for name, array in params.items()}
        classifier, image = Classifier(one_layer, params), rng.uniform(size=(1, PIXELS, PIXELS)).astype(np.float32)
        corners = np.stack(np.meshgrid(*[(0.0, 1.0)] * PIXELS**2), -1).reshape(-1, PIXELS, PIXELS).astype(np.float32)
        label = int(np.asarray(classifier(image))[0].argmax())
        if (np.asarray(classifier(corners)).argmax(1) != label).any():
            count -= 1
            yield classifier, image, label


@pytest.mark.parametrize("norm", [1, INF])
def test_it_finds_the_distance_of_the_mixed_integer_program(norm):
    for number, (classifier, image, label) in enumerate(problems(8, seed=1)):
        near = attack.nearest(classifier, image, [label], norm=norm).images if number % 2 else None
        result = certify.exact(classifier, image, [label], norm=norm, near=near, domains=100)
        least = exact_minimum.minimum(classifier.params, image[0], label, norm, float(result.upper[0]) * 1.01)
        assert float(result.lower[0]) <= least.value * (1 + 1e-6)
        np.testing.assert_allclose(result.upper[0], least.value, rtol=3e-4, atol=1e-6)
        np.testing.assert_allclose(result.lower[0], least.value, rtol=3e-4, atol=1e-6)
        assert np.asarray(classifier(result.images)).argmax(1)[0] != label


def test_in_the_euclidean_norm_too():
    classifier, image, label = next(problems(1, seed=5))
    near = attack.nearest(classifier, image, [label], effort="thorough")
    result = certify.exact(classifier, image, [label], norm=2, near=near.images, domains=200)
    assert float(result.lower[0]) <= float(result.upper[0]) <= float(near.distance[0]) * (1 + 1e-6)
    assert float(result.lower[0]) >= 0.99 * float(result.upper[0])


def test_what_is_no_adversarial_image_is_no_upper_end():
    classifier, image, label = next(problems(1))
    result = certify.exact(classifier, image, [label], near=image, domains=100)
    far = np.asarray(certify.exact(classifier, image, [label], domains=100).upper)
    np.testing.assert_allclose(result.upper, far, rtol=1e-3)
    wrong = certify.exact(classifier, image, [(label + 1) % 10], domains=2)
    assert float(wrong.upper[0]) == float(wrong.lower[0]) == 0
    np.testing.assert_array_equal(wrong.images, image)
    for how, message in (({"near": image[:, :1]}, "near must be like"), ({"close": 1.0}, "close must be below 1")):
        with pytest.raises(ValueError, match=message):
            certify.exact(classifier, image, [label], **how)
    assert certify.exact(classifier, image[:0], np.zeros(0, int)).lower.shape == (0,)


def test_where_no_image_is_adversarial_all_of_the_box_is_certified():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 6)), "b": rng.normal(size=6), "v": rng.normal(size=(6, 10)), "c": np.zeros(10)}
    params["c"][0] = 50.0
    classifier = Classifier(one_layer, {name: array.astype(np.float32) for name, array in params.items()})
    image = np.full((1, PIXELS, PIXELS), 0.25, np.float32)
    result = bracket(classifier, image, [0], domains=10)
    assert np.isinf(result.upper[0])
    np.testing.assert_allclose(result.lower[0], 0.75)
    np.testing.assert_array_equal(result.images, image)


def test_an_attack_may_search_first():
    classifier, image, label = next(problems(1))
    near = attack.nearest(classifier, image, [label], norm=INF)
    radius = 1.05 * float(near.distance[0])
    calls = []

    def search(classifier, images, labels, radius, *, norm):
        calls.append((len(images), norm))
        return attack.apgd(classifier, images, labels, radius, norm=norm)

    result = certify.branch_and_bound(classifier, image, [label], radius, domains=1, search=search)
    assert calls == [(1, INF)] or bool(certify.crown(classifier, image, [label], radius).fooled[0])
    assert bool(result.fooled[0])
    assert exact_norm(np.asarray(result.images, float) - image, INF)[0] <= radius * (1 + 1e-6)

    def far(classifier, images, labels, radius, *, norm):
        return attack.nearest(classifier, images, labels, norm=norm)

    small = 0.5 * float(near.distance[0])
    assert not certify.branch_and_bound(classifier, image, [label], small, domains=50, search=far).fooled[0]


def test_bounds_of_steps_hold_wherever_the_lead_is_not_positive():
    """Of random networks and domains, for images of which the lead is not positive; elsewhere some are exceeded."""
    rng = np.random.default_rng(3)
    tight = held = 0
    for _ in range(6):
        params = weights(rng, 5, 4, 3)
        classifier = Classifier(relu_network, params)
        image = rng.uniform(size=(1, *SHAPE)).astype(np.float32)
        label = int(classifier(image)[0].argmax())
        radius = np.float32(0.3)
        points = np.clip(image + rng.uniform(-radius, radius, (4000, *SHAPE)), 0, 1).astype(np.float32)
        first = points.reshape(4000, -1) @ params[0] + params[1]
        values = np.concatenate([first, np.maximum(first, 0) @ params[2] + params[3]], 1)
        logits = np.asarray(classifier(points))
        with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
            search = BranchAndBound(classifier, INF, image, np.array([label], np.int32), np.full(1, radius))
            for domain in [lead for waiting in search.states[0].waiting for lead in search._leads(waiting[-1])]:
                inside = logits[:, label] <= logits[:, domain.other]
                tasks = [search._target(domain, entry, sign) for entry in range(9) for sign in (1, -1)]
                for task, found in zip(tasks, search._bound(tasks), strict=True):
                    of = task.sign * values[:, task.entry + (5 if task.ramp else 0)]
                    if inside.any():
                        held += 1
                        assert found.bound <= of[inside].min() + 1e-5
                    tight += bool(found.bound > of.min())
    assert held > 50
    assert tight > 20


def test_multipliers_of_a_pattern_that_no_image_has_prove_it():
    rng = np.random.default_rng(0)
    none = some = 0
    for norm in (1, INF):
        for _ in range(20):
            image, radius = rng.uniform(size=5), 0.4
            lead = pattern.Affine(rng.normal(size=(1, 5)), rng.normal(size=1))
            steps = pattern.Affine(rng.normal(size=(7, 5)), rng.normal(size=7) / 4)
            signs = rng.choice([-1, 0, 1], 7)
            found, multipliers = pattern.least_lead(lead, steps, signs, image, radius, norm)
            assert (multipliers >= 0).all()
            points = np.clip(image + rng.uniform(-radius, radius, (3000, 5)), 0, 1)
            points = points[exact_norm(points - image, norm) <= radius]
            at = (points - image) @ lead.coefficients[0] + lead.at[0]
            d = (points - image) @ steps.coefficients.T + steps.at
            dual = at - d @ (signs * multipliers)
            if found is None:
                none += 1
                assert not (d * signs >= 0).all(1).any()
                assert (dual > 0).all()
            else:
                some += 1
                least = float((found - image) @ lead.coefficients[0] + lead.at[0])
                assert (dual >= least - 1e-6).all()
                assert exact_norm((found - image)[None], norm)[0] <= radius + 1e-9
                assert (((found - image) @ steps.coefficients.T + steps.at) * signs >= -1e-6).all()
    assert none >= 5
    assert some >= 5


def test_fewer_lanes_when_memory_runs_out(monkeypatch):
    """Bounds and linear programs are the same, with lanes halved until the memory, here of 10 lanes, suffices."""
    classifier, images, labels, radius = steep(relu_network, 4)
    given = (classifier, INF, images, labels.astype(np.int32), radius)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        search, small = BranchAndBound(*given), BranchAndBound(*given)
        domain = next(search._leads(state.waiting[0][-1])[0] for state in search.states if state.waiting)
        tasks = [search._target(domain, entry, sign) for entry in range(12) for sign in (1, -1)]
        whole = search._bound(tasks), search._pieces(tasks)

        def limited(compute):
            def within(*given):
                if len(given[3]) > 10:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
                return compute(*given)

            return within

        monkeypatch.setattr(domains, "bounded", limited(domains.bounded))
        monkeypatch.setattr(domains, "pieces", limited(domains.pieces))
        parts = small._bound(tasks), small._pieces(tasks)
    assert search.lanes == lanes_for(jax.default_backend()) > 10
    assert small.lanes == 8
    np.testing.assert_allclose(*[[found.bound for found in bounded] for bounded, _ in (whole, parts)], rtol=1e-5)
    for one, other in zip(*[(*affine, signs) for _, (affine, signs) in (whole, parts)], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert lanes_for("gpu") > lanes_for("cpu")

    def broken(*given):
        raise jax.errors.JaxRuntimeError("INTERNAL")

    monkeypatch.setattr(domains, "bounded", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        small._bound(tasks)


def test_ends_for_exact_arithmetic_get_closer_where_the_distance_is_small():
    """A linear classifier with an image so near the boundary that rounding in single precision decides."""
    params = {"w": np.eye(4, dtype=np.float32), "b": np.zeros(4), "v": np.zeros((4, 10)), "c": np.full(10, -9.0)}
    params["v"][0, 0], params["v"][1, 1] = 1, 1
    params["c"][:2] = 0
    classifier = Classifier(one_layer, {name: np.asarray(array, np.float32) for name, array in params.items()})
    image = np.float32([0.5 + 4e-5, 0.5, 0.5, 0.5]).reshape(1, PIXELS, PIXELS)
    least = (float(image[0, 0, 0]) - 0.5) / 2
    device, exact = (bracket(classifier, image, [0], domains=50, device=how) for how in (True, False))
    assert float(device.lower[0]) < 0.99 * least < 0.99 * float(device.upper[0])
    assert 0.98 * least < float(exact.lower[0]) <= least <= float(exact.upper[0]) <= float(device.upper[0])
    same = certify.exact(classifier, image, [0], domains=50, near=device.images, close=5e-4)
    assert 0.999 * least < float(same.lower[0]) <= least
    kept = certify.exact(classifier, image, [0], domains=50, near=device.images, close=5e-4, device=True)
    assert float(kept.lower[0]) < 0.99 * least


def test_bounds_are_of_the_branch_that_runs_whatever_the_backend_is_called(monkeypatch):
    """JAX's backend "gpu" runs the branch for "cuda"."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def apply(_, x):
        return lax.platform_dependent(x, cpu=lambda x: x, tpu=lambda x: x * 3, default=lambda x: x * 2)

    assert domains.platform_for(Classifier(apply, None), (2,), np.float32) == "cpu"
    assert domains.platform_for(Classifier(lambda _, x: x, None), (2,), np.float32) == driver.OTHERS


def test_bounds_are_improved_for_as_many_domains_as_are_expected():
    domain = Domain(-4.0, 0, 1, (), ())
    assert _worthwhile(domain) == _worthwhile(domain._replace(gain=0.0)) == NARROWED
    assert _worthwhile(domain._replace(gain=np.nan)) == _worthwhile(domain._replace(gain=0.5)) == NARROWED
    assert 0 < _worthwhile(domain._replace(gain=1.0)) < NARROWED
    assert _worthwhile(domain._replace(gain=8.0)) == 0
    # The less the last round raised the bound, the fewer.
    counts = [_worthwhile(domain._replace(gain=0.9, eased=eased)) for eased in (0.0, 0.3, 0.9, np.inf)]
    assert counts[0] == 0 < counts[1] < counts[2] < counts[3] < NARROWED
    assert _worthwhile(domain._replace(gain=1e-9, eased=1e-3)) == NARROWED


def test_lanes_are_by_themselves():
    """What is bounded in a lane does not depend on the others."""
    classifier, images, labels, radius = steep(relu_network, 4)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        search = BranchAndBound(classifier, INF, images, labels.astype(np.int32), radius)
        one, other = [search._leads(state.waiting[0][-1])[0] for state in search.states if state.waiting][:2]
        tasks = [Task(one), search._target(other, 3, -1), Task(other)]
        together = [found.bound for found in search._bound(tasks)]
        alone = [search._bound([task])[0].bound for task in tasks]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_functions_that_are_bounded_together_take_as_many_steps(monkeypatch):
    """Otherwise bounds would depend on which other functions share the lanes."""
    classifier, images, labels, radius = steep(relu_network, 4)
    bound, steps = BranchAndBound._bound, []

    def counted(search, tasks):
        steps.append({task.steps for task in tasks})
        return bound(search, tasks)

    monkeypatch.setattr(BranchAndBound, "_bound", counted)
    with jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        BranchAndBound(classifier, INF, images, labels.astype(np.int32), radius).run(np.inf, 30)
    assert all(len(each) == 1 for each in steps)
    assert {STEPS, TRIED} <= set().union(*steps)
