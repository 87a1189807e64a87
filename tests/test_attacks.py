"""Tests of what all attacks have in common, one row of `ATTACKS` for each attack.

An attack is compiled anew for every norm and shape, so there are few of both. All classifiers are one function, whose
special cases (constant outputs, NaN, no gradient) are switched on by its parameters, which needs no compilation.
"""

import inspect
import sys
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear import nearest, random_problem

from mnist_jax import Classifier, attack, geometry, unstable
from mnist_jax.attack import ClassifierWarning, methods

INF = np.inf


class Row(NamedTuple):
    """An attack, and how near it comes to the exact distances of linear classifiers.

    Attributes:
      name: the name of the function in `mnist_jax.attack`.
      ratios: by the p of each norm that is tested, the largest allowed ratio to the exact distance: for a minimal-norm
        attack of the distances it finds, for a fixed-radius attack of the radius at which it has to succeed. Unusual
        classifiers and shapes are tested with the first norm only.
      options: settings for a run that is quick, but finds adversarial images.
      tiny: settings for a run with jit disabled, which is slow.
    """

    name: str
    ratios: dict[float, float]
    options: dict[str, Any]
    tiny: dict[str, Any]

    @property
    def norm(self) -> float:
        return next(iter(self.ratios))

    @property
    def fixed(self) -> bool:
        return "radius" in inspect.signature(getattr(attack, self.name)).parameters


ONE = {"steps": 1}
ATTACKS = [
    Row("alma", {2: 1.15, 1: 3.0}, {"steps": 150}, ONE),
    Row("apgd", {INF: 1.5, 2: 1.3, 1: 1.7}, {"steps": 50}, ONE),
    Row("apgd_targeted", {INF: 1.1, 1: 1.5}, {"steps": 50}, ONE),
    Row("auto_attack", {INF: 1.05}, {}, {}),  # has no settings
    Row("automatic", {2: 3.0, 1: 6.0, INF: 2.5}, {"steps": 100}, ONE),
    Row("brendel_bethge", {2: 1.01}, {"steps": 40, "region": 0.05}, ONE),
    Row(
        "carlini_wagner",
        {2: 1.6},
        {"steps": 200, "searches": 6, "weight": 0.01, "learning_rate": 0.05},
        ONE | {"searches": 1},
    ),
    Row("ddn", {2: 1.3}, {"steps": 100}, ONE),
    Row("deepfool", {2: 1.03, 1: 1.03, INF: 1.03}, {}, ONE),
    Row("dichotomy", {2: 1.01}, {}, ONE | {"tolerance": 0.5}),
    Row("ead", {1: 2.5}, {"steps": 100, "searches": 6, "weight": 0.01}, ONE | {"searches": 1}),
    Row("fab", {2: 1.01, 1: 1.01, INF: 1.01}, {"steps": 20}, ONE),
    Row("fgsm", {INF: 1.5, 2: 1.7}, {}, {}),  # no p = 1: a step of one pixel may be stopped by the box
    Row("fixed_norm", {2: 1.2, 1: 1.5, INF: 1.2}, {"steps": 60, "learning_rate": 0.03}, ONE),
    Row("fmn", {2: 1.01, 0: 1.01, INF: 1.2}, {"steps": 100}, ONE),
    Row("mi_fgsm", {INF: 1.5, 2: 1.7}, {"steps": 20}, ONE),
    Row("nearest", {2: 1.001, 1: 1.001, INF: 1.001}, {"effort": 100}, {"effort": 12}),
    Row("pdpgd", {2: 1.15, 1: 1.5}, {"steps": 200}, ONE),
    Row("pgd", {INF: 1.5, 2: 1.7, 1: 2.0}, {"share": 0.05}, ONE),
    Row("sigma_zero", {0: 1.5}, {"steps": 200}, ONE),
    Row("square", {INF: 2.5, 2: 2.5}, {"queries": 500}, {"queries": 2}),
]


