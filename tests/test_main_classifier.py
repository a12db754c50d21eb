"""The classifier's modes on the command line, as a user runs them."""

import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import ROOT, environment
from test_main import FASHION, _command, _rows, _run, kill_once

from pixeldefend.experiment import data, zoo

pytestmark = pytest.mark.slow

SMOKE = f"{FASHION}:smoke"
KIND = "--config.train.model=classifier"
ATTACKED = "--config.classifier.training=adversarial_fgsm"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished smoke training run, never disturbed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = _run(SMOKE, "train", KIND, ATTACKED, f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    assert "validation images right" in result.stdout and "attacked" in result.stdout
    return folder


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory):
    to = tmp_path_factory.mktemp("released") / "toy/vgg-adversarial_fgsm8"
    result = _run(
        SMOKE,
        "release",
        "--config.release.model=classifier",
        f"--config.classifier.weights={trained}",
        f"--config.release.to={to}",
        "--config.release.note=a toy",
    )
    assert result.returncode == 0, result.stderr
    return to


def _leaves(folder):
    _, variables, _ = zoo.load_released(str(folder))
    return jax.tree.leaves(variables)


def test_train_classifier_killed_and_run_again_ends_with_the_same_bytes(
    trained, tmp_path
):
    folder = tmp_path / "run"
    command = _command(SMOKE, "train", KIND, ATTACKED, f"--workdir={folder}")
    kill_once(command, "checkpoints/2")
    assert not (folder / "model").exists(), "killed too late to prove anything"
    before = (folder / "metrics.jsonl").read_text().splitlines()[0]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    for one, other in zip(_leaves(trained), _leaves(folder), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trained_classifier_is_loaded_with_its_statistics(trained):
    model, variables, card = zoo.load_released(str(trained))
    assert card["kind"] == "classifier" and model.axis_name is None
    assert card["training"]["training"] == "adversarial_fgsm"
    assert card["training"]["delta"] == 8.0 and card["training"]["step"] == 8
    means = variables["batch_stats"]["BatchNorm_1"]["mean"]
    assert np.any(means != 0), "the statistics are those of the start"


def test_classify_smoke(trained, tmp_path):
    result = _run(
        SMOKE,
        "classify",
        f"--config.classifier.weights={trained}",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 0, result.stderr
    assert "Wilson" in result.stdout
    (row,) = _rows(tmp_path / "a")
    assert row["attack"] == "none" and row["threat"] is None
    _, labels = data.sample("fashion_mnist")
    with np.load(tmp_path / "a/predictions.npz") as file:
        assert row["correct"] == np.sum(file["clean"] == labels[:64])
    assert row["low"] <= row["accuracy"] <= row["high"] and row["n"] == 64


def test_attack_smoke(trained, tmp_path):
    result = _run(
        SMOKE,
        "attack",
        f"--config.classifier.weights={trained}",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 0, result.stderr
    assert "BIM, eps 8 (white-box)" in result.stdout
    clean, attacked = _rows(tmp_path / "a")
    assert clean["attack"] == "none" and attacked["attack"] == "bim"
    assert attacked["threat"] == "white-box" and attacked["preset"] == "paper"
    images, labels = data.sample("fashion_mnist")
    with np.load(tmp_path / "a/adversarial/sample.npz") as file:
        made = dict(file)
    np.testing.assert_array_equal(made["clean"], images[:8])
    np.testing.assert_array_equal(made["labels"], labels[:8])
    moved = np.abs(made["images"].astype(int) - images[:8]).max((1, 2, 3))
    np.testing.assert_array_equal(made["distance"], moved)
    assert moved.max() == 8 and np.all(made["steps"] == 10)
    np.testing.assert_array_equal(made["success"], made["prediction"] != labels[:8])
    assert attacked["correct"] == np.sum(~made["success"]) and attacked["n"] == 8
    with np.load(tmp_path / "a/correct/sample.npz") as file:
        assert file["bim"].sum() == attacked["correct"]
        assert file["clean"].sum() == clean["correct"]


def test_attacks_of_own_pictures_without_labels_leave_the_predicted_class(
    trained, tmp_path
):
    images, _ = data.sample("fashion_mnist")
    np.save(tmp_path / "mine.npy", images[:5])
    result = _run(
        SMOKE,
        "attack",
        f"--config.classifier.weights={trained}",
        f"--config.attack.input={tmp_path}/mine.npy",
        "--config.attack.eps=30",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 0, result.stderr
    assert "no labels" in result.stdout
    with np.load(tmp_path / "a/adversarial/mine.npz") as file:
        left = file["prediction"] != file["clean_prediction"]
        np.testing.assert_array_equal(file["success"], left)
        assert left.any() and "labels" not in file
    # What was made can be purified like any other images.
    again = _run(
        SMOKE,
        "purify",
        f"--config.purify.input={tmp_path}/a/adversarial/mine.npz",
        f"--workdir={tmp_path}/b",
    )
    assert again.returncode == 0, again.stderr


def test_attack_killed_and_run_again_ends_with_the_same_file(trained, tmp_path):
    many = (
        f"--config.classifier.weights={trained}",
        "--config.attack.count=240",  # 30 batches
        "--config.attack.name=pgd",
    )
    whole = _run(SMOKE, "attack", f"--workdir={tmp_path}/a", *many)
    assert whole.returncode == 0, whole.stderr
    command = _command(SMOKE, "attack", f"--workdir={tmp_path}/b", *many)
    kill_once(command, "b/parts/*/*.npz")
    result = tmp_path / "b/adversarial/sample.npz"
    assert not result.exists(), "killed too late to prove anything"
    again = _run(SMOKE, "attack", f"--workdir={tmp_path}/b", *many)
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stdout
    assert result.read_bytes() == (tmp_path / "a/adversarial/sample.npz").read_bytes()


def test_classify_ones_own_pictures_without_labels(trained, tmp_path):
    images, _ = data.sample("fashion_mnist")
    np.save(tmp_path / "mine.npy", images[:5])
    result = _run(
        SMOKE,
        "classify",
        f"--config.classifier.weights={trained}",
        f"--config.classify.input={tmp_path}/mine.npy",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 0, result.stderr
    assert "no labels" in result.stdout
    with np.load(tmp_path / "a/predictions.npz") as file:
        assert file["clean"].shape == (5,)


def test_release_classifier_smoke(trained, released, tmp_path):
    for one, other in zip(_leaves(trained), _leaves(released), strict=True):
        np.testing.assert_array_equal(one, other)
    card = zoo.load_card(released)
    assert card["name"] == "toy/vgg-adversarial_fgsm8" and card["note"] == "a toy"
    assert set(card["figures"]["sample"]) == {"clean", "fgsm8", "fgsm25"}
    assert str(trained.parent) not in (released / "card.json").read_text()


def test_the_command_on_a_card_gives_its_figures_again(released, tmp_path):
    figures = zoo.load_card(released)["figures"]["sample"]
    _, _, *options = shlex.split(figures["fgsm25"]["command"])
    options = [
        *(o for o in options if "classifier.weights" not in o),
        f"--config.classifier.weights={released}",
        f"--workdir={tmp_path}/a",
    ]
    subprocess.run(
        [sys.executable, "main.py", *options], cwd=ROOT, env=environment(), check=True
    )
    for row, name in zip(_rows(tmp_path / "a"), ("clean", "fgsm25"), strict=True):
        assert row["n"] == figures[name]["n"] == 256
        # Another batch size may turn a near-tie.
        assert abs(row["correct"] - figures[name]["correct"]) <= 2


def test_labels_that_the_classifier_does_not_know_are_refused(trained, tmp_path):
    images, labels = data.sample("fashion_mnist")
    np.savez(tmp_path / "mine.npz", images=images[:5], labels=labels[:5] + 10)
    result = _run(
        SMOKE,
        "classify",
        f"--config.classifier.weights={trained}",
        f"--config.classify.input={tmp_path}/mine.npz",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 2 and "has 10 classes" in result.stderr
    assert not (tmp_path / "a").exists()


def test_a_classifier_of_another_data_set_is_refused(trained, tmp_path):
    result = _run(
        "configs/mnist.py:smoke",
        "classify",
        f"--config.classifier.weights={trained}",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 2 and "trained on fashion_mnist" in result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "a").exists()
