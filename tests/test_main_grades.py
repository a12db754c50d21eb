"""The mode `calibrate` of purify_graded, as a user runs it."""

import json
import re
import shlex

import numpy as np
import pytest
from test_main import FASHION, _command, _rows, _run, kill_once
from test_main_evaluate import save

from pixeldefend.density import pixelcnn
from pixeldefend.experiment import rows

pytestmark = pytest.mark.slow

CLASSIFIER, COUNT = "fashion_mnist/cnn_a", 12
ATTACKS = [
    "--config.evaluate.attacks=('rand', 'bim images=5')",
    "--config.evaluate.eps_attack=(8.0, 25.0)",
]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A density model that knows nothing, which does not matter here."""
    model = pixelcnn.PixelCNN(channels=1, features=4, depth=1, mixtures=2, dropout=0.0)
    density = save(tmp_path_factory.mktemp("density"), "pixelcnn", model, 0)
    return [
        "--config.calibrate.defences=('purify_graded',)",
        f"--config.calibrate.images={COUNT}",
        "--config.calibrate.eps=(20, 30)",
        "--config.calibrate.qualities=(0, 20)",
        f"--config.classifier.weights={CLASSIFIER}",
        f"--config.pixelcnn.weights={density}",
        "--config.purify.eps=25",
        *ATTACKS,
    ]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = _run(f"{FASHION}:smoke", "calibrate", *options, f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def _figures(folder):
    return {
        (row["defence"], row["attack"], row["eps_attack"]): (row["correct"], row["n"])
        for row in _rows(folder)
        if row["attack"] != rows.WORST
    }


def test_the_grades_of_purify_graded(whole):
    folder, printed = whole
    found = json.loads((folder / "grades.json").read_text())
    assert "these are test images" in printed and "grey-box" in printed
    tried = [(one["eps"], one["quality"]) for one in found["candidates"]]
    assert tried == [(20, 0), (20, 20), (30, 0), (30, 20)]
    assert {(eps, *(quality or [0])) for _, eps, *quality in found["grades"]} <= {
        *tried
    }
    assert all(found["accuracy"] >= one["accuracy"] for one in found["candidates"])
    assert found["n"] == COUNT and not (folder / "parts").exists()
    # Clean images and two attacks of two eps, each met by three defences.
    figures = _figures(folder)
    assert len(figures) == len(_rows(folder)) == 15
    shares = {key[1:]: n for key, (_, n) in figures.items()}
    assert shares == {
        ("none", 0.0): COUNT,
        ("rand", 8.0): COUNT,
        ("rand", 25.0): COUNT,
        ("bim", 8.0): 5,
        ("bim", 25.0): 5,
    }
    plain = [row for row in _rows(folder) if row["defence"] == "purify"]
    assert {row["eps_defend"] for row in plain} == {25}
    mean = sum(
        (0.5 if key[1] == "none" else 0.125) * correct / n
        for key, (correct, n) in figures.items()
        if key[0] == "purify_graded"
    )
    np.testing.assert_allclose(found["accuracy"], mean, atol=1e-4)


def test_what_is_printed_gives_what_was_found(whole, options, tmp_path):
    """The line pasted into `evaluate`, which purifies by itself."""
    folder, printed = whole
    (line,) = re.findall(r"^--config\.purify\.eps.*$", printed, re.MULTILINE)
    names = ("", " + purify_graded")
    result = _run(
        f"{FASHION}:smoke",
        "evaluate",
        next(option for option in options if "pixelcnn" in option),
        *shlex.split(line),
        f"--config.evaluate.rows={tuple(CLASSIFIER + name for name in names)}",
        f"--config.evaluate.images={COUNT}",
        *ATTACKS,
        f"--workdir={tmp_path}/run",
    )
    assert result.returncode == 0, result.stderr
    expected = {
        key: found for key, found in _figures(folder).items() if key[0] != "purify"
    }
    assert _figures(tmp_path / "run") == expected
    grades = {
        row["grades"] for place in (folder, tmp_path / "run") for row in _graded(place)
    }
    assert len(grades) == 1


def _graded(folder):
    return [row for row in _rows(folder) if row["defence"] == "purify_graded"]


def test_killed_and_run_again_it_chooses_the_same(whole, options, tmp_path):
    folder = tmp_path / "run"
    options = [*options, f"--workdir={folder}"]
    command = _command(f"{FASHION}:smoke", "calibrate", *options)
    kill_once(command, "parts/purified/*/*/*.npz")
    assert not (folder / "rows.jsonl").exists(), "killed too late to prove anything"
    result = _run(f"{FASHION}:smoke", "calibrate", *options)
    assert result.returncode == 0, result.stderr
    found, expected = (
        json.loads((place / "grades.json").read_text()) for place in (folder, whole[0])
    )
    assert found == expected
    assert _figures(folder) == _figures(whole[0])
    # And a third time there is nothing left to do.
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")}
    assert _run(f"{FASHION}:smoke", "calibrate", *options).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")} == times
