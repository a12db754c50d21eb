"""The command line, as a user runs it: whole processes, real files, exit codes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import mostly_slow
from PIL import Image
from processes import ROOT, environment, held, wait_until_held

from configs import cifar10, default
from pixeldefend.defences import base, graded
from pixeldefend.experiment import data, modes, zoo

FASHION, CIFAR = "configs/fashion_mnist.py", "configs/cifar10.py"


def _command(config, mode, *options):
    program = ["main.py"] if mode in modes.MODES else ["-m", "reproduction"]
    return [sys.executable, *program, f"--config={config}", f"--mode={mode}", *options]


def run_program(text):
    """A program of its own; it must end well. Returns what it printed."""
    found = subprocess.run(
        [sys.executable, "-c", text],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def _run(config, mode, *options, devices=1):
    return subprocess.run(
        _command(config, mode, *options),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=600,
    )


def kill_once(command, pattern):
    """Runs a command and kills it as soon as it has written a file of that name."""
    process = subprocess.Popen(
        held(command, pattern), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    wait_until_held(process)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished smoke training run, never disturbed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    board = f"--config.train.tensorboard={find_spec('tensorboardX') is not None}"
    result = _run(f"{FASHION}:smoke", "train", f"--workdir={folder}", board)
    assert result.returncode == 0, result.stderr
    assert len(list((folder / "events").iterdir())) == 1 or "False" in board
    assert "bits/dim" in result.stdout and "images/s" in result.stdout
    return folder


@pytest.mark.slow
def test_train_killed_and_run_again_ends_with_the_same_bytes(trained, tmp_path):
    command = _command(f"{FASHION}:smoke", "train", f"--workdir={tmp_path}/run")
    kill_once(command, "run/checkpoints/2")
    assert not (tmp_path / "run/model").exists(), "killed too late to prove anything"
    before = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    # Its timing is in the line: a run that began again would have written another.
    assert (tmp_path / "run/metrics.jsonl").read_text().startswith(before)
    _, params, _ = zoo.load_released(str(trained))
    _, resumed, _ = zoo.load_released(str(tmp_path / "run"))
    for one, other in zip(_leaves(params), _leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


@pytest.mark.parametrize("config", mostly_slow([FASHION, CIFAR], 1))
def test_purify_smoke(config, tmp_path):
    result = _run(f"{config}:smoke", "purify", f"--workdir={tmp_path}/a")
    assert result.returncode == 0, result.stderr
    assert (
        "bundled first 256 test images" in result.stdout
        and "BIM, eps 8" in result.stdout
        and "grey-box" in result.stdout
    )
    name = pathlib.Path(config).stem
    with np.load(tmp_path / "a/purified/sample.npz") as file:
        perturbed, purified, labels = (
            file[k] for k in ("images", "purified", "labels")
        )
    images, expected = data.sample(name)
    np.testing.assert_array_equal(labels, expected[:4])
    assert perturbed.dtype == purified.dtype == np.uint8
    assert np.abs(perturbed.astype(int) - images[:4]).max() == 8
    eps = 32 if name == "fashion_mnist" else 16
    if name == "cifar10":  # by degrees, and compressed
        defence, its = graded.PurifyGraded.build(
            base.Given(
                cifar10.get_config().to_dict(),
                *zoo.load_released("cifar10/pixelcnn")[:2],
            )
        )
        again = jax.jit(defence.compute)(its, jnp.asarray(perturbed), None)
        assert np.mean(purified != np.asarray(again["images"])) < 0.01
    else:
        assert 8 < np.abs(purified.astype(int) - perturbed).max() <= eps
    clean, attacked, defended = _rows(tmp_path / "a")
    assert clean["attack"] == "none" and clean["threat"] is None
    assert attacked["attack"] == defended["attack"] == "bim"
    assert attacked["defence"] == "none" and attacked["threat"] == "white-box"
    expected = "purify_graded+mirror" if name == "cifar10" else "purify"
    assert defended["defence"] == expected and defended["threat"] == "grey-box"
    assert defended["eps_defend"] == eps and defended["source"] == f"{name}/vgg"
    assert defended["bits_per_dim"] < attacked["bits_per_dim"]
    assert clean["bits_per_dim"] < attacked["bits_per_dim"]
    with np.load(tmp_path / "a/predictions.npz") as file:
        guesses = {stage: file[stage] for stage in ("clean", "perturbed", "purified")}
    stages = zip(guesses, (clean, attacked, defended), strict=True)
    for stage, row in stages:
        assert row["correct"] == np.sum(guesses[stage] == labels) and row["n"] == 4
    assert np.all(guesses["perturbed"] != labels), "BIM failed"
    with Image.open(tmp_path / "a/figures/before_after.png") as picture:
        assert picture.size[0] > 4 * 28


def _rows(folder):
    return [json.loads(s) for s in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_purify_without_a_classifier_perturbs_with_noise(tmp_path):
    blind = "--config.classifier.weights="
    result = _run(f"{FASHION}:smoke", "purify", blind, f"--workdir={tmp_path}/a")
    assert result.returncode == 0, result.stderr
    assert "RAND, eps 8" in result.stdout and "accuracy" not in result.stdout
    assert all(row["threat"] is None for row in _rows(tmp_path / "a"))
    with np.load(tmp_path / "a/purified/sample.npz") as file:
        moved = file["images"].astype(int) - file["clean"]
    assert np.abs(moved).max() == 8 and len(np.unique(moved)) == 17
    for row in _rows(tmp_path / "a"):
        assert row["source"] is None and "accuracy" not in row
    assert not (tmp_path / "a/predictions.npz").exists()


@pytest.mark.slow
def test_purify_killed_and_run_again_ends_with_the_same_file(trained, tmp_path):
    many = ["--config.purify.count=200", "--config.purify.batch=1"]
    many.append(f"--config.pixelcnn.weights={trained}")
    whole = _run(f"{FASHION}:smoke", "purify", f"--workdir={tmp_path}/a", *many)
    assert whole.returncode == 0, whole.stderr
    command = _command(f"{FASHION}:smoke", "purify", f"--workdir={tmp_path}/b", *many)
    kill_once(command, "b/parts/*/*.npz")
    result = tmp_path / "b/purified/sample.npz"
    assert not result.exists(), "killed too late to prove anything"
    again = _run(f"{FASHION}:smoke", "purify", f"--workdir={tmp_path}/b", *many)
    assert again.returncode == 0, again.stderr
    assert "resuming after" in again.stdout
    assert result.read_bytes() == (tmp_path / "a/purified/sample.npz").read_bytes()
    assert not (tmp_path / "b/parts").exists()


@pytest.mark.slow
def test_purify_on_four_devices_gives_the_bytes_of_one(trained, tmp_path):
    for devices in (1, 4):
        options = ["--config.purify.batch=1", "--config.purify.count=6"]
        options.append(f"--config.pixelcnn.weights={trained}")
        place = f"--workdir={tmp_path}/{devices}"
        result = _run(f"{FASHION}:smoke", "purify", place, *options, devices=devices)
        assert result.returncode == 0, result.stderr
    one, four = (tmp_path / f"{n}/purified/sample.npz" for n in (1, 4))
    assert one.read_bytes() == four.read_bytes()


@pytest.mark.slow
def test_purify_ones_own_pictures(trained, tmp_path):
    images, _ = data.sample("fashion_mnist")
    (tmp_path / "mine").mkdir()
    for name, image in zip("ab", images[:2], strict=True):
        Image.fromarray(image[..., 0]).save(tmp_path / f"mine/{name}.png")
    (tmp_path / "mine/.c.png.1.partial.png").write_bytes(b"left by a killed run")
    options = (
        f"--config.purify.input={tmp_path}/mine",
        f"--workdir={tmp_path}/out",
        f"--config.pixelcnn.weights={trained}",
        "--config.purify.eps=3",
    )
    result = _run(f"{FASHION}:smoke", "purify", *options)
    assert result.returncode == 0, result.stderr
    assert "BIM" not in result.stdout and "no attack" in result.stdout
    with np.load(tmp_path / "out/predictions.npz") as file:
        assert file["names"].tolist() == ["a", "b"] and len(file["purified"]) == 2
    for name, image in zip("ab", images[:2], strict=True):
        found = np.asarray(Image.open(tmp_path / f"out/purified/{name}.png"))
        assert 0 < np.abs(found.astype(int) - image[..., 0]).max() <= 3
    # The same folder without: what is in the table does not depend on them.
    options = (*options, "--config.purify.pictures=False")
    result = _run(f"{FASHION}:smoke", "purify", *options)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "out/purified").iterdir()}
    assert names == {"mine.npz"}


@pytest.mark.slow
def test_sample_smoke(trained, tmp_path):
    result = _run(
        f"{FASHION}:smoke",
        "sample",
        f"--workdir={tmp_path}/a",
        f"--config.pixelcnn.weights={trained}",
    )
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "a/samples.npz") as file:
        assert file["images"].shape == (4, 28, 28, 1)
    with Image.open(tmp_path / "a/samples.png") as picture:
        assert picture.size[0] > 2 * 28


def test_score_smoke(tmp_path):
    result = _run(f"{FASHION}:smoke", "score", f"--workdir={tmp_path}/a")
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "a/scores.npz") as file:
        assert file["bits_per_dim"].shape == (8,)
        reference = zoo.load_reference("fashion_mnist/pixelcnn")
        ranks = [np.sum(reference <= value) for value in file["log_probs"]]
        expected = (1 + np.array(ranks)) / (len(reference) + 1)
        np.testing.assert_allclose(file["p_values"], expected, rtol=1e-5)


@pytest.mark.slow
def test_release_smoke(trained, tmp_path):
    to = tmp_path / "toy/pixelcnn"
    result = _run(
        f"{FASHION}:smoke",
        "release",
        f"--config.pixelcnn.weights={trained}",
        f"--config.release.to={to}",
        "--config.release.note=a toy",
    )
    assert result.returncode == 0, result.stderr
    _, params, card = zoo.load_released(str(to))
    _, expected, _ = zoo.load_released(str(trained))
    for one, other in zip(_leaves(params), _leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert card["name"] == "toy/pixelcnn" and card["note"] == "a toy"
    assert card["figures"]["sample"]["n"] == 256
    assert card["training"]["step"] == 8
    assert str(tmp_path) not in (to / "card.json").read_text()
    assert zoo.load_reference(str(to)).shape == (256,)


@pytest.mark.slow
def test_the_benchmark_prints_its_ratio():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.purify", "--features=2", "--height=4"]
        + ["--width=4", "--batch=2", "--repeats=1"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for name in ("ratio_to_forward", "ratio_naive"):
        assert found[name] > 0
    for name in ("compile_seconds_cached", "temporary_bytes", "images_per_second"):
        assert found[name] > 0
    assert found["images"] == [2, 4, 4, 1]


@pytest.mark.slow
def test_agreement_tells_where_images_part():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.agreement", "--count=2", "--batch=2"]
        + ["--other_batch=1", "--weights=fashion_mnist/pixelcnn"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["n"] == 2 and found["batch 1"]["levels_equal"] > 0.9
    assert found["bfloat16"]["images_equal"] < 1
    assert found["bfloat16"]["first_difference_nats_largest"] > 0


def test_list_names_every_mode():
    result = subprocess.run(
        [sys.executable, "main.py", "--mode=list"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    for mode in modes.MODES:
        assert f"{mode} " in result.stdout


def test_modes_that_moved_say_where_to():
    result = subprocess.run(
        [sys.executable, "main.py", "--mode=figures"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "python -m reproduction --mode=figures" in result.stderr


def _misfit(folder):
    """A card of another model than its weights."""
    shutil.copytree(zoo.find_released("fashion_mnist/pixelcnn"), folder)
    card = json.loads((folder / "card.json").read_text())
    card["model"]["features"] += 1
    (folder / "card.json").write_text(json.dumps(card))


def _mistakes(folder):
    """(mode, options, part of the message) for each way to get it wrong."""
    classifier, kind = "--config.classifier.", "--config.train.model=classifier"
    pixelcnn = f"{classifier}weights=fashion_mnist/pixelcnn"
    exported = f"--config.export.to={folder}/exported"
    alone = ["--config.calibrate.defences=('purify_adaptive',)"]
    grades = "--config.calibrate.defences=('purify_graded',)"
    of = "--config.calibrate."
    write = lambda name, **arrays: np.savez(folder / name, **arrays)  # noqa: E731
    write("floats.npz", images=np.zeros((2, 28, 28, 1), np.float32))
    write("size.npz", images=np.zeros((2, 32, 32, 1), np.uint8))
    write("range.npz", images=np.full((2, 28, 28, 1), 300))
    write("bare.npz", images=np.zeros((2, 28, 28, 1), np.uint8))
    labels = np.array([3, 12])
    write("labels.npz", images=np.zeros((2, 28, 28, 1), np.uint8), labels=labels)
    write("empty.npz", images=np.zeros((0, 28, 28, 1), np.uint8))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    (folder / "pictures").mkdir()
    (folder / "pictures/a.png").write_text("not a picture")
    (folder / "nothing").mkdir()
    (folder / (253 * "b")).mkdir()
    Image.new("L", (28, 28)).save(folder / (253 * "b") / "a.png")
    write(f"{251 * 'c'}.npz", images=np.zeros((2, 28, 28, 1), np.uint8))
    (folder / "tables").mkdir()
    (folder / "tables/table.md").write_text("mine")
    (folder / "rows").mkdir()
    (folder / "rows/rows.jsonl").write_text("no rows")
    (folder / "other").mkdir()
    (folder / "other/config.json").write_text('{"mode": "train"}')
    _misfit(folder / "misfit")
    given = lambda path: f"--config.purify.input={folder}/{path}"  # noqa: E731
    one = "fashion_mnist/vgg + purify_adaptive"
    adaptive = f"--config.evaluate.rows=('{one}',)"
    return [
        ("cook", [], "unknown mode 'cook': one of purify"),
        ("purfiy", [], "unknown mode 'purfiy'; did you mean purify? (one of purify"),
        ("", [], "unknown mode '': one of purify"),
        ("purify", ["extra"], "unexpected argument 'extra'"),
        ("purify", ["--workdir="], "--workdir is empty"),
        ("purify", [f"--workdir={folder}/size.npz/a"], "is inside"),
        ("purify", ["--config=/dev/null"], "/dev/null: it has no get_config()"),
        ("purify", ["--config="], "no config file ''"),
        ("purify", ["--config=configs"], "no config file configs,"),
        (
            "purify",
            [f"--config={CIFAR}:bogus"],
            "unknown variant 'bogus': one of smoke, gpu, report, paper, or none",
        ),
        (
            "purify",
            ["--config=configs/default.py:gpu"],
            "takes no variant, such as 'gpu'",
        ),
        ("purify", ["--config.purify.epz=3"], "'purify.epz'; did you mean purify.eps?"),
        ("purify", ["--config.purfiy.eps=3"], "did you mean purify.eps?"),
        ("purify", ["--config.colours=3"], "did you mean squeeze.colours?"),
        (
            "purify",
            ["--config.purify.eps=16.5"],
            "purify.eps: expected whole number, got '16.5'; in levels of 0..255",
        ),
        ("purify", ["--config.purify.eps=8/255"], "got '8/255'; in levels"),
        ("purify", ["--config.purify.eps_attack=x"], "expected number, got 'x'; in"),
        ("purify", ["--config.purify.count=1e3"], "expected whole number, got '1e3'"),
        ("purify", ["--config.purify.pictures=maybe"], "expected true or false"),
        ("purify", ["--config.purify=3"], "purify: expected one field of it"),
        ("evaluate", ["--config.evaluate.rows=('a',"], "rows: expected tuple"),
        ("sample", ["--config.sample.count=1000000000000"], "sample.count must be at"),
        ("classify", [f"--config.classify.input={folder}/{251 * 'a'}.npz"], "no file"),
        ("classify", [f"--config.classify.input={folder}/{253 * 'b'}"], "257 bytes"),
        ("purify", [given(f"{251 * 'c'}.npz")], "261 bytes"),
        ("release", [f"--config.release.to={folder}/size.npz/a"], "is inside"),
        ("purify", ["--config.purify.eps=-1"], "between 0 and 255"),
        ("purify", ["--config.purify.attack=fgsm2"], "auto, none, rand"),
        ("purify", ["--config.purify.preset=y"], "bim has no preset 'y': one of paper"),
        ("purify", [f"{classifier}weights=no/model"], "no model"),
        ("purify", [f"{classifier}weights=cifar10/vgg"], "takes images [32, 32, 3]"),
        (
            "purify",
            [f"{classifier}weights=", "--config.purify.attack=bim"],
            "give --config.classifier.weights",
        ),
        (
            "purify",
            ["--config.purify.attack=none", "--config.purify.preset=y"],
            "needs an attack",
        ),
        ("purify", ["--config.seed=99999999999999999999"], "seed must be"),
        ("attack", ["--config.attack.name=fgsm2"], "one of rand, fgsm"),
        ("attack", ["--config.attack.preset=y"], "one of paper"),
        ("attack", ["--config.attack.eps=-1"], "eps must be a number and not negative"),
        ("attack", ["--config.attack.batch=0"], "batch must be"),
        ("attack", [f"--config.attack.input={folder}/labels.npz"], "labels up to 12"),
        ("attack", [pixelcnn], "not a classifier"),
        ("purify", ["--config.purify.input=test"], "needs --config.data_dir"),
        (
            "purify",
            ["--config.purify.input=test", f"--config.data_dir={folder}/nope"],
            "does not exist",
        ),
        (
            "purify",
            ["--config.purify.input=test", f"--config.data_dir={folder}"],
            "no fashion_mnist data set",
        ),
        ("purify", [given("absent.npz")], "no file or folder"),
        ("purify", [given("floats.npz")], "uint8"),
        ("purify", [given("size.npz")], "expected N x 28 x 28 x 1"),
        ("purify", [given("range.npz")], "outside 0..255"),
        ("purify", [given("empty.npz")], "no image"),
        ("purify", [given("objects.npy")], "Python objects"),
        ("purify", [given("pictures")], "not a readable picture"),
        ("purify", ["--config.pixelcnn.weights=no/model"], "fashion_mnist/pixelcnn"),
        ("purify", [f"--workdir={folder}/other"], "belongs to another mode (train"),
        ("train", [], "needs --config.data_dir"),
        ("train", ["--config.pixelcnn.train.steps=5"], "steps or hours"),
        ("sample", ["--config.sample.label=3"], "0 classes"),
        ("purify", ["--config.purify.eps=256"], "between 0 and 255"),
        ("purify", ["--config.purify.count=-2"], "count must not be negative"),
        ("purify", ["--config.purify.batch=0"], "purify.batch must be"),
        ("purify", ["--config.purify.eps_attack=nan"], "eps_attack"),
        ("purify", ["--config.purify.threshold=inf"], "threshold must be finite"),
        (
            "detect",
            ["--config.detect.calibration="],
            "detect.calibration is empty: give auto,",
        ),
        (
            "calibrate",
            ["--config.calibrate.input=sample", "--config.calibrate.test="],
            "calibrate.test is empty",
        ),
        (
            "train",
            ["--config.pixelcnn.model.dtype=(1,)"],
            "dtype must be a floating type: '(1,)'",
        ),
        ("purify", ["--config.purify.input="], "input is empty"),
        ("purify", ["--config.purify.threshold=-2"], "or -1 for the card's"),
        ("evaluate", ["--config.evaluate.attacks=('bim2',)"], "unknown attack 'bim2'"),
        *(
            (mode, [f"--config.{field}=0.03"], f"{field} 0.03 is less than one level")
            for mode, field in (
                ("purify", "purify.eps_attack"),
                ("attack", "attack.eps"),
                ("judge", "judge.eps"),
            )
        ),
        (
            "evaluate",
            ["--config.evaluate.eps_attack=(0.03,)"],
            "eps_attack 0.03 is less than one level of 0..255, which changes nothing",
        ),
        ("evaluate", ["--config.evaluate.rows=('a + b',)"], "unknown defence 'b'"),
        ("evaluate", ["--config.evaluate.rows=()"], "at least one row"),
        ("evaluate", ["--config.evaluate.rows=('no/model',)"], "no model 'no/model'"),
        (
            "evaluate",
            ["--config.evaluate.rows=('cifar10/vgg',)"],
            "was trained on cifar10",
        ),
        (
            "evaluate",
            ["--config.evaluate.sources=('fashion_mnist/pixelcnn',)"],
            "not a classifier",
        ),
        ("evaluate", ["--config.evaluate.eps_attack=(-8.0,)"], "eps_attack must be"),
        ("evaluate", ["--config.evaluate.batch=0"], "evaluate.batch"),
        (
            "evaluate",
            [adaptive, "--config.evaluate.images=-1"],
            "count must not be negative",
        ),
        (
            "evaluate",
            [adaptive, "--config.evaluate.threshold=nan"],
            "threshold must be finite",
        ),
        (
            "evaluate",
            [f"--workdir={folder}/tables"],
            "table.md was not written by a run",
        ),
        ("evaluate", ["--config.squeeze.colours=1"], "between 2 and 256"),
        ("evaluate", ["--config.purify.eps=300"], "between 0 and 255"),
        (
            "evaluate",
            [adaptive, f"--config.evaluate.input={folder}/bare.npz"],
            "has no labels",
        ),
        (
            "evaluate",
            [adaptive, "--config.evaluate.input=test"],
            "needs --config.data_dir",
        ),
        ("calibrate", [*alone, "--config.evaluate.attacks=()"], "attacks is empty"),
        (
            "calibrate",
            [*alone, "--config.calibrate.input=test"],
            "needs --config.data",
        ),
        (
            "calibrate",
            [*alone, "--config.evaluate.attacks=('bim through=bpda',)"],
            "leave through= out",
        ),
        ("calibrate", [grades, f"{of}input=test"], "needs --config.data"),
        ("calibrate", [grades, "--config.evaluate.attacks=()"], "attacks is empty"),
        ("calibrate", [grades, f"{classifier}weights=a + purify"], "takes no defences"),
        ("calibrate", [grades, f"{of}eps=()"], "calibrate.eps must be whole numbers"),
        ("calibrate", [grades, f"{of}eps=(8, 256)"], "from 0 to 255"),
        ("calibrate", [grades, f"{of}eps=(8, 8)"], "none twice: (8, 8)"),
        ("calibrate", [grades, f"{of}qualities=(101,)"], "calibrate.qualities must be"),
        ("calibrate", [grades, f"{of}qualities=(75.5,)"], "whole numbers from 0 to"),
        ("calibrate", [grades, f"{of}grades=0"], "grades must be from 1 to 9: 0"),
        ("calibrate", [grades, f"{of}clean_share=nan"], "clean_share must be from 0"),
        ("calibrate", [grades, f"{of}keep=true"], "not on a card"),
        (
            "calibrate",
            [f"{of}defences=('reject_rmse', 'purify_graded')"],
            "purify_graded must be the only one",
        ),
        ("purify", [f"--config.pixelcnn.weights={folder}/misfit"], "weights"),
        ("purify", [f"--workdir={folder}/size.npz"], "is a file"),
        ("score", ["--config.score.batch=-1"], "score.batch"),
        ("classify", ["--config.classify.batch=0"], "classify.batch"),
        ("train", ["--config.seed=-1"], "seed"),
        ("train", ["--config.pixelcnn.train.learning_rate=nan"], "finite"),
        ("train", ["--config.pixelcnn.train.warmup=-1"], "warmup"),
        ("train", ["--config.pixelcnn.model.depth=0"], "depth"),
        ("release", [], "release.to is missing"),
        ("train", [kind], "needs --config.data_dir"),
        ("train", [kind, f"{classifier}training=magic"], "training must be one"),
        ("train", [kind, f"{classifier}preset=strong"], "paper, code"),
        ("train", [kind, f"{classifier}delta=0"], "delta"),
        ("train", [kind, f"{classifier}model.architecture=net"], "resnet, vgg"),
        ("train", [kind, f"{classifier}model.variant=A"], "unknown variant"),
        ("train", [kind, f"{classifier}model.divisor=3"], "divisor"),
        ("train", [kind, f"{classifier}train.steps=5"], "steps or hours"),
        ("train", [kind, f"{classifier}train.momentum=1"], "momentum"),
        (
            "train",
            [
                kind,
                f"{classifier}training=adversarial_fgsm",
                f"{classifier}train.batch=7",
            ],
            "even",
        ),
        ("classify", [f"{classifier}weights=no/model"], "no model"),
        ("classify", [pixelcnn], "not a classifier"),
        (
            "release",
            ["--config.release.model=classifier", pixelcnn],
            "not a classifier",
        ),
        ("import", [], "import_.weights is missing"),
        (
            "import",
            [
                f"--config.import_.weights={folder}/a.pth",
                f"--config.release.to={folder}",
            ],
            "no file of weights",
        ),
        ("export", [], "export.to is missing"),
        ("export", [f"--config.export.to={folder}/size.npz/a"], "is inside"),
        ("export", [exported, "--config.export.what=magnet"], "what must be one of"),
        ("export", [exported, "--config.export.platforms=()"], "must be some of cpu,"),
        (
            "export",
            [exported, "--config.export.platforms=('cpu', 'tpu')"],
            "export.platforms must be some of cpu, cuda: ('cpu', 'tpu')",
        ),
        ("export", [exported, "--config.export.batch=-1"], "export.batch must be at"),
        ("export", [exported, "--config.purify.eps=256"], "between 0 and 255"),
        (
            "export",
            [exported, "--config.pixelcnn.weights=cifar10/vgg"],
            "not a PixelCNN",
        ),
        (
            "export",
            [exported, "--config.pixelcnn.weights=cifar10/pixelcnn"],
            "was trained on cifar10",
        ),
        (
            "export",
            [exported, "--config.export.what=defence", pixelcnn],
            "not a classifier",
        ),
        (
            "export",
            [exported, "--config.export.what=defence", f"{classifier}weights="],
            "no model ''",
        ),
        (
            "export",
            [exported, "--config.export.what=weights", "--config.export.license=Mine"],
            "license must be an identifier",
        ),
        (
            "export",
            [exported, "--config.export.what=weights", "--config.export.model=cnn"],
            "export.model must be one of pixelcnn",
        ),
        (
            "export",
            [
                exported,
                "--config.export.what=weights",
                "--config.export.model=classifier",
                pixelcnn,
            ],
            "is a pixelcnn, not a classifier",
        ),
        (
            "export",
            [f"--config.export.to={folder}/other", "--config.export.what=weights"],
            "holds config.json; name another",
        ),
        ("report", ["--config.report.input="], "report.input is empty: name a workdir"),
        ("report", [f"--config.report.input={folder}/absent"], "absent does not exist"),
        ("report", [f"--config.report.input={folder}/size.npz"], "npz is a file: name"),
        ("report", [f"--config.report.input={folder}/nothing"], "has no rows (*"),
        ("report", [f"--config.report.input={folder}/rows"], "rows.jsonl cannot be"),
        ("report", ["--config.report.images=-1"], "report.images must not be negative"),
        ("train", ["--config.train.model=cnn"], "train.model must be one of pixelcnn"),
        (
            "train_pixelcnn",
            [],
            "train_pixelcnn is now --mode=train --config.train.model=pixelcnn",
        ),
    ]


def _depends_on(mode, **fields):
    """What a run of `mode` depends on, by the sections of its config."""
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    return modes._sections(mode, modes.MODES[mode], config)


def test_training_depends_on_its_kind_of_model_and_not_on_weights():
    for kind in zoo.KINDS:
        found = _depends_on("train", **{"train.model": kind})
        assert {"mode", "dataset", "seed", "train", kind} <= found.keys()
        assert found["train"]["model"] == kind and "train" in found[kind]
        assert found["train"].keys() == {"model", "tensorboard"}
        changed = _depends_on("train", **{"train.model": kind, f"{kind}.weights": "x"})
        assert found == changed
    found = _depends_on("train", **{"train.model": "puvae", "classifier.weights": "x"})
    assert found["classifier"] == {"weights": "x"}


def test_releasing_depends_on_the_weights_of_its_kind_of_model():
    for kind in zoo.KINDS:
        beside = {"classifier"} if kind in ("puvae", "magnet") else set()
        found = _depends_on("release", **{"release.model": kind})
        of_models = found.keys() & set(zoo.KINDS)
        assert of_models == {kind} | beside
        assert all(found[name].keys() == {"weights"} for name in of_models)


def _contents(folder):
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_damaged_weights_are_told(tmp_path):
    shutil.copytree(zoo.find_released("mnist/puvae"), tmp_path / "p")
    for path in (tmp_path / "p/weights").glob("ocdbt.process_0/d/*"):
        os.truncate(path, 50)
    rows = "('mnist/cnn_a + reject_rmse + puvae',)"
    options = [
        f"--config.puvae.weights={tmp_path / 'p'}",
        f"--config.sweep.rows={rows}",
    ]
    result = _run(
        "configs/mnist.py:smoke", "sweep", *options, f"--workdir={tmp_path}/w"
    )
    assert result.returncode == 2, result.stderr
    assert "it is damaged or of another model" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.slow
def test_every_mistake_is_one_line_and_touches_nothing(tmp_path):
    """All in one process: `main.py` is entered anew for each, as a shell would."""
    script = """