each_attack = pytest.mark.parametrize("row", ATTACKS, ids=[row.name for row in ATTACKS])
each_norm = pytest.mark.parametrize(
    ("row", "p"), [pytest.param(row, p, id=f"{row.name}-l{p:g}") for row in ATTACKS for p in row.ratios]
)


def test_every_attack_has_a_row():
    assert [row.name for row in ATTACKS] == sorted(methods.METHODS)


def apply(params, images):
    """Linear logits, changed by the switches among the parameters: softmax, classes not in use, NaN, no gradient."""
    logits = params["scale"] * (images.reshape(len(images), -1) @ params["w"] + params["b"][None])
    logits = jnp.where(params["softmax"], jax.nn.softmax(logits), logits)
    logits = jnp.where(params["in_use"][None], logits, params["instead"])
    logits = jnp.where(params["broken_above"] < images.reshape(len(images), -1).max(1)[:, None], jnp.nan, logits)
    return jnp.where(params["frozen"], jax.lax.stop_gradient(logits), logits)


class Problem(NamedTuple):
    classifier: Classifier
    images: np.ndarray
    labels: np.ndarray
    w: np.ndarray
    b: np.ndarray

    def odd(self, **parameters) -> "Problem":
        """The same problem with other parameters of the classifier."""
        params = self.classifier.params
        changed = {k: jnp.asarray(v, params[k].dtype) for k, v in parameters.items()}
        return self._replace(classifier=Classifier(apply, params | changed))

    def first(self, count: int) -> "Problem":
        return self._replace(images=self.images[:count], labels=self.labels[:count])


def some_problem(seed=0, dtype=np.float32, **options) -> Problem:
    w, b, images, labels = random_problem(np.random.default_rng(seed), **({"batch": 16} | options))
    params = {"w": jnp.asarray(w, dtype), "b": jnp.asarray(b, dtype), "scale": jnp.asarray(1, dtype)}
    switches = {"softmax": jnp.asarray(False), "frozen": jnp.asarray(False), "in_use": jnp.ones(len(b), bool)}
    switches |= {"instead": jnp.asarray(0, dtype), "broken_above": jnp.asarray(INF, dtype)}
    return Problem(Classifier(apply, params | switches), images.astype(dtype), labels, w, b)


def run(row: Row, problem: Problem, p=None, radius=1.0, options=None, **more):
    """Runs the attack, and checks of its result what has to hold for every classifier."""
    p = row.norm if p is None else p
    how = {"norm": p} | (row.options if options is None else options) | ({"radius": radius} if row.fixed else {}) | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClassifierWarning)  # some of the classifiers deserve it
        result = getattr(attack, row.name)(problem.classifier, problem.images, problem.labels, **how)
    check(result, problem, p, radius if row.fixed else INF, more.get("targets"))
    return result


def check(result, problem, p, radius, targets=None):
    """Checks distances and successes of a result against the images, recomputed in double precision."""
    images, success = np.asarray(result.images), np.asarray(result.success)
    assert images.shape == problem.images.shape
    assert ((images >= 0) & (images <= 1)).all()  # false for NaN, too
    logits = np.asarray(problem.classifier(images), float)
    predictions = np.where(np.isfinite(logits.max(1)), logits.argmax(1), -1)
    fooled = predictions != problem.labels if targets is None else predictions == targets
    assert fooled[success].all()
    r = (images.astype(float) - problem.images.astype(float)).reshape(len(images), -1)
    lengths = np.linalg.norm(r, p, axis=1)
    np.testing.assert_allclose(result.distance, np.where(success, lengths, INF), rtol=1e-5, atol=1e-6)
    assert (lengths <= radius * (1 + 1e-5) + 2e-6)[success].all()
    for count in (result.gradients, result.forwards):
        assert count.shape == success.shape
        assert (np.asarray(count) >= 0).all()


