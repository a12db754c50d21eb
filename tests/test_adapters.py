"""Purifiers in other frameworks, each beside the functions of ours."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT

import pixeldefend
from pixeldefend.defences import base

torch = pytest.importorskip("torch")
from pixeldefend.adapters.torch import Defended  # noqa: E402

pytestmark = pytest.mark.slow  # `.ci/run` installs requirements-adapters.txt for them

SHAPE = (4, 6, 3)  # of `toy`
LIKE_TORCH = {"layout": "NCHW", "range": (0, 1), "batch": 2, "cache": False}


@pytest.fixture(scope="module")
def purifier(toy):
    return pixeldefend.Purifier(toy.folder, eps=toy.eps, **LIKE_TORCH)


@pytest.fixture
def images(toy):
    return torch.tensor(toy.levels.transpose(0, 3, 1, 2) / 255, dtype=torch.float32)


def test_the_page_runs():
    """Its examples, one after the other, on a torch ResNet of random weights."""
    page = (ROOT / "docs/frameworks.md").read_text()
    page = re.sub(
        r"<!-- keras -->.*?```\n(?=\n)", "", page, flags=re.S
    )  # see test_keras
    torch_example, *others = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len([line for line in torch_example.splitlines() if line]) < 15
    torch.manual_seed(0)
    known = {"network": ResNet(), "images": _sample(8), "labels": torch.arange(8) % 10}
    exec(torch_example, known)
    moved = (known["adversarial"] - known["images"]).abs() * 255
    assert 7.9 < moved.max() < 8.1
    assert len(others) == 2
    for module, example in zip(("art", "foolbox"), others, strict=True):
        pytest.importorskip(module)
        exec(example, known)
    for name in ("found", "clipped"):
        moved = np.asarray(known[name]) - known["images"].numpy()
        assert moved.shape == (8, 3, 32, 32) and 0 < np.abs(moved).max() < 8.1 / 255


def _sample(count):
    images, _ = pixeldefend.data.sample("cifar10")
    return torch.tensor(images[:count].transpose(0, 3, 1, 2) / 255, dtype=torch.float32)


class ResNet(torch.nn.Module):
    """Small, as torch users write one."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.last = torch.nn.Linear(8, 10)

    def forward(self, images):
        x = torch.relu(self.first(images))
        x = torch.relu(x + self.second(x))
        return self.last(x.mean((2, 3)))


def _network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Flatten()
    ).append(torch.nn.Linear(8 * SHAPE[0] * SHAPE[1], 5))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_tensor_comes_back_as_one(purifier, images, dtype, toy):
    given = images.to(getattr(torch, dtype))
    found = purifier(given)
    assert isinstance(found, torch.Tensor) and found.dtype == given.dtype
    if dtype != "bfloat16":
        expected = torch.tensor(toy.purified.transpose(0, 3, 1, 2) / 255)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
    assert not torch.equal(found, given)


def test_bpda_is_the_networks_gradient_at_purified_images(purifier, images):
    network = _network()
    defended = Defended(purifier, network)
    assert len(list(defended.parameters())) == 4
    images.requires_grad_()
    logits = defended(images)
    logits[:, 1].sum().backward()
    at = purifier(images.detach()).requires_grad_()
    expected = network(at)
    torch.testing.assert_close(logits, expected)
    expected[:, 1].sum().backward()
    torch.testing.assert_close(images.grad, at.grad)


def test_bpda_has_second_derivatives_and_others_say_that_they_have_none(
    purifier, images
):
    images.requires_grad_()
    for gradient in ("bpda", "straight_through"):
        logits = Defended(purifier, _network(), gradient=gradient)(images)
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        if gradient == "straight_through":
            with pytest.raises(RuntimeError, match="once_differentiable"):
                slope.square().sum().backward()
        else:
            slope.square().sum().backward()
            assert torch.any(images.grad != 0)


def test_a_module_is_copied_and_its_networks_weights_are_its_own(purifier):
    defended = Defended(purifier, _network())
    again = copy.deepcopy(defended)
    assert again.purifier is purifier and again.network is not defended.network
    again.network.load_state_dict(defended.network.state_dict())
    assert "eps=9" in repr(defended)


def test_straight_through_is_the_gradient_of_jax(purifier, toy, images):
    """Through `behind`, which differentiates in levels of NHWC."""
    weights = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)

    def network(images):
        return (images * torch.tensor(weights.transpose(2, 0, 1))).sum((1, 2, 3))

    images.requires_grad_()
    Defended(purifier, network, gradient="straight_through")(images).sum().backward()

    def logits(variables, images):
        return jnp.sum(images / 255 * variables[None], (1, 2, 3))[:, None]

    behind = base.behind([purifier.defence], logits, gradient="straight_through")
    variables = {"classifier": jnp.asarray(weights), "defences": [purifier.params]}
    slope = jax.jit(jax.grad(lambda x: behind(variables, x).sum()))
    expected = 255 * slope(jnp.asarray(toy.levels, jnp.float32)).transpose(0, 3, 1, 2)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(images.grad, expected, atol=1e-4 * scale)


