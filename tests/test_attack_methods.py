"""The attacks by name: which options and norms each has."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mnist_jax import Classifier, InputError, attack
from mnist_jax.attack import methods

INF = np.inf


def test_every_public_attack_is_a_method():
    around = {"at_once", "progress", "robust_accuracy"}
    functions = {name for name in attack.__all__ if not isinstance(getattr(attack, name), type)} - around
    assert set(methods.METHODS) == functions
    assert methods.DEFAULT in functions


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_attack_names_its_norm_before_it_asks_the_classifier(method):
    """And takes targets and a key, as all attacks do."""
    known = methods.parameters(method)
    assert {"classifier", "images", "labels", "norm", "targets", "key"} <= set(known)
    assert methods.objection(method, known["norm"].default) == ""
    assert "norm must be" in methods.objection(method, 0.5)


@pytest.mark.parametrize("at_a_radius", [True, False])
def test_the_documentation_has_the_table(at_a_radius):
    table = methods.table(at_a_radius=at_a_radius)
    assert table.count("\n") > 8
    assert f"\n\n{table}\n\n" in (Path(__file__).parents[1] / "docs/attacks.md").read_text()


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("p", [0, 1, 1.5, 2, INF])
def test_an_attack_takes_the_norms_that_are_said_of_it_and_no_others(method, p):
    run = partial(methods.METHODS[method], Classifier(None, ()), np.zeros((0, 3)), [], norm=p)
    run = partial(run, radius=1.0) if "radius" in methods.parameters(method) else run
    allowed = methods.about(method).norms
    if p >= 1 if allowed is None else p in allowed:
        assert run().distance.shape == (0,)
    else:
        with pytest.raises(ValueError, match="norm must be"):
            run()


def test_which_attacks_have_a_norm():
    have = {p: {method for method in methods.METHODS if not methods.objection(method, p)} for p in (0, 2, 3)}
    assert have[0] == {"fmn", "sigma_zero"}
    assert {"ddn", "carlini_wagner", "auto_attack"} <= have[2]
    assert {"dichotomy", "fixed_norm"} <= have[3]
    assert not have[3] & {"ddn", "auto_attack"}


def test_an_attack_that_runs_another_takes_the_options_of_both():
    assert {"steps", "learning_rate", "tolerance"} <= set(methods.parameters("dichotomy"))
    assert "radius" not in methods.parameters("dichotomy")


def test_options_become_arguments():
    given = {"radius": 0.1, "seed": 3, "targets": [1]}
    run, norm = methods.prepare("pgd", None, given)
    assert norm == INF
    assert run.keywords == {"radius": 0.1}  # targets and keys are one for each image, and come with these


@pytest.mark.parametrize(
    ("method", "norm", "given", "message"),
    [
        ("fixednorm", 2.0, {}, "did you mean fixed_norm"),
        ("pgd", None, {}, "pgd needs a --radius"),
        ("ddn", None, {"learning_rate": 1.0}, "--learning-rate does not apply to ddn; it does to alma"),
        ("sigma_zero", 2.0, {}, r"--norm 2 does not apply to sigma_zero \(norm must be 0, not 2\); it does to alma"),
        ("ddn", None, {"steps": 0}, "ddn: steps must be at least 1"),
    ],
)
def test_what_does_not_apply_is_refused(method, norm, given, message):
    with pytest.raises(InputError, match=message):
        methods.prepare(method, norm, given)