@each_norm
def test_linear_oracle(row, p):
    problem = some_problem()
    exact = nearest(problem.w, problem.b, problem.images.astype(float), problem.labels, p)
    # Very near the boundary, the distance by which a success has to exceed it would matter.
    clear = np.isfinite(exact) & (exact > 0.1 * np.median(exact))
    if row.fixed:
        succeeds_at_the_radius(row, problem, p, exact, clear)
        return
    result = run(row, problem, p)
    assert result.success[clear].all()
    ratio = np.asarray(result.distance)[clear] / exact[clear]
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= row.ratios[p]


def succeeds_at_the_radius(row, problem, p, exact, clear):
    reach = np.asarray(geometry.largest(jnp.asarray(problem.images), p))
    allowed = clear & (row.ratios[p] * exact < reach)
    assert allowed.sum() > 8
    assert run(row, problem, p, radius=np.where(allowed, row.ratios[p] * exact, reach)).success[allowed].all()
    assert not run(row, problem, p, radius=np.where(clear, 0.999 * exact, 0)).success[clear].any()


@each_attack
def test_misclassified_images_come_back_as_they_are(row):
    problem = some_problem()
    wrong = np.arange(16) % 2 == 1
    problem = problem._replace(labels=(problem.labels + wrong) % 5)
    result = run(row, problem)
    np.testing.assert_array_equal(result.images[wrong], problem.images[wrong])
    assert result.success[wrong].all()
    assert (result.distance[wrong] == 0).all()
    assert (result.gradients[wrong] == 0).all()
    assert (result.gradients[~wrong] + result.forwards[~wrong] > 0).all()


@pytest.mark.parametrize("row", [row for row in ATTACKS if row.fixed], ids=lambda row: row.name)
def test_radius_zero_finds_nothing(row):
    result = run(row, some_problem(), radius=0.0)
    assert not result.success.any()
    assert np.isinf(result.distance).all()


@each_attack
def test_a_constant_classifier_is_not_fooled(row):
    problem = some_problem().odd(w=np.zeros((20, 5)), b=np.arange(5))
    assert not run(row, problem._replace(labels=np.full(16, 4))).success.any()
    assert run(row, problem).success[problem.labels != 4].all()
    equal = some_problem().odd(w=np.zeros((20, 5)), b=np.zeros(5))  # all logits are equal
    assert not run(row, equal._replace(labels=np.zeros(16, int))).success.any()


@each_attack
def test_a_classifier_without_gradients_raises_no_error(row):
    run(row, some_problem().odd(frozen=True))
    run(row, some_problem().odd(softmax=True, scale=20))


@each_attack
def test_large_logits_are_fooled_too(row):
    problem = some_problem()
    as_is, huge = run(row, problem), run(row, problem.odd(scale=2.0**20))
    assert huge.success[as_is.success].all()


@each_attack
@pytest.mark.parametrize("instead", [-INF, -1e9, -1e4])
def test_classes_not_in_use_change_no_distance(row, instead):
    """With the last two of five classes not in use, distances are as with the first three classes alone."""
    in_use = np.arange(5) < 3
    problem = some_problem().odd(in_use=in_use, instead=instead)
    problem = problem._replace(labels=np.asarray(problem.classifier(problem.images)).argmax(1))
    exact = nearest(problem.w[:, :3], problem.b[:3], problem.images.astype(float), problem.labels, row.norm)
    clear = np.isfinite(exact) & (exact > 0.1 * np.median(exact))
    if row.fixed:
        succeeds_at_the_radius(row, problem, row.norm, exact, clear)
    else:
        result = run(row, problem)
        assert result.success[clear].all()
        assert (np.asarray(result.distance)[clear] / exact[clear]).max() <= 1.05 * row.ratios[row.norm]


