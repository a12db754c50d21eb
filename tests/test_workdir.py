import ast
import contextlib
import errno
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import (
    PART,
    ROOT,
    SMOKE,
    environment,
    finish,
    launch,
    wait_for,
    wait_until_held,
)

from configs import default
from pixeldefend.experiment import data, files, interruption, workdir, zoo
from pixeldefend.experiment import processes as run_processes
from pixeldefend.experiment.modes import inputs


def test_a_command_is_told_without_this_machines_folders(monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "/x/main.py",
            "--config=configs/mnist.py",
            "--config.data_dir",
            "/secret",
            "--workdir",
            "/secret/w",
            "--mode=train",
            "-workdir=/secret",
        ],
    )
    expected = "python main.py --config=configs/mnist.py --config.data_dir=DATA_DIR"
    assert workdir.command_line() == f"{expected} --mode=train"
    monkeypatch.setattr(sys, "argv", ["/x/reproduction/__main__.py", "--mode=drift"])
    assert workdir.command_line() == "python -m reproduction --mode=drift"


def test_a_folder_belongs_to_its_config(tmp_path):
    place = workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 2}})
    assert not (tmp_path / "a").exists()
    place.open()
    place.close()
    workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 2}})
    (tmp_path / "a/rows.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="in.x: 2 there, 3 here"):
        workdir.Workdir(tmp_path / "a", {"eps": 1, "in": {"x": 3}})
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        workdir.Workdir(tmp_path / "a", {})


def test_only_mistakes_become_user_errors():
    with pytest.raises(workdir.UserError, match="^a b$"), workdir.user_errors():
        raise ValueError("a\nb")
    with pytest.raises(RuntimeError), workdir.user_errors():
        raise RuntimeError


def test_what_is_read_must_not_lie_where_is_written(tmp_path):
    workdir.Workdir(tmp_path / "out", {"a": 1})
    files.check_outside(tmp_path / "in")
    for inner in ("out", "out/purified", "out/../out/purified"):
        with pytest.raises(ValueError, match="is inside the workdir"):
            files.check_outside(tmp_path / inner)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    place = workdir.Workdir("~/runs/a", {"mode": "score"})
    assert str(place.open()) == f"{tmp_path}/home/runs/a"
    place.close()
    images = np.zeros((2, 28, 28, 1), np.uint8)
    (tmp_path / "home/mnist").mkdir()
    np.savez(tmp_path / "home/mnist/test.npz", images=images, labels=[1, 2])
    shutil.copytree(zoo.find_released("mnist/cnn_a"), tmp_path / "home/mine")
    assert len(data.load("mnist", "test", "~")[0]) == 2
    assert data.read_input("mnist", "~/mnist/test.npz", 0, (28, 28, 1), None).own
    assert zoo.load_released("~/mine").card["kind"] == "classifier"
    config = default.get_config()
    config.dataset, config.release.to = "mnist", "~/released"
    to = inputs.release_folder(config, "~/mine", zoo.load_card(tmp_path / "home/mine"))
    assert str(to) == f"{tmp_path}/home/released"
    assert not (tmp_path / "~").exists()


def test_the_home_of_nobody_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="~nobody-at-all/a: there is no user"):
        workdir.Workdir("~nobody-at-all/a", {"mode": "score"})
    (tmp_path / "~there").mkdir()  # as its message has it
    assert files.expanded(tmp_path / "~there") == tmp_path / "~there"


def test_every_path_is_expanded_in_one_place():
    """Not where it is used, of which one would be forgotten."""
    for path in [
        *(ROOT / "pixeldefend").rglob("*.py"),
        ROOT / "reproduction/figures.py",
    ]:
        if path.name == "files.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert getattr(node, "attr", "") != "expanduser", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "epath.Path":
                assert not isinstance(node.args[0], ast.Name | ast.Attribute), path


@pytest.mark.parametrize("write", [True, False])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch, write):
    (tmp_path / "file").touch()
    for inner, told in (("file", "is a file"), ("file/a/b", "is inside .*file")):
        with pytest.raises(ValueError, match=f"release.to .*{told}"):
            files.output_folder(tmp_path / inner, "release.to")
    monkeypatch.setattr(files.os, "access", lambda *_: write)
    if write:
        files.output_folder(tmp_path / "a/b", "workdir")
        return
    with pytest.raises(
        ValueError, match=f"/a/b cannot be written to, since {tmp_path}"
    ):
        files.output_folder(tmp_path / "a/b", "workdir")


