"""Classifiers of the user's own, from a module, in JAX and in torch."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, finish, launch, rows

from pixeldefend import attacks
from pixeldefend.experiment import data, own_classifier, store
from pixeldefend.models import classifiers

SHAPE = (28, 28, 1)
LINEAR = """
import jax.numpy as jnp
import numpy as np

weights = np.random.default_rng(0).normal(size=(784, 10)) / 2000


def net(images):
    return (images - 90).reshape(len(images), -1) @ jnp.asarray(weights, images.dtype)
"""
TORCH = """
import numpy as np
import torch

weights = np.random.default_rng(0).normal(size=(784, 10)) / 2000


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weights, dtype=torch.float32))

    def forward(self, images):
        return (255 * images - 90).flatten(1) @ self.weight


net = Linear()
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "mine.py").write_text(LINEAR)
    return f"{tmp_path / 'mine.py'}:net"


def test_a_function_becomes_a_classifier(module, tmp_path):
    assert own_classifier.is_named(module)
    for weights in ("mnist/cnn_a", "runs/a b", "gs://bucket/model", "C:", "a:", ":b"):
        assert not own_classifier.is_named(weights)
    model, variables, card = own_classifier.load(module, "fashion_mnist", SHAPE)
    assert model.classes == 10
    assert card["image_shape"] == [28, 28, 1] and card["dataset"] == "fashion_mnist"
    images, labels = data.sample("fashion_mnist")
    weights = np.random.default_rng(0).normal(size=(784, 10)) / 2000
    found = classifiers.logits_fn(model)(variables, images[:9])
    expected = (images[:9].reshape(9, -1).astype(float) - 90) @ weights
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Like another, whose weights are in its sight: the same attacked images.
    given = images[:9], labels[:9]
    adversarial, _ = attacks.bim(classifiers.logits_fn(model), variables, *given, eps=8)

    def logits_fn(variables, images):
        return (images - 90).reshape(len(images), -1) @ variables

    digest, variables = variables, jnp.asarray(weights, jnp.float32)
    other, _ = attacks.bim(logits_fn, variables, *given, eps=8)
    np.testing.assert_array_equal(adversarial, other)
    # The same once more, so it is known again; other weights under its name are not.
    again = own_classifier.load(module, "fashion_mnist", SHAPE)
    assert again.model == model and again.card == card
    marks = {store.fingerprint("", digest)}
    path = tmp_path / "mine.py"
    path.write_text(LINEAR.replace("default_rng(0)", "default_rng(1)"))
    other = own_classifier.load(module, "fashion_mnist", SHAPE)
    assert other.model != model and other.card["sha256"] != card["sha256"]
    marks |= {store.fingerprint("", one.params) for one in (again, other)}
    assert len(marks) == 2


def test_the_documented_function(tmp_path, monkeypatch, rng):
    text = (ROOT / "docs/own_classifier.md").read_text()
    code = text.partition("<!-- own classifier -->\n```python\n")[2].partition("```")[0]
    (tmp_path / "shown.py").write_text(code)
    weights = rng.normal(size=(784, 10))
    np.save(tmp_path / "weights.npy", weights)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    model, variables, _ = own_classifier.load("shown:net", "mnist", SHAPE)
    images = data.sample("mnist")[0][:3]
    found = classifiers.logits_fn(model)(variables, images)
    expected = images.reshape(3, -1) / 255 @ weights
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    again, *_ = own_classifier.load("shown.py:net", "mnist", SHAPE)
    assert again.classes == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def net(:", "cannot be imported: SyntaxError"),
        ("import nowhere", "cannot be imported: ModuleNotFoundError: No module named"),
        ("other = len\nx = 1", "has no function or network net, only other"),
        ("net = 3", "has no function or network net, only none"),
        ("def net(images): return undefined", "cannot be computed: NameError"),
        ("def net(images): return images", r"float32 \(8, 28, 28, 1\)"),
        ("def net(images): return images[:, :2, 0, 0] > 3", r"returns bool \(8, 2\)"),
        ("def net(images): return images[:, :1, 0, 0]", "at least two classes"),
        ("def net(images): return images[:, :3, 0, 0] * 3e38", "must be finite"),
        (
            "import numpy as np\n"
            "def net(images): return images[:, :3, 0, 0] + np.random.normal()",
            "different logits for the same images when called again",
        ),
        ("import numpy as np\ndef net(images): return np.exp(images)", "use jax.numpy"),
        ("a = b = c = d = e = f = g = len", "only a, b, c, d, e and 2 more"),
    ],
)
def test_what_is_no_classifier_is_explained(tmp_path, text, message):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        own_classifier.load(f"{tmp_path / 'bad.py'}:net", "mnist", SHAPE)