def _fgsm(purifier, network, given, labels):
    """Ours, of 4 levels, through the purifier, on the same network in JAX."""
    arrays = [jnp.asarray(p.detach().numpy()) for p in network.parameters()]

    def logits(variables, images):
        kernel, bias, dense, other = variables
        x = images.transpose(0, 3, 1, 2) / 255
        x = jax.lax.conv(x, kernel, (1, 1), "SAME") + bias[None, :, None, None]
        return jnp.tanh(x).reshape(len(x), -1) @ dense.T + other[None]

    behind = base.behind([purifier.defence], logits)
    variables = {"classifier": arrays, "defences": [purifier.params]}
    fgsm = functools.partial(pixeldefend.attacks.fgsm, behind, keep_failed=True)
    found, _ = jax.jit(fgsm)(variables, jnp.asarray(given), labels, eps=4)
    return np.asarray(found)


def _levels(images):
    """Of images as torch has them."""
    return np.rint(np.asarray(images) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _labels(purifier, network, images):
    return np.asarray(network(purifier(images)).argmax(1))


def test_an_attack_of_torch_through_the_purifier_is_ours(purifier, images, toy):
    network = _network()
    labels = _labels(purifier, network, images)
    given = images.clone().requires_grad_()
    logits = Defended(purifier, network)(given)
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
    found = (images + 4 / 255 * given.grad.sign()).clamp(0, 1)
    expected = _fgsm(purifier, network, toy.levels, labels)
    # Signs of next to nothing fall as they like.
    assert np.mean(_levels(found) != expected) < 0.005


@pytest.fixture
def estimator(purifier):
    """Of ART, with the purifier in front, and its network."""
    classifiers = pytest.importorskip("art.estimators.classification")
    from pixeldefend.adapters.art import PurifierPreprocessor

    def make(gradient):
        network = _network()
        defence = PurifierPreprocessor(purifier, gradient=gradient)
        made = classifiers.PyTorchClassifier(
            network,
            torch.nn.CrossEntropyLoss(),
            (3, *SHAPE[:2]),
            5,
            clip_values=(0, 1),
            preprocessing_defences=defence,
        )
        return made, network

    return make


@pytest.mark.parametrize("gradient", ["bpda", "straight_through"])
def test_an_estimator_of_art_is_torchs(estimator, purifier, images, gradient):
    made, network = estimator(gradient)
    defended = Defended(purifier, network, gradient=gradient)
    images.requires_grad_()
    logits = defended(images)
    np.testing.assert_allclose(
        made.predict(images.detach().numpy()), logits.detach(), rtol=1e-5, atol=1e-6
    )
    labels = logits.argmax(1)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    one_hot = np.eye(5, dtype=np.float32)[labels.numpy()]
    found = made.loss_gradient(images.detach().numpy(), one_hot)
    expected = images.grad.numpy()
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * scale)


def test_an_attack_of_art_is_ours(estimator, purifier, images, toy):
    evasion = pytest.importorskip("art.attacks.evasion")
    made, network = estimator("bpda")
    labels = _labels(purifier, network, images)
    attack = evasion.FastGradientMethod(made, eps=4 / 255)
    found = attack.generate(images.numpy(), labels)
    expected = _fgsm(purifier, network, toy.levels, labels)
    assert np.mean(_levels(found) != expected) < 0.005


def test_an_attack_of_foolbox_is_ours(purifier, images, toy):
    """The module in foolbox's own model of torch."""
    foolbox = pytest.importorskip("foolbox")
    network = _network()
    labels = _labels(purifier, network, images)
    defended = Defended(purifier, network).eval()
    model = foolbox.PyTorchModel(defended, (0, 1), device="cpu")
    attack = foolbox.attacks.FGSM(random_start=False)
    found, _, _ = attack(model, images, torch.tensor(labels), epsilons=4 / 255)
    expected = _fgsm(purifier, network, toy.levels, labels)
    assert np.mean(_levels(found) != expected) < 0.005


def test_a_purifier_alone_says_that_it_has_no_gradient(purifier, images):
    given = images.clone().requires_grad_()
    with pytest.raises(
        TypeError, match="a bare purifier lacks: use .*adapters.torch.Defended"
    ):
        purifier(given)
    with torch.no_grad():
        found = purifier(given)
    assert torch.equal(found, purifier(images))


def test_mistakes_are_told(toy, purifier, images):
    with pytest.raises(ValueError, match="one of bpda, straight_through: 'expectat"):
        Defended(purifier, gradient="expectation")
    screener = pixeldefend.Screener(toy.folder, eps=9, cache=False)
    with pytest.raises(TypeError, match="purifier must be a Purifier: Screener"):
        Defended(screener)
    art = pytest.importorskip("pixeldefend.adapters.art")
    with pytest.raises(ValueError, match="one of bpda, straight_through: 'none'"):
        art.PurifierPreprocessor(purifier, gradient="none")
    with pytest.raises(ValueError, match=r"towards must be \[11, 3, 4, 6\], as images"):
        purifier.pull_back(images, images[:3])
    with pytest.raises(ValueError, match="one of bpda, straight_through, expectation"):
        purifier.pull_back(images, images, gradient="none")
