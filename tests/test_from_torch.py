"""PyTorch modules as classifiers: they have the same logits, gradients and distances of adversarial images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from extras import extra

from mnist_jax import InputError, Preprocess, attack, certify, from_torch

torch = extra("torch")
extra("onnxscript")

from exported.modules import CNN, MLP, made  # noqa: E402

ONE = np.zeros((1, 1, 28, 28), np.float32)


@pytest.fixture(scope="module", params=[CNN, MLP])
def both(request):
    """A module, and the classifier that is made of it."""
    module = made(request.param)
    return module, from_torch(module, ONE)


@pytest.fixture(scope="module")
def digits(mnist):
    """Images `[B, 1, 28, 28]` in [0, 1]."""
    return np.moveaxis(mnist.val.images[:6], -1, 1).astype(np.float32) / 255


def gradients_by_torch(module, images, classes):
    x = torch.tensor(images, requires_grad=True)
    module.eval()(x)[range(len(x)), torch.tensor(classes)].sum().backward()
    return x.grad.numpy()


def test_logits_and_gradients_are_the_modules(both, digits):
    module, classifier = both
    with torch.no_grad():
        expected = module.eval()(torch.tensor(digits)).numpy()
    np.testing.assert_allclose(classifier(digits), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    classes = expected.argmax(1)
    gradient = jax.grad(lambda x: classifier(x)[jnp.arange(len(x)), classes].sum())(digits)
    expected = gradients_by_torch(module, digits, classes)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_weights_are_leaves_and_one_program_serves_all(both, digits):
    module, classifier = both
    other = from_torch(made(type(module), seed=1), ONE)
    assert (other.apply, hash(other.apply)) == (classifier.apply, hash(classifier.apply))
    assert {leaf.shape for leaf in jax.tree.leaves(classifier)} >= {
        (10,),
        tuple(module.state_dict()[_last(module)].shape),
    }
    traces = []

    @jax.jit
    def run(network, images):
        traces.append(1)
        return network(images)

    assert (np.asarray(run(classifier, digits)) != np.asarray(run(other, digits))).all()
    assert len(traces) == 1


def _last(module):
    return [name for name in module.state_dict() if name.endswith("weight")][-1]


def test_attacks_find_the_same_as_on_a_network_by_hand_and_certificates_stay_below(digits):
    module = made(MLP)
    w = {name: jnp.asarray(array.numpy()) for name, array in module.state_dict().items()}

    def by_hand(w, images):
        x = images.reshape(len(images), 7, 4, 7, 4).mean((2, 4)).reshape(len(images), -1)
        x = jnp.tanh(x @ w["hidden.weight"].T + w["hidden.bias"][None])
        return x @ w["last.weight"].T + w["last.bias"][None]

    imported, own = from_torch(module, ONE), type(from_torch(module, ONE))(by_hand, w)
    found, expected = (attack.nearest(c, digits, norm=2, effort=1) for c in (imported, own))
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-3)
    radius = np.asarray(found.distance)
    assert certify.crown(imported, digits, None, 0.5 * radius, norm=2).certified.all()
    assert not certify.crown(imported, digits, None, 1.01 * radius, norm=2).certified.any()


def test_no_attack_succeeds_within_the_certified_radius_of_a_cnn(digits):
    classifier = from_torch(made(CNN), ONE)
    radius = certify.largest_radius(classifier, digits, None, norm=np.inf, rounds=6)
    assert (radius > 0).all()
    broken = [attack.fgsm(classifier, digits, None, r).success for r in (radius, np.full(len(radius), 0.5))]
    assert not broken[0].any()
    assert broken[1].any()
    assert certify.ibp(classifier, digits, None, 0.1 * radius).certified.any()


def test_the_module_stays_as_it_is(both):
    module, _ = both
    module.train().double()
    try:
        before = {name: array.clone() for name, array in module.state_dict().items()}
        classifier = from_torch(module, torch.zeros(3, 1, 28, 28))
        assert module.training
        assert all(torch.equal(array, before[name]) for name, array in module.state_dict().items())
        assert {leaf.dtype for leaf in jax.tree.leaves(classifier)} == {np.dtype(np.float32)}
    finally:
        module.float().eval()


def test_preprocessing_and_bounds_are_applied_before_the_module(digits):
    module = made(CNN).eval()
    last = np.moveaxis(digits, 1, -1)
    classifier = from_torch(module, last, preprocess=Preprocess(mean=[0.13], std=[0.3], channels_first=True))
    with torch.no_grad():
        expected = module((torch.tensor(digits) - 0.13) / 0.3).numpy()
    np.testing.assert_allclose(classifier(last), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    bytes_ = from_torch(module, ONE, bounds=(0, 255))
    with torch.no_grad():
        expected = module(torch.tensor(255 * digits)).numpy()
    np.testing.assert_allclose(bytes_(255 * digits), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_module_for_one_image_takes_any_number(digits):
    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(28 * 28, 10)

        def forward(self, x):
            return self.linear(x.reshape(1, -1))

    module = One().eval()
    classifier = from_torch(module, ONE)
    with torch.no_grad():
        expected = np.concatenate([module(x[None]).numpy() for x in torch.tensor(digits)])
    np.testing.assert_allclose(classifier(digits), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda x: torch.cumsum(x.flatten(1), 1)[:, :10], "operators that are not supported: CumSum"),
        (lambda x: (x.flatten(1)[:, :10], x.flatten(1)[:, :5]), "2 outputs"),
        (lambda x: x.nonsense, "can't export the module Module .*nonsense"),
    ],
)
def test_what_is_refused(forward, says):
    module = torch.nn.Module()
    module.forward = forward
    with pytest.raises(InputError, match=says):
        from_torch(module, ONE)
    with pytest.raises(InputError, match=r"no torch\.nn\.Module"):
        from_torch(forward, ONE)