def test_probabilities_are_told(tmp_path, capsys):
    text = "import jax\ndef net(images): return jax.nn.softmax(images[:, :3, 0, 0])"
    (tmp_path / "soft.py").write_text(text)
    own_classifier.load(f"{tmp_path / 'soft.py'}:net", "mnist", SHAPE)
    assert "seems to return probabilities" in capsys.readouterr().out


def test_a_module_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="nowhere:net cannot be imported"):
        own_classifier.load("nowhere:net", "mnist", SHAPE)
    with pytest.raises(ValueError, match="cannot be imported: FileNotFoundError"):
        own_classifier.load(f"{tmp_path}/nowhere.py:net", "mnist", SHAPE)


@pytest.mark.slow
def test_torch_networks_are_looked_through(tmp_path):
    torch = pytest.importorskip("torch")
    from pixeldefend.adapters.torch import logits_fn

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 5, stride=3), torch.nn.Tanh(), torch.nn.Flatten()
    )
    network.append(torch.nn.Linear(256, 10))
    network.append(torch.nn.Dropout(0.9))  # which evaluation leaves out
    function = logits_fn(network)
    kernel, bias = (p.detach().numpy() for p in network[0].parameters())
    dense, shift = (p.detach().numpy() for p in network[3].parameters())

    def twin(variables, images):
        x = jax.lax.conv_general_dilated(
            images / 255,
            kernel.transpose(2, 3, 1, 0),
            (3, 3),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = (
            jnp.tanh(x + bias[None, None, None])
            .transpose(0, 3, 1, 2)
            .reshape(len(x), -1)
        )
        return x @ dense.T + shift[None]

    images, labels = (rows[:6] for rows in data.sample("fashion_mnist"))
    levels = jnp.asarray(images, jnp.float32)
    np.testing.assert_allclose(function(levels), twin({}, levels), atol=1e-5)
    towards = np.random.default_rng(1).normal(size=(6, 10)).astype(np.float32)
    pulled = [
        jax.jit(lambda x, f=f: jax.vjp(f, x)[1](towards)[0])(levels)
        for f in (function, lambda x: twin({}, x))
    ]
    np.testing.assert_allclose(*pulled, atol=1e-7)
    keys = jax.random.split(jax.random.key(0), 6)
    for name in ("fgsm", "bim", "pgd", "deepfool", "apgd", "fab", "square", "cw"):
        attack = attacks.named(name, attacks.usual(name, ""))
        found = [
            attack(f, {}, images, labels, keys, eps=8.0)[0]
            for f in (lambda variables, images: function(images), twin)
        ]
        apart = np.mean(np.asarray(found[0]) != np.asarray(found[1]))
        assert apart < 0.02, name  # near-ties in float32


@pytest.mark.slow
@pytest.mark.parametrize("text", [LINEAR, TORCH])
def test_modes_take_it_as_weights(tmp_path, text):
    if "torch" in text:
        pytest.importorskip("torch")
    (tmp_path / "mine.py").write_text(text)
    own = f"{tmp_path / 'mine.py'}:net"
    weights_option = f"--config.classifier.weights={own}"
    finish(launch("classify", weights_option, f"--workdir={tmp_path / 'run'}"))
    weights = np.random.default_rng(0).normal(size=(784, 10)) / 2000
    images, labels = (one[:64] for one in data.sample("fashion_mnist"))
    logits = (images.reshape(64, -1).astype(float) - 90) @ weights
    (row,) = rows(tmp_path / "run/rows.jsonl")
    assert row["correct"] == np.sum(logits.argmax(1) == labels)
    assert row["classifier"] == own and row["training"] == "own"
    options = [f"--workdir={tmp_path / 'table'}", "--config.evaluate.images=8"]
    options.append(f"--config.evaluate.rows=('{own}', '{own} + jpeg50')")
    options.append("--config.evaluate.attacks=('bim', 'bim through=bpda')")
    finish(launch("evaluate", *options))
    found = rows(tmp_path / "table/rows.jsonl")
    clean = next(row for row in found if row["attack"] == "none")
    assert clean["n"] == 8 and clean["correct"] == np.sum(
        logits[:8].argmax(1) == labels[:8]
    )
    assert {row["threat"] for row in found} >= {"white-box", "grey-box"}
    # Another network under the same name: nothing of the old one is taken.
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace("default_rng(0)", "default_rng(5)"))
    finish(launch("evaluate", *options))
    again = rows(tmp_path / "table/rows.jsonl")
    assert again[0]["classifier_sha256"] != found[0]["classifier_sha256"]