@each_attack
def test_logits_with_nan_count_as_misclassified(row):
    broken = some_problem().odd(w=np.full((20, 5), np.nan))
    result = run(row, broken)
    assert result.success.all()
    assert (result.distance == 0).all()
    towards = run(row, broken, targets=(broken.labels + 1) % 5)
    assert not towards.success.any()  # logits with a NaN don't reach a target
    # Logits are NaN for bright images only, so that the problem is an ordinary one for an attack that avoids these.
    dim = some_problem()
    dim = dim._replace(images=0.5 * dim.images)
    dim = dim._replace(labels=np.asarray(dim.classifier(dim.images)).argmax(1)).odd(broken_above=0.8)
    run(row, dim)


@each_attack
def test_an_image_does_not_depend_on_its_neighbours(row):
    problem, keys = some_problem(), jax.random.split(jax.random.key(5), 16)
    together, odd = run(row, problem, key=keys), run(row, problem.first(13), key=keys[:13])
    np.testing.assert_array_equal(odd.images, together.images[:13])


@each_attack
def test_one_image_of_two_classes_and_another_shape(row):
    problem = some_problem(3, batch=1, classes=2, shape=(6,))
    reach = np.asarray(geometry.largest(jnp.asarray(problem.images), row.norm))
    assert run(row, problem, radius=0.9 * reach).success.all()


@each_attack
def test_a_thousand_classes_with_targets_in_double_precision(row):
    with jax.enable_x64(True):
        problem = some_problem(4, float, batch=4, classes=1000, shape=(4, 3, 2))
        targets = np.asarray(problem.classifier(problem.images)).argsort(1)[:, -2]
        result = run(row, problem, targets=targets)
        assert result.success.any()
        assert result.images.dtype == result.distance.dtype == np.float64


# Constants of the attacks' inner loops, lowered for runs with jit disabled, in which every operation takes long.
FEW = {
    "engine.boundary": {"RUN": 2, "PATH": 1, "LINE": 2, "EVALUATIONS": 2},
    "engine.descents": {"AT_ONCE": 1},
    "minimal_norm.brendel_bethge": {"STARTING": 1, "LINE": 2},
    "minimal_norm.dichotomy": {"BEFORE": 1, "ALONE": 1, "AT_ONCE": 1},
}


@each_attack
def test_inside_a_compiled_function_and_with_jit_disabled(row, monkeypatch):
    for module, constants in FEW.items():
        for name, value in constants.items():
            monkeypatch.setattr(sys.modules[f"mnist_jax.attack.{module}"], name, value)
    auto = sys.modules["mnist_jax.attack.fixed_radius.auto_attack"]
    monkeypatch.setattr(auto, "apgd", lambda *given, steps, **options: attack.apgd(*given, steps=1, **options))
    problem = some_problem(6, batch=1, classes=2, shape=(2,))
    options = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})
    function = partial(getattr(attack, row.name), problem.classifier, **options)
    images, labels = jnp.asarray(problem.images), jnp.asarray(problem.labels)
    inside = jax.jit(function)(images, labels)
    with jax.disable_jit():
        without = function(images, labels)
    np.testing.assert_allclose(inside.images, without.images, atol=1e-3)
    np.testing.assert_array_equal(inside.success, without.success)


