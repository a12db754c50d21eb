"""Density models compared at equal training, and how long the paper's would take."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from processes import environment

from benchmarks import reach
from reproduction import figures, measured, plots, released_tables

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent


def _compare(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.networks", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True
    )


def test_a_comparison_trains_measures_and_goes_on(tmp_path, monkeypatch):
    folder, to = tmp_path / "runs", tmp_path / "conditionals_cifar10.jsonl"
    arguments = ["--smoke", "--only=joint", f"--folder={folder}", f"--to={to}"]
    arguments += ["--images=4", "--batch=2", "--repeats=1"]
    done = _compare(*arguments)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, to.read_text().splitlines())
    assert row["model"]["conditionals"] == "joint" and row["steps"] == 8
    assert [line["images"] for line in row["curve"]] == [32, 64]
    cells = {(one["attack"], one["defence"]) for one in row["accuracies"]}
    assert ("bim", "purify") in cells and ("none", "none") in cells
    # Nothing is trained or attacked again; times are.
    trained = (folder / "joint/model/card.json").stat().st_mtime_ns
    done = _compare(*arguments)
    assert done.returncode == 0, done.stderr
    (again,) = map(json.loads, to.read_text().splitlines())
    assert again | {"speed": row["speed"]} == row
    assert (folder / "joint/model/card.json").stat().st_mtime_ns == trained
    # Results of other flags are not taken for these.
    done = _compare(*arguments, "--images=5")
    assert done.returncode and "has runs of images 4" in done.stderr
    # Nor is a folder of something else.
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    done = _compare(*arguments, f"--folder={tmp_path / 'other'}")
    assert done.returncode and "not of a comparison" in done.stderr
    # It is shown, and drawn.
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    assert f"{row['test']['bits_per_dim']:.3f}" in released_tables.networks(to.stem)
    ((name, draw),) = figures._pictures(epath.Path(tmp_path))
    plots.save(draw(), tmp_path / f"{name}.png")
    assert (tmp_path / "conditionals_cifar10.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --steps or --hours of training"),
        (["--steps=5", "--hours=1"], "not both"),
        (["--smoke", "--steps=5"], "without them"),
        (["--steps=5"], "--data_dir is missing"),
        (["--smoke", "--only=best"], "no network best: one of 'independent'"),
    ],
)
def test_mistakes_of_a_comparison_end_in_one_line(arguments, message, tmp_path):
    done = _compare(*arguments, f"--folder={tmp_path / 'runs'}")
    assert done.returncode and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


def test_curves_end_where_the_runs_do():
    runs = {"a": (np.array([0.1, 0.2]), np.array([4.0, 3.5]))}
    figure = plots.training(runs, "hours")
    (axis,) = figure.axes
    (line,) = axis.lines
    np.testing.assert_array_equal(line.get_xydata(), [[0.1, 4.0], [0.2, 3.5]])
    assert axis.get_legend().texts[0].get_text() == "a: 3.500"


def test_timed_trainings_replace_older_rows(tmp_path, monkeypatch):
    first, second = list(reach.TRAININGS)[:2]
    path = tmp_path / "reach.jsonl"
    monkeypatch.setattr(type(reach._TO), "value", str(path))
    for name, hours in ((second, 2.0), (first, 1.0), (second, 3.0)):
        reach._keep({"training": name, "hours": hours})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["training"], row["hours"]) for row in rows] == [
        (first, 1.0),
        (second, 3.0),
    ]


def test_an_unknown_training_is_refused():
    command = [sys.executable, "-m", "benchmarks.reach", "--only=ImageNet"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode and "CIFAR-10 ResNet-62" in done.stderr
    assert "Traceback" not in done.stderr
