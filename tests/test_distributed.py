"""Two processes with four devices each beside one process with one device."""

import signal

import numpy as np
import pytest
from processes import PART, finish, kill, launch, rows, wait_for, wait_until_held
from test_main_evaluate import save

from pixeldefend.density import pixelcnn
from pixeldefend.experiment import checkpoints, zoo

pytestmark = pytest.mark.slow


def _both(tmp_path, mode, *options, devices=1):
    layouts = {"one": {"devices": devices}, "many": {"processes": 2, "devices": 4}}
    for name, layout in layouts.items():
        finish(launch(mode, *options, f"--workdir={tmp_path / name}", **layout))
    return tmp_path / "one", tmp_path / "many"


def _arrays(folder):
    found = {}
    for path in sorted(folder.rglob("*.npz")):
        with np.load(path) as file:
            for name in set(file.files) - {"seconds", "device", "mark"}:
                found[f"{path.relative_to(folder)} {name}"] = file[name]
    return found


def _assert_same_results(one, many):
    ours, theirs = _arrays(one), _arrays(many)
    assert ours.keys() == theirs.keys() and ours
    for name, array in ours.items():
        if np.issubdtype(array.dtype, np.floating):
            np.testing.assert_allclose(array, theirs[name], rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert rows(one / "rows.jsonl") == rows(many / "rows.jsonl")
    assert {path.name for path in one.iterdir()} == {p.name for p in many.iterdir()}


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    """The field for a density model with random weights, small."""
    model = pixelcnn.PixelCNN(channels=1, features=4, depth=1, mixtures=2, dropout=0.0)
    folder = save(tmp_path_factory.mktemp("models") / "density", "pixelcnn", model, 0)
    return f"--config.pixelcnn.weights={folder}"


def test_purify_gives_the_same_bytes(tmp_path, density):
    """Ten images for eight devices: the last batch is uneven."""
    options = ["--config.purify.count=10", "--config.purify.batch=1", density]
    one, many = _both(tmp_path, "purify", *options)
    _assert_same_results(one, many)


def test_evaluate_gives_the_same_bytes(tmp_path, density):
    options = ["--config.evaluate.images=9", "--config.evaluate.batch=1", density]
    one, many = _both(tmp_path, "evaluate", *options)
    _assert_same_results(one, many)


@pytest.mark.parametrize(
    "kind, devices",
    [
        ("pixelcnn", 1),
        # What is drawn (flips, dropout, noise) is each device's own.
        ("classifier", 8),
        ("puvae", 8),
        ("magnet", 8),
    ],
)
def test_training_gives_the_same_numbers(tmp_path, kind, devices):
    # Steps that are too long make more of any difference.
    options = ["--config.classifier.train.learning_rate=1e-3"]
    options.append(f"--config.train.model={kind}")
    one, many = _both(tmp_path, "train", *options, devices=devices)
    ours, theirs = (rows(folder / "metrics.jsonl") for folder in (one, many))
    assert len(ours) == len(theirs) == 4
    for line, other in zip(ours, theirs, strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    first, second = (zoo.load_released(str(f))[1] for f in (one, many))
    for name, leaf in checkpoints.flat(first).items():
        np.testing.assert_allclose(
            leaf, checkpoints.flat(second)[name], rtol=1e-3, atol=1e-5, err_msg=name
        )


def test_another_number_of_processes_goes_on_with_the_same_rows(tmp_path):
    """Killed with two processes, of which one is lost first; ended by one."""
    options = ["--config.purify.count=40", "--config.purify.batch=1"]
    finish(launch("purify", *options, f"--workdir={tmp_path / 'one'}"))
    options.append(f"--workdir={tmp_path / 'two'}")
    started = launch("purify", *options, processes=2, hold=PART)
    wait_until_held(started[0])
    kill(started, first=1)
    done = len(list((tmp_path / "two").glob(PART)))
    ((told, _),) = finish(launch("purify", *options, devices=4))
    assert f"resuming after {done} of 40 images" in told
    _assert_same_results(tmp_path / "one", tmp_path / "two")


def test_sigterm_for_one_process_stops_all_and_says_requeue_me(tmp_path):
    options = ["--config.purify.count=40", "--config.purify.batch=1"]
    options.append(f"--workdir={tmp_path / 'run'}")
    started = launch("purify", *options, processes=2, hold=PART)
    wait_until_held(started[0])
    started[1].send_signal(signal.SIGTERM)
    for _, errors in finish(started, code=75):
        assert "asked to stop; run the same command again to resume" in errors
    assert not (tmp_path / "run/rows.jsonl").exists()
    assert not (tmp_path / "run/lock.json").exists()


def test_sigterm_while_training_leaves_a_checkpoint_at_one_step(tmp_path):
    options = ["--config.pixelcnn.train.steps=100000", f"--workdir={tmp_path / 'run'}"]
    options.append("--config.pixelcnn.train.checkpoint_minutes=1e9")
    started = launch("train", *options, processes=2, devices=2)
    wait_for(tmp_path / "run", "metrics.jsonl", started)
    started[1].send_signal(signal.SIGTERM)
    finish(started, code=75)
    (step,) = (path.name for path in (tmp_path / "run/checkpoints").glob("[0-9]*"))
    # A line at every other step; an odd one that the stop came at leaves none.
    lines = rows(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(2, int(step) + 1, 2))


def test_a_mistake_ends_all_processes_with_its_code(tmp_path):
    options = ["--config.pixelcnn.weights=nowhere", f"--workdir={tmp_path / 'run'}"]
    told = finish(launch("purify", *options, processes=2), code=2)
    assert any("no model 'nowhere'" in errors for _, errors in told)
    assert not (tmp_path / "run").exists()