@each_attack
def test_half_precision_lists_and_strict_promotion(row):
    """Several cases in one test, since each compiles anew: logits in half precision of weights in single precision,
    images in double precision, lists as labels and targets, and JAX's strict type promotion."""
    single = some_problem(7, batch=4, classes=3, shape=(4, 3))

    def half(params, images):
        assert images.dtype == np.float32  # as the weights are
        return (images.reshape(len(images), -1) @ params["w"] + params["b"][None]).astype(jnp.bfloat16)

    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        weights = {"w": single.classifier.params["w"], "b": single.classifier.params["b"]}
        problem = single._replace(classifier=Classifier(half, weights), images=single.images.astype(float))
        labels = np.asarray(problem.classifier(jnp.asarray(problem.images, jnp.float32))).argmax(1)
        reach = geometry.exact_norm(np.maximum(problem.images, 1 - problem.images), row.norm)
        how = {"norm": row.norm} | row.options | ({"radius": 0.95 * reach} if row.fixed else {})
        targets = ((labels + 1) % 3).tolist()
        result = getattr(attack, row.name)(problem.classifier, problem.images, labels.tolist(), **how)
        towards = getattr(attack, row.name)(problem.classifier, problem.images, labels.tolist(), targets=targets, **how)
    assert result.success.mean() >= 0.5
    assert result.images.dtype == np.float32
    for found, wanted in ((result, None), (towards, targets)):
        logits = np.asarray(problem.classifier(found.images), np.float32)
        fooled = logits.argmax(1) != labels if wanted is None else logits.argmax(1) == wanted
        assert fooled[np.asarray(found.success)].all()


@each_attack
def test_with_traced_weights_and_concrete_images(row):
    """Images have values and weights don't, so that no code may branch on results. The attack is traced, not run."""
    problem = some_problem(6, batch=1, classes=2, shape=(2,))
    options = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})

    def run(params):
        return getattr(attack, row.name)(Classifier(apply, params), problem.images, problem.labels, **options)

    several = jax.tree.map(lambda a: jnp.stack([a, a, a]), problem.classifier.params)
    result = jax.eval_shape(jax.vmap(run), several)
    assert result.images.shape == (3, 1, 2)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(result)} == {(3, 1)}


@each_attack
def test_inside_a_function_that_closes_over_arrays_of_jax(row):
    """No argument of the attack is traced, but inside of a jitted function no result has a value."""
    problem = some_problem(6, batch=1, classes=2, shape=(2,))
    images, labels = jnp.asarray(problem.images), jnp.asarray(problem.labels)
    classifier = Classifier(apply, problem.classifier.params)  # a new object, which was not checked before
    options = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})
    run = partial(getattr(attack, row.name), classifier, images, **options)
    for given in (labels, None):
        assert jax.eval_shape(jax.jit(partial(run, given))).images.shape == (1, 2)


@each_attack
def test_computes_at_the_highest_precision_whatever_the_caller_has_set(row):
    """Where accelerators round to TF32, every program finds the boundary elsewhere. The attack is traced, not run."""
    problem = some_problem(6, batch=1, classes=2, shape=(2,))
    precisions = []

    def noted(params, images):
        precisions.append(unstable.setting("jax_default_matmul_precision"))
        return images.reshape(len(images), -1) @ params["w"] + params["b"][None]

    classifier = Classifier(noted, {name: problem.classifier.params[name] for name in ("w", "b")})
    options = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})
    with jax.default_matmul_precision("bfloat16"):
        jax.eval_shape(
            jax.jit(partial(getattr(attack, row.name), classifier, **options)), problem.images, problem.labels
        )
    assert set(precisions) == {"highest"}


@each_attack
def test_double_logits_of_single_weights(row):
    """As of a network with NumPy constants in double precision. The attack is traced, not run."""

    def normalized(params, images):
        flat = (images.reshape(len(images), -1) - np.full((1, 2), 0.1307)) / np.full((1, 2), 0.3081)
        return flat @ params["w"] + params["b"][None]

    with jax.enable_x64(True):
        problem = some_problem(6, batch=1, classes=3, shape=(2,))
        classifier = Classifier(normalized, {name: problem.classifier.params[name] for name in ("w", "b")})
        options = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})
        run = partial(getattr(attack, row.name), classifier, **options)
        images = jnp.asarray(problem.images, jnp.float32)
        assert classifier(images).dtype == np.float64
        result = jax.eval_shape(jax.jit(run), images, jnp.asarray(problem.labels))
    assert result.images.dtype == np.float32


