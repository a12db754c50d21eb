"""Classifiers that were trained in torch."""

import json
import sys

import numpy as np
import pytest

from pixeldefend.experiment import data, zoo
from reproduction import import_classifier

SHAPE = (32, 32, 3)


def _from_torch():
    return sorted(
        str(path.parent)
        for path in zoo.RELEASED.glob("*/*/card.json")
        if "logits" in json.loads(path.read_text())["training"]
    )


@pytest.mark.parametrize("name", _from_torch())
def test_released_weights_from_torch_give_the_logits_that_torch_gave(name):
    model, variables, card = zoo.load_released(name)
    images, _ = data.sample(card["dataset"])
    logits = card["training"]["logits"]["values"]
    apart = import_classifier.largest_difference(
        model, variables, images[: len(logits)], logits
    )
    assert apart < 1e-8  # the card has nine places


NETWORKS = [("resnet", "code", 1), ("vgg", "paper", 4), ("vgg", "code", 4)]


@pytest.fixture(params=NETWORKS, ids=lambda p: "-".join(map(str, p)))
def network(request):
    """Another network than at first: every parameter and statistic drawn."""
    torch = pytest.importorskip("torch")
    from reproduction import torch_classifier, torch_networks

    torch.manual_seed(0)
    architecture, *options = request.param
    network = torch_networks.NETWORKS[architecture](*options, 3, 10).eval()
    network.described = dict(zip(torch_classifier.MODEL, request.param, strict=True))
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.ndim == 1:  # scales, biases and statistics, variances above zero
                tensor.uniform_(0.5, 1.5)
    return network


@pytest.mark.slow
def test_the_network_in_torch_is_ours(network, tmp_path):
    import argparse

    from reproduction import torch_classifier, torch_networks

    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    defaults = torch_classifier.DEFAULTS | network.described | {"hours": 1.0}
    args = argparse.Namespace(data=str(tmp_path), out=str(tmp_path), **defaults)
    torch_classifier.finish(network, images, args, {"step": 1})
    path = tmp_path / "classifier.npz"
    model, variables, (shown, logits), training = import_classifier.read(path, SHAPE)
    np.testing.assert_array_equal(shown, images)
    apart = import_classifier.largest_difference(model, variables, images, logits)
    assert apart < 1e-12 and np.abs(logits).max() > 1e-3
    back = torch_networks.of_variables(model, variables).state_dict()
    for name, tensor in network.state_dict().items():
        if "num_batches" not in name:
            np.testing.assert_array_equal(back[name], tensor.float(), err_msg=name)
    assert training["step"] == 1 and "--hours=1.0" in training["command"]
    assert str(tmp_path) not in json.dumps(training)
    with np.load(path) as file:
        arrays = dict(file)
    del arrays["params/Conv_3/kernel"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="params/Conv_3/kernel is only in one"):
        import_classifier.read(path, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("training", ["adversarial_fgsm", "adversarial_bim"])
def test_attacks_of_training_in_torch_are_ours(training):
    """On a network of one dense layer, whose gradient has one sign everywhere."""
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp

    from pixeldefend import attacks
    from reproduction import torch_classifier

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(3 * 4 * 4, 2)

        def forward(self, images):
            return self.dense(images.permute(0, 2, 3, 1).flatten(1))

        def layers(self):
            return [], [], [self.dense]

    torch.manual_seed(0)
    network = Linear()
    images = torch.randint(0, 256, (32, 3, 4, 4)).float()
    found = torch_classifier.attacked(network, images, training, 8.0).numpy()
    moved = np.abs(found - images.numpy()).max((1, 2, 3))
    assert np.all(np.diff(moved) >= 0) and moved.min() < 4 and moved.max() > 8

    def logits_fn(weights, images):
        kernel, bias = weights
        return images.reshape(len(images), -1) @ kernel.T + bias[None]

    weights = [jnp.asarray(p.detach().numpy()) for p in network.dense.parameters()]
    shown = jnp.asarray(images.permute(0, 2, 3, 1).numpy())
    attack = {"adversarial_fgsm": attacks.fgsm, "adversarial_bim": attacks.bim}
    # The sizes are drawn inside: what each image moved by is its own.
    ours, _ = attack[training](
        logits_fn, weights, shown, None, eps=moved, quantise=False, keep_failed=True
    )
    np.testing.assert_allclose(found, np.asarray(ours).transpose(0, 3, 1, 2), atol=1e-4)


@pytest.mark.slow
def test_crops_and_mirrors_in_torch_are_windows_too():
    torch = pytest.importorskip("torch")
    from reproduction import torch_classifier

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 3, 8, 8)).astype(np.float32)
    torch.manual_seed(0)
    found = torch_classifier.augmented(torch.from_numpy(images), 2).numpy()
    places = set()
    for image, moved in zip(images, found, strict=True):
        windows = {}
        for flipped in (False, True):
            shown = image[..., ::-1] if flipped else image
            padded = np.pad(shown, ((0, 0), (2, 2), (2, 2)), mode="reflect")
            for i in range(5):
                for j in range(5):
                    windows[flipped, i, j] = padded[:, i : i + 8, j : j + 8]
        (place,) = [p for p, w in windows.items() if np.array_equal(w, moved)]
        places.add(place)
    assert len(places) > 30 and {flipped for flipped, _, _ in places} == {True, False}


def test_the_program_says_what_it_cannot_read(tmp_path, monkeypatch, capsys):
    given = ["import_classifier", f"--run={tmp_path}", f"--to={tmp_path / 'to'}"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match="cannot read the run: .*classifier.npz"):
        import_classifier.main()
    monkeypatch.setattr(sys, "argv", [*given, "--dataset=imagenet"])
    with pytest.raises(SystemExit):
        import_classifier.main()
    assert "invalid choice: 'imagenet'" in capsys.readouterr().err
