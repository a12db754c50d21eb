"""The mode `import`: from a file of weights to a released model."""

import contextlib
import hashlib
import io
import json

import jax
import numpy as np
import pytest
from models import tiny
from published import as_tensorflow, as_torch

import pixeldefend
from configs import cifar10, mnist
from pixeldefend.experiment import files, modes, zoo

GREY, COLOUR = (28, 28, 1), (32, 32, 3)


def _arrays(shape, **options):
    """Of a small network, by the names of PyTorch; by TensorFlow's with classes."""
    model, params, _, _ = tiny(shape, conditionals="joint", **options)
    # So that levels have probabilities that float32 can hold.
    params = jax.tree.map(lambda a: a / 4, params)
    if model.classes:
        return as_tensorflow(model, params)
    return as_torch(model, params, np.random.default_rng(0))


def _config(get_config, weights, to):
    config = get_config("smoke")
    config.compilation_cache = ""
    config.import_.weights = str(weights)
    config.release.to = str(to)
    return config


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder with `weights.npz`, what was made of it, and what that printed."""
    folder = tmp_path_factory.mktemp("imported")
    np.savez(folder / "weights.npz", **_arrays(GREY))
    config = _config(mnist.get_config, folder / "weights.npz", folder / "toy/pixelcnn")
    config.release.note = "a toy"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        modes.start("import", config, str(folder / "run"))
    assert not (folder / "run").exists(), "all that is written goes to release.to"
    return folder, printed.getvalue()


def test_the_folder_is_a_released_model(imported):
    folder, printed = imported
    model, params, card = zoo.load_released(str(folder / "toy/pixelcnn"))
    with np.load(folder / "weights.npz") as arrays:
        expected = pixeldefend.import_pixelcnn(dict(arrays))
    assert model == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
    assert card["name"] == "toy/pixelcnn" and card["note"] == "a toy"
    assert set(card["figures"]) == {"train", "test", "sample"}
    assert all(figures["n"] == 8 for figures in card["figures"].values())
    # All splits are the first of the sample.
    reference = zoo.load_reference(str(folder / "toy/pixelcnn"))
    assert reference.shape == (8,)
    said = card["figures"]["sample"]["bits_per_dim"]
    assert abs(said + np.mean(reference) / (784 * np.log(2))) < 1e-3
    assert f"{said:.3f} bits/dim on 8 bundled images\n" in printed


def test_the_card_tells_where_the_weights_come_from(imported):
    folder, _ = imported
    text = (folder / "toy/pixelcnn/card.json").read_text()
    told = json.loads(text)["training"]
    content = (folder / "weights.npz").read_bytes()
    assert told["files"] == {"weights.npz": hashlib.sha256(content).hexdigest()}
    assert told["code"] == "pclucas14/pixel-cnn-pp" and not told["averaged"]
    assert told["command"].startswith("not known")
    assert str(folder) not in text


@pytest.mark.slow
def test_the_command_on_the_card_gives_its_figures_again(imported, tmp_path):
    folder, _ = imported
    figures = zoo.load_card(folder / "toy/pixelcnn")["figures"]["sample"]
    assert "--mode=score" in figures["command"]
    assert figures["command"].endswith(
        "--config.score.input=sample --config.score.count=8"
    )
    config = mnist.get_config("smoke")
    config.pixelcnn.weights = str(folder / "toy/pixelcnn")
    config.score.count = 8
    modes.start("score", config, str(tmp_path / "run"))
    again = json.loads((tmp_path / "run/figures.json").read_text())
    assert {**figures, **again} == {**figures, "input": "sample"}
    with np.load(tmp_path / "run/scores.npz") as scores:
        reference = zoo.load_reference(str(folder / "toy/pixelcnn"))
        np.testing.assert_allclose(np.sort(scores["log_probs"]), reference, rtol=1e-6)
        ranks = 1 + np.argsort(np.argsort(scores["log_probs"]))
        np.testing.assert_allclose(scores["p_values"], (1 + ranks) / 9, rtol=1e-5)


@pytest.mark.slow
def test_bits_of_cifar10_stand_beside_those_that_were_published(tmp_path, capsys):
    averaged = as_tensorflow(*tiny(COLOUR, conditionals="joint")[:2], average=True)
    for claimed, arrays in ((2.92, averaged), (2.95, _arrays(COLOUR))):
        np.savez(tmp_path / "weights.npz", **arrays)
        config = _config(cifar10.get_config, tmp_path / "weights.npz", tmp_path / "to")
        modes.start("import", config, str(tmp_path / "run"))
        assert f"claims {claimed} on all test images" in capsys.readouterr().out
        card = zoo.load_card(tmp_path / "to")
        assert card["training"]["averaged"] == (claimed == 2.92)


MISTAKES = [
    ({}, {}, {"import_.weights": ""}, "import_.weights is missing"),
    (
        {},
        {},
        {"import_.weights": "no/weights.npz"},
        "no file of weights no/weights.npz",
    ),
    ({}, {}, {"import_.weights": "configs"}, "configs: weights are read from .npz"),
    ({}, {}, {"import_.count": -1}, "import_.count must not be negative: -1"),
    ({}, {}, {"release.to": ""}, "release.to is missing"),
    ({}, {}, {"release.batch": 0}, "release.batch must be at least 1"),
    ({}, {}, {"release.on_sample": False}, "the train split needs --config.data_dir"),
    ({}, {}, {"dataset": "cifar10"}, "weights.npz takes images with 1 channels, but"),
    ({"classes": 3}, {}, {}, "weights.npz is class-conditional"),
    ({}, {"more": np.zeros(3)}, {}, r"weights.npz: more \(3,\) is one too many"),
    ({}, {"u_init.conv.bias": np.array(["a"])}, {}, r"bias is \(1,\), not \(3,\)"),
    ({}, {"u_init.conv.bias": np.array([*"abc"])}, {}, "holds <U1, not floating"),
]


@pytest.mark.parametrize("options, more, fields, message", MISTAKES)
def test_mistakes_are_one_line_and_touch_nothing(
    options, more, fields, message, tmp_path
):
    np.savez(tmp_path / "weights.npz", **_arrays(GREY, **options) | more)
    before = sorted(tmp_path.rglob("*"))
    config = _config(mnist.get_config, tmp_path / "weights.npz", tmp_path / "to")
    config.update_from_flattened_dict(fields)
    with pytest.raises(modes.UserError, match=message) as told:
        modes.start("import", config, str(tmp_path / "run"))
    assert "\n" not in str(told.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_other_kind_of_model_is_replaced(tmp_path):
    np.savez(tmp_path / "weights.npz", **_arrays(GREY))
    files.write_json(
        tmp_path / "to/card.json", zoo.load_card(zoo.find_released("mnist/cnn_a"))
    )
    config = _config(mnist.get_config, tmp_path / "weights.npz", tmp_path / "to")
    with pytest.raises(modes.UserError, match="release.to .* holds a classifier"):
        modes.start("import", config, str(tmp_path / "run"))