import contextlib, io, json, sys
from pixeldefend.experiment.modes import MODES
from processes import enter_anew
from reproduction.__main__ import MODES as OTHERS
for arguments in json.load(sys.stdin):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = enter_anew(arguments, MODES | OTHERS)
    print(json.dumps([code, error.getvalue()]))
"""
    mistakes = _mistakes(tmp_path)
    before = _contents(tmp_path)
    lines = [
        [
            f"--config={FASHION}",
            f"--mode={mode}",
            *(
                []
                if any("--workdir" in o for o in options)
                else [f"--workdir={tmp_path}/w"]
            ),
            *options,
        ]
        for mode, options, _ in mistakes
    ]
    result = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(lines),
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stderr == "", result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    wrong = [
        f"{mode} {options}: {code} {error!r} has no {part!r}"
        for (mode, options, part), (code, error) in zip(mistakes, answers, strict=True)
        if code != 2 or part not in error or error.count("\n") != 1
    ]
    assert not wrong, "\n".join(wrong)
    assert _contents(tmp_path) == before


def test_a_mistake_ends_the_process_with_code_two(tmp_path):
    absent = ["--mode=purify", "--config=configs/absent.py"]
    for program, arguments in (
        ("main.py", ["--mode=purify"]),
        ("main.py", absent),
        ("main.py", ["stray"]),
        ("python -m reproduction", ["--mode=figures"]),
    ):
        result = subprocess.run(
            [sys.executable, *program.removeprefix("python ").split(), *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2, arguments
        assert result.stderr.startswith(f"{program}: ")
        assert result.stderr.count("\n") == 1, result.stderr


@pytest.mark.slow
def test_a_truncated_model_is_one_line(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run/model/weights").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    result = _run(
        f"{FASHION}:smoke",
        "purify",
        f"--config.pixelcnn.weights={tmp_path}/run",
        f"--workdir={tmp_path}/w",
    )
    assert result.returncode == 2
    assert "cannot read the checkpoint" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "w").exists()