def numeric_settings(row):
    """The settings of an attack that are numbers, and whether each is a whole number."""
    wholes = {int, int | None, str | int}
    for name, parameter in inspect.signature(getattr(attack, row.name)).parameters.items():
        if name == "norm":
            continue
        per_image = name in ("radius", "step_size", "initial", "learning_rate", "low", "high")
        if name == "thresholds" or per_image or parameter.annotation in (wholes | {float, float | None}):
            yield name, parameter.annotation in wholes


@each_attack
def test_settings_that_are_no_numbers_are_refused_before_any_work(row):
    """Refused by an attack on no images, with a classifier that must not be called."""

    def never(params, images):
        raise AssertionError("asked")

    how = {"norm": row.norm} | ({"radius": 0.1} if row.fixed else {})
    for name, whole in numeric_settings(row):
        wrong = [float("nan"), -1, -0.5, "x", True, 1 + 2j]
        wrong += [0.5, 1e12, 10**12, np.float32(1.5), 0] if whole else []
        wrong += [] if name == "high" else [np.inf]
        for value in wrong:
            if name == "effort" and value == "x":  # effort may be a name, too
                continue
            with pytest.raises(ValueError, match=rf"{name}.* must be"):
                getattr(attack, row.name)(Classifier(never, ()), np.zeros((0, 3)), [], **how | {name: value})
    others = [("norm", "l2"), ("norm", np.nan), ("norm", True), ("norm", np.True_), ("norm", 10**400)]
    others += [("key", 0), ("key", "seed"), ("key", np.zeros(2, np.uint32)), ("key", jnp.zeros(3, jnp.uint32))]
    others += [("radius", value) for value in (None, 1e300, [1.0])] if row.fixed else []
    for name, value in others:
        with pytest.raises(ValueError, match=f"{name} must be"):
            getattr(attack, row.name)(Classifier(never, ()), np.zeros((0, 3)), [], **how | {name: value})


@each_attack
def test_labels_and_targets_are_classes(row):
    problem = some_problem(6, batch=2, classes=3, shape=(2,))
    how = {"norm": row.norm} | row.tiny | ({"radius": 1.0} if row.fixed else {})
    run = partial(getattr(attack, row.name), problem.classifier, problem.images, **how)
    for wrong in ([0, 3], [-1, 0], [0, 2**32], np.array([0, 2**32 + 1]), [0.0, 1.0], [True, False], ["a", "b"], [0], 0):
        with pytest.raises(ValueError, match="labels must be"):
            run(wrong)
        with pytest.raises(ValueError, match="targets must be"):
            run(problem.labels, targets=wrong)
    with pytest.raises(ValueError, match="must give floating logits"):
        getattr(attack, row.name)(Classifier(lambda params, x: x[:, :1], ()), problem.images, problem.labels, **how)


LARGE = ["automatic", "deepfool", "dichotomy", "fixed_norm", "nearest"]


@pytest.mark.parametrize("row", [row for row in ATTACKS if row.name in LARGE], ids=LARGE)
@pytest.mark.parametrize("p", [1000, 1e10])
def test_the_norm_of_a_large_p_is_near_the_inf_norm(row, p):
    problem = some_problem()
    inf = nearest(problem.w, problem.b, problem.images.astype(float), problem.labels, INF)
    clear = np.isfinite(inf) & (inf > 0.1 * np.median(inf))
    how = row.options | ({"radius": np.where(clear, 1.5 * inf, 0.1)} if row.fixed else {})
    result = getattr(attack, row.name)(problem.classifier, problem.images, problem.labels, norm=p, **how)
    assert result.success[clear].all()
    r = np.asarray(result.images, float) - problem.images
    np.testing.assert_allclose(result.distance[clear], geometry.exact_norm(r, p)[clear], rtol=1e-5)
    # The p-norm of 20 numbers is from 1 to 20^(1/p) times the largest.
    assert (np.asarray(result.distance)[clear] > inf[clear] * (1 - 1e-4)).all()
