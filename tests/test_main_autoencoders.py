"""The modes around PuVAE, MagNet and their detectors, as a user runs them."""

import json
import shlex
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import ROOT, environment
from test_main import _command, _rows, _run, kill_once

from pixeldefend import keys
from pixeldefend.defences import puvae, reject
from pixeldefend.experiment import data, grid, zoo
from pixeldefend.experiment.tools import Tools
from pixeldefend.experiment.workbench import Workbench

pytestmark = pytest.mark.slow

SMOKE = "configs/mnist.py:smoke"
KINDS = ("puvae", "magnet")
COUNT = 4


def _of(kind):
    return f"--config.train.model={kind}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished smoke training runs, never disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in KINDS:
        result = _run(SMOKE, "train", _of(kind), f"--workdir={folder / kind}")
        assert result.returncode == 0, result.stderr
        assert "RMSE" in result.stdout and "images/s" in result.stdout
    return folder


@pytest.fixture(scope="module")
def released(trained, tmp_path_factory):
    """Released, with the scores of bundled images for thresholds."""
    folder = tmp_path_factory.mktemp("released") / "toy"
    for kind in KINDS:
        result = _run(
            SMOKE,
            "release",
            f"--config.release.model={kind}",
            f"--config.{kind}.weights={trained / kind}",
            f"--config.release.to={folder / kind}",
        )
        assert result.returncode == 0, result.stderr
    workdir = tmp_path_factory.mktemp("runs") / "calibrate"
    options = (*_weights(folder), "--config.calibrate.keep=True")
    result = _run(SMOKE, "calibrate", *options, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return folder, workdir


def _weights(folder):
    return [f"--config.{kind}.weights={folder / kind}" for kind in KINDS]


def _rows_option(*defences):
    rows = tuple(" + ".join(("mnist/cnn_a", *each)) for each in defences)
    return f"--config.sweep.rows={rows}"


@pytest.mark.parametrize("kind", KINDS)
def test_training_killed_and_run_again_ends_with_the_same_bytes(
    trained, tmp_path, kind
):
    command = _command(SMOKE, "train", _of(kind), f"--workdir={tmp_path}/run")
    kill_once(command, "run/checkpoints/2")
    assert not (tmp_path / "run/model").exists(), "killed too late to prove anything"
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    _, one, _ = zoo.load_released(str(trained / kind))
    _, other, _ = zoo.load_released(str(tmp_path / "run"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_card_tells_the_classifier_and_the_budget(trained):
    _, _, card = zoo.load_released(str(trained / "puvae"))
    told = card["training"]
    classifier = zoo.load_card(zoo.find_released("mnist/cnn_a"))
    assert told["classifier"] == "mnist/cnn_a"
    assert told["classifier_sha256"] == classifier["sha256"]
    assert told["images"] == 8 * 8 and told["loss_weights"]["divergence"] > 0
    _, _, card = zoo.load_released(str(trained / "magnet"))
    # What was asked for, not the metric of the same name.
    assert card["training"]["diversity"] == 0.04 and card["training"]["noise"] == 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_figure_comes_again_by_the_command_on_its_card(
    released, tmp_path, kind
):
    folder, _ = released
    card = zoo.load_card(folder / kind)
    figures = card["figures"]["sample"]
    assert figures["n"] == 256 and figures["rmse"] > 0
    python, main, *options = shlex.split(figures["command"])
    assert (python, main) == ("python", "main.py")
    # What the card calls by its name lies elsewhere here.
    options = [o.replace(f"toy/{kind}", str(folder / kind)) for o in options]
    done = subprocess.run(
        [*_command("x", "purify")[:2], *options, f"--workdir={tmp_path}/again"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (row,) = [r for r in _rows(tmp_path / "again") if r["attack"] == "none"]
    assert row["correct"] == figures["correct"] and row["n"] == 256


def test_calibrate_keeps_scores_that_give_its_thresholds(released):
    folder, workdir = released
    rows = {row["detector"]: row for row in _rows(workdir)}
    assert set(rows) == {"reject_rmse", "reject_magnet"}
    for name, row in rows.items():
        kind = {"reject_rmse": "puvae", "reject_magnet": "magnet"}[name]
        scores = zoo.load_validation(str(folder / kind))
        assert scores.shape == ({"puvae": 1, "magnet": 2}[kind], 16)
        bars = reject.thresholds(scores, false_positive_rate=0.25)
        np.testing.assert_allclose(row["thresholds"], bars, rtol=1e-5)
        # The same images: what was asked for is what comes.
        out = np.asarray(reject.rejected(scores, bars))
        assert row["rejected"] == pytest.approx(out.mean()) and row["n"] == 16
    model, params, _ = zoo.load_released(str(folder / "puvae"))
    images = data.sample("mnist")[0][:16]
    key = keys.for_images(jax.random.key(0), jnp.arange(16, dtype=jnp.uint32))
    rebuild = jax.jit(puvae.reconstruct, static_argnums=0)
    found = rebuild(model, params, images, key)
    scores = zoo.load_validation(str(folder / "puvae"))[0]
    np.testing.assert_allclose(found.rmse, scores, rtol=1e-5)


def test_detectors_in_a_row_reject_what_any_of_them_does(released, tmp_path):
    folder, _ = released
    models = {kind: zoo.load_released(str(folder / kind)) for kind in KINDS}
    of = {"reject_rmse": "puvae", "reject_magnet": "magnet"}
    thresholds = {
        name: reject.thresholds(
            zoo.load_validation(str(folder / kind)), false_positive_rate=0.25
        )
        for name, kind in of.items()
    }
    named = "mnist/cnn_a"
    classifiers = {named: zoo.load_released(named)}
    settings = {"dataset": "mnist", "puvae": {"samples": 1, "noise": 0.1}}
    tools = Tools(classifiers, models, settings, 0, 16, thresholds)
    given = data.read_input("mnist", "sample", 16, (28, 28, 1), None)
    bench = Workbench(tmp_path, given, tools)
    clean = grid.Adversary(grid.CLEAN)
    one, other = (bench.shown(clean, (name,), named).passed.rejected for name in of)
    assert one.any() and other.any() and not np.array_equal(one, other)
    both = bench.shown(clean, (*of, "puvae"), named).passed
    np.testing.assert_array_equal(both.rejected, one | other)
    alone = bench.shown(clean, ("puvae",), named).passed
    np.testing.assert_array_equal(both.images, alone.images)
    np.testing.assert_array_equal(both.rmse, alone.rmse)


@pytest.fixture(scope="module")
def swept(released, tmp_path_factory):
    folder, _ = released
    workdir = tmp_path_factory.mktemp("sweep") / "run"
    defences = ((), ("puvae",), ("reject_rmse", "puvae"), ("reject_magnet", "magnet"))
    options = [*_weights(folder), _rows_option(*defences)]
    options.append("--config.reject.false_positive_rate=0.25")
    result = _run(SMOKE, "sweep", *options, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    return folder, workdir, options, result.stdout


def test_sweep_rows_are_those_of_the_functions(swept):
    folder, workdir, _, printed = swept
    rows = _rows(workdir)
    model, params, _ = zoo.load_released(str(folder / "puvae"))
    scores = zoo.load_validation(str(folder / "puvae"))
    (bar,) = np.asarray(reject.thresholds(scores, false_positive_rate=0.25))
    labels = data.sample("mnist")[1][:COUNT]
    key = keys.for_images(jax.random.key(0), jnp.arange(COUNT, dtype=jnp.uint32))
    rebuild = jax.jit(puvae.reconstruct, static_argnums=0)
    network, variables, _ = zoo.load_released("mnist/cnn_a")
    checked = 0
    for eps in (25.5, 76.5):
        path = f"adversarial/fgsm-thesis-eps{eps:g}-mnist_cnn_a-fractional-*.npz"
        (path,) = workdir.glob(path)
        with np.load(path) as arrays:
            images = arrays["images"]
        assert images.dtype == np.float32
        clean = data.sample("mnist")[0][:COUNT]
        assert np.abs(images - clean).max() <= eps * (1 + 1e-6)
        found = rebuild(model, params, images, key)
        logits = network.apply(
            variables, np.round(found.images).astype(np.uint8), train=False
        )
        right = np.argmax(logits, -1) == labels
        out = np.asarray(found.rmse) > bar
        for row in rows:
            if (row["attack"], row["eps_attack"]) != ("fgsm", eps):
                continue
            if row["defence"] == "puvae":
                assert row["correct"] == right.sum()
                np.testing.assert_allclose(row["rmse"], np.mean(found.rmse), rtol=1e-3)
                checked += 1
            if row["defence"] == "reject_rmse+puvae":
                # As the thesis counts: what is rejected was told for an attack.
                assert row["correct"] == (right | out).sum()
                shares = [row["right"], row["wrong"], row["rejected"]]
                expected = [(right & ~out), (~right & ~out), out]
                np.testing.assert_allclose(
                    shares, [np.mean(e) for e in expected], atol=1e-4
                )
                checked += 1
    assert checked == 4
    assert "worst (eps)" in printed and "EVADE" in printed


def test_a_clean_image_that_is_rejected_is_not_right(swept):
    rows = [row for row in _rows(swept[1]) if row["attack"] == "none"]
    by = {row["defence"]: row for row in rows}
    row = by["reject_rmse+puvae"]
    assert row["accuracy"] == pytest.approx(row["right"])
    assert row["right"] + row["wrong"] + row["rejected"] == pytest.approx(1)
    assert "right" not in by["puvae"]


def test_who_sees_what_is_said(swept):
    rows = _rows(swept[1])
    threats = {
        (r["defence"], r["attack"], r["slope"]): (r["threat"], r["through"])
        for r in rows
    }
    assert threats["puvae", "fgsm", None] == ("grey-box", "classifier")
    seen = threats["puvae", "bim", "straight_through"]
    assert seen == ("white-box", "puvae+classifier")
    # The detector is not seen.
    partly = threats["reject_rmse+puvae", "bim", "straight_through"]
    assert partly == ("grey-box", "puvae+classifier")
    whole = threats["reject_rmse+puvae", "evade", "straight_through"]
    assert whole == ("white-box", "reject_rmse+puvae+classifier")


def test_sweep_again_makes_nothing_anew(swept, tmp_path):
    _, workdir, options, _ = swept
    folder = tmp_path / "copy"
    shutil.copytree(workdir, folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.npz")}
    again = _run(SMOKE, "sweep", *options, f"--workdir={folder}")
    assert again.returncode == 0, again.stderr
    assert "images/s" not in again.stdout
    kept = {p: t for p, t in times.items() if p.name != "sweep.npz"}
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert (folder / "table.md").read_text() == (workdir / "table.md").read_text()


def test_images_are_kept_for_figures(swept):
    with np.load(swept[1] / "sweep.npz") as arrays:
        assert arrays["strengths/fgsm"].shape == (2, 28, 28, 1)
        np.testing.assert_array_equal(arrays["strengths/eps"], [25.5, 76.5])


@pytest.mark.parametrize(
    "mode, options, message",
    [
        ("sweep", ["--config.puvae.weights=nowhere"], "no model 'nowhere'"),
        ("sweep", ["--config.puvae.weights=mnist/cnn_a"], ", not a puvae"),
        ("sweep", ["--config.puvae.samples=0"], "samples must be at least 1"),
        ("sweep", ["--config.reject.false_positive_rate=2.0"], "from 0 to 1: 2.0"),
        ("sweep", ["--config.sweep.evading_slope=x"], "evading_slope must be one of"),
        ("calibrate", ["--config.calibrate.defences=('x',)"], "unknown detector 'x'"),
        ("calibrate", ["--config.calibrate.rates=(0.0,)"], "between 0 and 1"),
        (
            "train",
            [_of("puvae"), "--config.puvae.model.variant=E"],
            "unknown variant 'E'",
        ),
        (
            "train",
            [_of("puvae"), "--config.puvae.loss.divergence=-1.0"],
            "divergence must be",
        ),
        (
            "train",
            [_of("puvae"), "--config.classifier.weights=cifar10/resnet"],
            "cifar10",
        ),
        ("train", [_of("magnet"), "--config.magnet.noise=-1.0"], "magnet.noise"),
        ("train", [_of("magnet"), "--config.magnet.model.copies=0"], "copies must be"),
        (
            "release",
            ["--config.release.model=puvae", "--config.release.to="],
            "release.to is missing",
        ),
    ],
)
def test_mistakes_end_in_one_line_and_touch_no_file(
    released, tmp_path, mode, options, message
):
    folder, _ = released
    given = [*_weights(folder), _rows_option(("reject_rmse", "puvae")), *options]
    result = _run(SMOKE, mode, *given, f"--workdir={tmp_path}/run")
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_sweep_of_no_rows(tmp_path):
    run = f"--workdir={tmp_path}/run"
    result = _run(SMOKE, "sweep", "--config.sweep.rows=()", run)
    assert result.returncode == 2 and "at least one row" in result.stderr


def test_a_detector_without_scores_says_how_to_make_them(trained, tmp_path):
    options = [*_weights(trained), _rows_option(("reject_rmse", "puvae"))]
    result = _run(SMOKE, "sweep", *options, f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert "has no threshold: make them with --mode=calibrate" in result.stderr


def test_rows_are_json_that_anyone_can_read(swept):
    for line in (swept[1] / "rows.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=lambda text: pytest.fail(text))
        assert row["dataset"] == "mnist" and row["version"]


def test_a_squeezed_row_alone_and_fractional_levels(released, tmp_path):
    options = [
        *_weights(released[0]),
        "--config.evaluate.rows=('mnist/cnn_a + squeeze',)",
        "--config.evaluate.attacks=('fgsm','fgsm preset=thesis levels=fractional')",
        f"--workdir={tmp_path}/run",
    ]
    result = _run(SMOKE, "evaluate", *options)
    assert result.returncode == 0, result.stderr
    (row,) = [r for r in _rows(tmp_path / "run") if r.get("levels") == "fractional"]
    assert row["through"] == "median+classifier" and row["n"] == COUNT


@pytest.mark.parametrize(
    "defences, message",
    [
        (("puvae", "reject_rmse"), "detectors must come first"),
        (("reject_rmse", "squeeze", "puvae"), "attacks see only part of"),
        (("puvae",), "detectors must come first"),
    ],
)
def test_what_evade_cannot_attack(released, tmp_path, defences, message):
    row = " + ".join(("mnist/cnn_a", *defences))
    options = [*_weights(released[0]), _rows_option(defences)]
    options.append(f"--config.sweep.evading_rows=('{row}',)")
    options.append("--config.reject.false_positive_rate=0.25")
    result = _run(SMOKE, "sweep", *options, f"--workdir={tmp_path}/run")
    assert result.returncode == 2 and message in result.stderr, result.stderr


def test_thresholds_are_of_the_same_draws(released, tmp_path):
    options = [*_weights(released[0]), _rows_option(("reject_rmse", "puvae"))]
    options.append("--config.puvae.noise=0.5")
    result = _run(SMOKE, "sweep", *options, f"--workdir={tmp_path}/run")
    assert result.returncode == 2
    assert (
        "are for puvae.samples and puvae.noise [1, 0.1], not [1, 0.5]" in result.stderr
    )
