"""The command for an accelerator, tried on this CPU."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import ROOT, environment
from test_main import run_program

from benchmarks import common, pieces
from pixeldefend.experiment import checkpoints, zoo
from pixeldefend.experiment.rows import read_rows

pytestmark = pytest.mark.slow


def _run(*options, cache=None):
    own = {} if cache is None else {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.accelerator", *options],
        cwd=ROOT,
        env=environment() | own,
        capture_output=True,
        text=True,
    )


def test_the_stages_but_training_run(tmp_path):
    found = _run("--smoke", f"--to={tmp_path}", "--stages=device,correct,profile")
    assert found.returncode == 0, found.stdout + found.stderr
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row["ok"] for row in rows if row["stage"] == "correct"] == [True, True]
    assert rows[0]["device"] == "cpu" and rows[0]["jax"]
    assert any(row.get("kernels") for row in rows)
    again = _run("--smoke", f"--to={tmp_path}", "--stages=device")
    assert again.returncode == 0, again.stderr
    both = read_rows(tmp_path / "rows.jsonl")
    assert both[: len(rows)] == rows and len(both) == len(rows) + 3
    assert "largest_difference" in found.stdout and "FAILED" not in found.stdout


def test_a_stage_ends_with_its_watcher_and_within_its_time(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--smoke"]
    command += [f"--to={tmp_path}", "--stages=purify:120"]
    watcher = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        stage = _until(lambda: _children(watcher.pid))
        timed = _until(lambda: _children(stage[0]))
    finally:
        watcher.kill()
        watcher.communicate()
    for pid in stage + timed:
        _until(lambda pid=pid: not _alive(pid))
    late = _run("--smoke", f"--to={tmp_path}", "--stages=purify:8")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert late.returncode == 0 and rows[-1]["failed"] == "out of time", late.stdout


def _children(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _until(found, seconds=60):
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A time-boxed training from plain arrays, and how long all of it took."""
    folder = tmp_path_factory.mktemp("accelerator")
    data_dir = folder / "data/cifar10"
    data_dir.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 16)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(data_dir / f"{split}.npz", images=images, labels=np.arange(count) % 10)
    # A busy machine may take the first one to compile; that is kept for the next.
    for box in (60, 60, 240):
        found = _run(
            "--smoke",
            f"--to={folder}/out",
            f"--data_dir={folder}/data",
            f"--stages=train=cifar10-pixelcnn:{box}",
            "--set=train.log_every=40",
            cache=folder / "cache",
        )
        if found.returncode == 0:
            break
    assert found.returncode == 0, found.stdout + found.stderr
    return folder, box


def test_a_time_boxed_training_ends_with_the_rate_at_zero(trained):
    folder, box = trained
    (row,) = read_rows(folder / "out/rows.jsonl")
    assert row["progress"] == 1 and row["seconds"] < box, "it was ended, not at its end"
    with np.load(folder / "out/cifar10-pixelcnn-0.npz") as file:
        card = json.loads(str(file["card"]))
    highest = card["training"]["config"]["learning_rate"]
    assert row["learning_rate"] < 0.05 * highest