@pytest.mark.slow
def test_a_result_is_told_wherever_it_is_printed(tmp_path):
    """Characters that a terminal does not know are none to fail for."""
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command = [sys.executable, "main.py", f"--config={SMOKE}", "--mode=score"]
    found = subprocess.run(
        [*command, f"--workdir={tmp_path}/\xfc"],
        cwd=ROOT,
        env=environment() | ascii_only,
        capture_output=True,
    )
    assert found.returncode == 0 and not found.stderr, found.stderr
    assert b" ? " in found.stdout and b"bits/dim" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu", "none-such"])
def test_a_platform_that_is_not_there_is_told(tmp_path, platform):
    command = [sys.executable, "main.py", f"--config={SMOKE}", "--mode=score"]
    found = subprocess.run(
        [*command, f"--workdir={tmp_path}/a"],
        cwd=ROOT,
        env=environment() | {"JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert f"JAX_PLATFORMS={platform}: unset it" in found.stderr
    assert not (tmp_path / "a").exists()


def test_a_file_may_have_the_longest_name(tmp_path):
    path = tmp_path / (251 * "a" + ".npz")
    files.check_name(path.name)
    files.write_arrays(path, a=np.zeros(1))
    assert path.exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="256 bytes, where at most 255"):
        files.check_name(128 * "\xfc")


def _fill(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing_of_it(tmp_path):
    place = workdir.Workdir(tmp_path / "run", {"mode": "score"})
    told = f"^No space left on device: {tmp_path}/run/a.json; make room"
    with pytest.raises(workdir.UserError, match=told), place.at_work():
        with files.whole_file(place.open() / "a.json") as temporary:
            temporary.write_text("half")
            _fill()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json"}


def test_a_full_disk_is_known_through_the_errors_of_packages(tmp_path):
    for wrapped in (ValueError("Error writing: No space left on device"), KeyError()):
        place = workdir.Workdir(tmp_path / "run", {"mode": "score"})
        with pytest.raises(workdir.UserError, match="/run; make room"), place.at_work():
            try:
                _fill()
            except OSError as error:
                raise wrapped from error
    with pytest.raises(KeyError), place.at_work():
        raise KeyError


def test_files_of_somebody_else_are_not_taken_for_results(tmp_path):
    (tmp_path / "out/purified").mkdir(parents=True)
    place = workdir.Workdir(tmp_path / "out", {"a": 1})
    (tmp_path / "out/purified/mine.png").write_text("mine")
    with pytest.raises(ValueError, match="was not written by a run"):
        workdir.Workdir(tmp_path / "out", {"a": 1})
    with pytest.raises(workdir.UserError, match="was not written by a run"):
        place.open()
    (tmp_path / "out/purified/mine.png").unlink()
    place.open()
    (tmp_path / "out/purified/mine.png").write_text("the run's")
    workdir.Workdir(tmp_path / "out", {"a": 1})
    place.close()


_FOREIGN = (
    "parts/notes.txt",
    "adversarial/mine.npz",
    "correct/1.png",
    "rows.jsonl",
    "predictions.npz",
)


def _write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def _state(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", [*_FOREIGN, "lock.json", "checkpoints/1/state"])
def test_a_folder_that_belongs_to_no_run_is_refused(tmp_path, name):
    _write(tmp_path, [name])
    with pytest.raises(ValueError, match="was not written by a run"):
        workdir.Workdir(tmp_path, {"mode": "purify"})


def test_files_that_no_run_writes_are_in_nobodys_way(tmp_path):
    names = ["notes.txt", "pictures/1.png", ".a.partial.png", "parts.txt"]
    _write(tmp_path, names)
    place = workdir.Workdir(tmp_path, {"mode": "purify"})
    place.open()
    place.close()
    assert _state(tmp_path).keys() == {*names, "config.json"}


def test_what_a_killed_run_was_writing_is_removed_by_the_next(tmp_path):
    for _ in range(2):
        place = workdir.Workdir(tmp_path, {"mode": "purify"})
        place.open()
        place.close()
        (tmp_path / ".0123456789abcdef.partial").write_text("half")
    workdir.Workdir(tmp_path, {"mode": "purify"}).open()
    assert not list(tmp_path.glob(".*"))


def test_every_name_that_a_mode_writes_is_known():
    """Of what lies in a folder that is no run's, none may be taken for a result."""
    found = set()
    for top in ("pixeldefend/experiment", "reproduction"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.BinOp)
                    and isinstance(node.op, ast.Div)
                    and isinstance(node.left, ast.Name)
                    and node.left.id in ("folder", "workdir")
                    and isinstance(node.right, ast.Constant)
                ):
                    found.add(pathlib.PurePath(node.right.value).parts[0])
    models = {"card.json", "weights", "reference.npy", "validation.npy"}
    # Of a model or a data set.
    models |= {"commit_success.txt", "validation.npz", "dataset_info.json", "README.md"}
    assert found >= {"rows.jsonl", "checkpoints", "samples.png"}
    assert found - models <= workdir.RESULTS | {"config.json", "lock.json"}


def test_own_images_in_the_workdir_are_refused_by_their_reader(tmp_path):
    images = np.zeros((2, 28, 28, 1), np.uint8)
    (tmp_path / "run").mkdir()
    for inner in (".", "run"):
        np.savez(tmp_path / inner / "mine.npz", images=images)

    def read(inner):
        path = str(tmp_path / inner)
        return data.read_input("fashion_mnist", path, 0, (28, 28, 1), None)

    place = workdir.Workdir(tmp_path / "run", {"mode": "score"})
    for inner in ("run/mine.npz", "run", "run/../run/mine.npz"):
        with pytest.raises(ValueError, match="is inside the workdir"):
            read(inner)
    assert read("mine.npz").own
    place.close()
    assert read("run/mine.npz").own


def test_a_folder_without_results_takes_the_right_config(tmp_path):
    _open_and_close(tmp_path, batch=0)
    # What a run writes before it has anything.
    _write(tmp_path, ["written.json"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    _open_and_close(tmp_path, batch=1)
    _write(tmp_path, ["parts/a/000000000000.npz"])
    with pytest.raises(ValueError, match="batch: 1 there, 2 here"):
        _open_and_close(tmp_path, batch=2)
    _open_and_close(tmp_path, batch=1)


def _open_and_close(folder, **config):
    place = workdir.Workdir(folder, {"mode": "purify"} | config)
    place.open()
    place.close()


def test_the_config_is_looked_at_again_once_nobody_else_can_write(tmp_path):
    late = workdir.Workdir(tmp_path, {"mode": "purify"})
    _open_and_close(tmp_path, mode="attack")
    _write(tmp_path, ["rows.jsonl"])
    before = _state(tmp_path)
    with pytest.raises(workdir.UserError, match="belongs to another mode"):
        late.open()
    late.close()
    assert _state(tmp_path) == before


def test_a_folder_that_was_removed_is_not_built_again(tmp_path):
    place = workdir.Workdir(tmp_path / "run", {"mode": "purify"})
    folder = place.open()
    files.write_json(folder / "purified/a.json", {})
    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(files.LostError, match="removed during the run"):
            files.write_json(folder / "purified/b.json", {})
    place.close()
    assert not folder.exists()


def _refused(mode, *options):
    """The one line that a run is refused with."""
    ((_, errors),) = finish(launch(mode, *options), code=2)
    assert len(errors.splitlines()) == 1, errors
    return errors


@pytest.mark.slow
def test_purify_leaves_a_folder_of_somebody_else_as_it_was(tmp_path):
    _write(tmp_path, _FOREIGN)
    before = _state(tmp_path)
    assert "was not written by a run" in _refused("purify", f"--workdir={tmp_path}")
    assert _state(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["classify", "score", "purify", "attack"])
def test_no_mode_reads_its_input_from_its_workdir(tmp_path, mode):
    (tmp_path / "own").mkdir()
    images, _ = data.sample("fashion_mnist")
    np.savez(tmp_path / "own/mine.npz", images=images[:2])
    before = _state(tmp_path)
    given = f"--config.{mode}.input={tmp_path}/own/mine.npz"
    assert "is inside the workdir" in _refused(mode, given, f"--workdir={tmp_path}")
    assert _state(tmp_path) == before


@pytest.mark.slow
def test_results_of_other_images_go_and_what_others_added_stays(tmp_path):
    images, _ = data.sample("fashion_mnist")
    options = ["--config.purify.pictures=True", f"--workdir={tmp_path}/run"]
    options.append(f"--config.purify.input={tmp_path}/own.npz")
    np.savez(tmp_path / "own.npz", images=images[:2], names=np.array(["a", "b"]))
    finish(launch("purify", *options))
    written = set(_state(tmp_path / "run"))
    added = ["purified/holiday.png", "correct/mine.npz", "parts/notes.txt"]
    _write(tmp_path / "run", added)
    np.savez(tmp_path / "own.npz", images=images[2:3])
    finish(launch("purify", *options))
    now = set(_state(tmp_path / "run"))
    assert now >= set(added)
    assert len(written - now) == 1  # a picture less


@pytest.mark.slow
def test_a_batch_that_is_too_large_leaves_nothing(tmp_path):
    options = [
        f"--workdir={tmp_path}/run",
        "--config.purify.batch=99999999999999999999",
    ]
    assert "purify.batch must be at most" in _refused("purify", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_whose_folder_was_removed_says_so(tmp_path):
    options = ["--config.purify.count=200", "--config.purify.batch=1"]
    started = launch("purify", *options, f"--workdir={tmp_path}/run", hold=PART)
    wait_until_held(started[0])
    (tmp_path / "run").rename(tmp_path / "moved")
    ((_, errors),) = finish(started, code=2)
    assert len(errors.splitlines()) == 1 and "was removed during" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, more, reached",
    [
        ("train", "pixelcnn.train.steps=100000", "metrics.jsonl"),
        ("purify", "purify.batch=1", PART),
    ],
)
def test_an_interrupted_run_says_so_and_keeps_what_it_has(
    tmp_path, mode, more, reached
):
    options = [f"--config.{more}", "--config.purify.count=200"]
    started = launch(mode, *options, f"--workdir={tmp_path}/run")
    wait_for(tmp_path / "run", reached, started)
    started[0].send_signal(signal.SIGINT)
    ((_, errors),) = finish(started, code=130)
    assert errors == "main.py: interrupted\n"
    assert any(path.stat().st_size for path in (tmp_path / "run").glob(reached))
    assert not (tmp_path / "run/lock.json").exists()


# A mode that compiles for many minutes.
COMPILES = """
import jax.numpy as jnp
import numpy as np
from pixeldefend import cli
from pixeldefend.experiment import modes, parallel

def slow(variables, images):
    for i in range(8000):
        images = jnp.sort(images * 1.5 + i)
    print("traced", flush=True)
    return images

def run(config, workdir):
    workdir.open()
    parallel.BatchMap(slow, 1).compile(0.0, np.ones((1, 64), np.float32))

cli.run({"score": modes.Mode(run)})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code, told",
    [
        (signal.SIGTERM, 75, "asked to stop; run the same command again to resume"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_nobody_waits_for_the_end_of_a_compilation(tmp_path, number, code, told):
    options = [f"--config={SMOKE}", "--mode=score", f"--workdir={tmp_path}/run"]
    started = subprocess.Popen(
        [sys.executable, "-c", COMPILES, *options],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "traced\n" in iter(started.stdout.readline, "")  # and what comes before
    time.sleep(10)  # until XLA has it; sooner, the signal is heard by Python itself
    started.send_signal(number)
    _, errors = started.communicate(timeout=120)
    assert started.returncode == code and errors == f"-c: {told}\n"
    # Given back, so that nobody elsewhere has to wait for signs of life.
    assert not (tmp_path / "run/lock.json").exists()


def test_what_must_not_be_lost_is_waited_for(monkeypatch):
    """Compiling amid a training's steps is no reason to leave."""
    left = []
    given_up = lambda: contextlib.nullcontext(left.append(1))  # noqa: E731
    monkeypatch.setattr(interruption, "disposable", given_up)
    with run_processes.undisturbed(), run_processes.compiling():
        assert left == []
    with run_processes.compiling():
        assert left == [1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["list", "score"])
def test_nobody_has_to_read_all_that_is_printed(tmp_path, mode):
    (started,) = launch(mode, f"--workdir={tmp_path}/run")
    started.stdout.close()
    with started.stderr as errors:
        assert errors.read() == ""
    assert started.wait(timeout=600) == 141
