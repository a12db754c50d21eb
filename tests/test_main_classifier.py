"""The classifier's modes on the command line, as a user runs them."""

import json
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_main import FASHION, ROOT, _command, _environment, _run

from pixeldefend import checkpoint, data

SMOKE = f"{FASHION}:smoke"
ATTACKED = "--config.classifier.training=adversarial_fgsm"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished smoke training run, never disturbed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = _run(SMOKE, "train_classifier", ATTACKED, f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    assert "validation images right" in result.stdout and "attacked" in result.stdout
    return folder


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory):
    to = tmp_path_factory.mktemp("released") / "toy/vgg-adversarial_fgsm8"
    result = _run(
        SMOKE,
        "release_classifier",
        f"--config.classifier.weights={trained}",
        f"--config.release.to={to}",
        "--config.release.note=a toy",
    )
    assert result.returncode == 0, result.stderr
    return to


def _leaves(folder):
    _, variables, _ = checkpoint.load_released(str(folder))
    return jax.tree.leaves(variables)


def test_train_classifier_killed_and_run_again_ends_with_the_same_bytes(
    trained, tmp_path
):
    folder = tmp_path / "run"
    command = _command(SMOKE, "train_classifier", ATTACKED, f"--workdir={folder}")
    first = folder / "checkpoints/2"
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.DEVNULL
    )
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first.exists(), "never reached a checkpoint"
    assert not (folder / "model").exists(), "killed too late to prove anything"
    before = (folder / "metrics.jsonl").read_text().splitlines()[0]
    subprocess.run(command, cwd=ROOT, env=_environment(), check=True)
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    for one, other in zip(_leaves(trained), _leaves(folder), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trained_classifier_is_loaded_with_its_statistics(trained):
    model, variables, card = checkpoint.load_released(str(trained))
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
        "--config.classify.attack=bim",
        f"--workdir={tmp_path}/a",
    )
    assert result.returncode == 0, result.stderr
    assert "BIM, eps 8 (white-box)" in result.stdout and "Wilson" in result.stdout
    lines = (tmp_path / "a/rows.jsonl").read_text().splitlines()
    clean, attacked = map(json.loads, lines)
    assert clean["attack"] == "none" and attacked["attack"] == "bim"
    assert attacked["threat"] == "white-box" and attacked["eps_attack"] == 8
    _, labels = data.sample("fashion_mnist")
    with np.load(tmp_path / "a/predictions.npz") as file:
        for name, row in (("clean", clean), ("bim", attacked)):
            assert row["correct"] == np.sum(file[name] == labels[:64])
            assert row["low"] <= row["accuracy"] <= row["high"] and row["n"] == 64
    with np.load(tmp_path / "a/correct/sample.npz") as file:
        assert file["bim"].sum() == attacked["correct"]


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
    card = checkpoint.load_card(released)
    assert card["name"] == "toy/vgg-adversarial_fgsm8" and card["note"] == "a toy"
    assert set(card["figures"]["sample"]) == {"clean", "fgsm8", "fgsm25"}
    assert str(trained.parent) not in (released / "card.json").read_text()


def test_the_command_on_a_card_gives_its_figures_again(released, tmp_path):
    figures = checkpoint.load_card(released)["figures"]["sample"]
    _, _, *options = shlex.split(figures["fgsm25"]["command"])
    options = [
        *(o for o in options if "classifier.weights" not in o),
        f"--config.classifier.weights={released}",
        f"--workdir={tmp_path}/a",
    ]
    subprocess.run(
        [sys.executable, "main.py", *options], cwd=ROOT, env=_environment(), check=True
    )
    rows = [json.loads(s) for s in (tmp_path / "a/rows.jsonl").read_text().splitlines()]
    for row, name in zip(rows, ("clean", "fgsm25"), strict=True):
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
    assert result.returncode == 2 and "knows 10 classes" in result.stderr
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