def test_its_pieces_become_a_model(trained):
    folder, _ = trained
    options = (f"--assemble={folder}/out/cifar10-pixelcnn", f"--release={folder}/model")
    found = _run(*options)
    assert found.returncode == 0, found.stderr
    model, params, card = zoo.load_released(str(folder / "model"))
    assert model.dtype == "bfloat16" and card["training"]["config"]["flip"]
    assert all(leaf.dtype == np.float32 for leaf in checkpoints.flat(params).values())
    assert card["training"]["step"] > 1
    # What anyone can repeat it by, not this benchmark's own subprocess.
    command = card["training"]["command"]
    for part in ("main.py", "cifar10.py:gpu", "--mode=train", "features=4", "hours="):
        assert part in command
    assert str(folder) not in command
    lines = (folder / "model/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == card["training"]["step"]


def test_pieces_in_bfloat16_and_pieces_that_are_missing(trained, tmp_path, monkeypatch):
    folder, _ = trained
    _run(f"--assemble={folder}/out/cifar10-pixelcnn", f"--release={folder}/model")
    whole = checkpoints.flat(zoo.load_released(str(folder / "model"))[1])
    monkeypatch.setattr(pieces, "MOST", 1000)
    monkeypatch.setattr(pieces, "PIECE", 4000)
    count = pieces.pack(folder / "model", tmp_path / "halves")
    assert count > 2 and len(list(tmp_path.iterdir())) == count
    pieces.pack(folder / "model", tmp_path / "halves-more")  # a longer name
    (tmp_path / f"halves-{count}.npz").write_bytes(b"of an earlier, larger one")
    assert pieces.pack(folder / "model", tmp_path / "halves") == count
    pieces.assemble(tmp_path / "halves", tmp_path / "model")
    _, params, card = zoo.load_released(str(tmp_path / "model"))
    assert card["weights"] == "bfloat16"
    for name, leaf in checkpoints.flat(params).items():
        # Eight binary digits.
        np.testing.assert_allclose(leaf, whole[name], rtol=2**-8, atol=1e-30)
    assert (tmp_path / "halves-more-0.npz").exists(), "another training's"
    (tmp_path / "halves-1.npz").rename(tmp_path / "kept")
    with pytest.raises(SystemExit, match=f"only {count - 1} are there"):
        pieces.assemble(tmp_path / "halves", tmp_path / "model")
    with pytest.raises(SystemExit, match="only 0 are there"):
        pieces.assemble(tmp_path / "nothing", tmp_path / "model")
    (tmp_path / "halves-more-1.npz").rename(tmp_path / "halves-1.npz")
    with np.load(tmp_path / "halves-1.npz") as file:
        arrays = dict(file) | {"of": "another in 3"}
    np.savez(tmp_path / "halves-1.npz", **arrays)
    with pytest.raises(SystemExit, match="not the pieces of one training"):
        pieces.assemble(tmp_path / "halves", tmp_path / "model")
    (tmp_path / "halves-1.npz").write_bytes((tmp_path / "kept").read_bytes()[:-100])
    with pytest.raises(SystemExit, match="halves-1.npz is damaged"):
        pieces.assemble(tmp_path / "halves", tmp_path / "model")


def test_weights_that_changed_on_the_way_are_noticed(trained, tmp_path):
    folder, _ = trained
    source = folder / "out/cifar10-pixelcnn-0.npz"
    with np.load(source) as file:
        arrays = dict(file)
    name = next(name for name in arrays if name.endswith("direction"))
    arrays[name] = arrays[name] * np.float32(1.0001)
    np.savez(tmp_path / "changed-0.npz", **arrays)
    with pytest.raises(SystemExit, match="weights are not the card's"):
        pieces.assemble(tmp_path / "changed", tmp_path / "model")


def test_ties_are_measured_in_the_context_that_both_have(tmp_path):
    """A decoder that takes the second likeliest level once loses just that."""
    import jax
    import jax.numpy as jnp

    from pixeldefend.density import conditionals, pixelcnn

    model = pixelcnn.PixelCNN(features=2, depth=1, mixtures=2, dropout=0.0)
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    params = pixelcnn.init(model, jax.random.key(0), jnp.asarray(images))
    other = images.copy()
    other[0, 3, 5, 1] ^= 5
    other[0, 6, 6, 2] ^= 9  # later, and so of no account
    outputs = pixelcnn.apply(model, params, images)[:, 3, 5]
    levels = conditionals.level_log_probs(
        model.family, params["head"], outputs, images[:, 3, 5]
    )
    both = np.asarray(levels)[0, 1, [images[0, 3, 5, 1], other[0, 3, 5, 1]]]
    (gap,) = common.ties(model, params, other, images)
    assert gap == pytest.approx(abs(both[0] - both[1]), abs=1e-5) and gap > 0


def test_every_training_has_a_configuration_that_fits():
    program = """
from absl import flags
from benchmarks import trainings
from pixeldefend.density import pixelcnn
from pixeldefend.experiment.modes import inputs
from pixeldefend.models import classifiers

flags.FLAGS(["x", "--set=train.batch=64", "--set=train.flip=True"])
for name in trainings.TRAININGS:
    training, config = trainings.configured(name)
    make = {"pixelcnn": pixelcnn.PixelCNN, "classifier": classifiers.make}
    make[training.kind](**config[training.kind].model)
    config[training.kind].train.hours = 0.1
    plan = inputs.plan(config, config[training.kind].train)
    assert plan.batch == 64 and plan.schedule == "anneal", name
    assert config[training.kind].train.flip is True
"""
    run_program(program)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--to=x", "--stages=devices"], "devices is none of device, correct"),
        (["--to=x", "--stages=train=resnet"], "train=resnet is none of"),
        (["--to=x", "--stages=device:soon"], "'soon' is not a number"),
        (["--to=x", "--seconds=10", "--stages=device:20,correct"], "leaves nothing"),
        (["--stages=device"], "--to is missing"),
        (["--assemble=x"], "--assemble wants --release"),
        (["--to=TMP", "--stages=correct", "--prepared=x"], "nothing in x"),
        (["--to=TMP", "--stages=train=cifar10-resnet"], "wants --data_dir"),
        (["--to=TMP", "--stages=train", "--set=train.batch"], "wants field=value"),
        (["--to=TMP", "--stages=train", "--set=train.batch=x"], "wants int, not 'x'"),
        (["--to=TMP", "--stages=train", "--set=train.flip=3"], "wants bool, not '3'"),
        (["--to=TMP", "--stages=train", "--set=train.bath=3"], "no field train.bath"),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path):
    found = _run(*(option.replace("TMP", str(tmp_path)) for option in options))
    assert found.returncode != 0 and message in found.stderr
    assert "Traceback" not in found.stderr
