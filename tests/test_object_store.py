"""Everything in an object store: gcsfs, TensorStore and orbax before an emulator."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import ROOT, finish, free_port, kill, launch, rows, wait_until

from pixeldefend.experiment import data, files, pictures, zoo

pytestmark = pytest.mark.slow

_NOTHING = "gs://bucket/nothing"


@pytest.fixture(scope="module")
def bucket():
    """`gs://bucket`, for this process and those that it starts."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "tests/object_store.py", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, f"http://127.0.0.1:{port}")
        # Asks for credentials to learn what an emulator does not have.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        for _ in range(300):
            with socket.socket() as reached:
                if reached.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        files.prepare([_NOTHING])
        yield zoo.epath.Path("gs://bucket")
    server.kill()
    server.wait()


def test_training_goes_on_and_the_model_is_loaded(bucket, tmp_path):
    """Asked to stop once, killed once; then as if nothing had been."""
    options = ["--config.pixelcnn.train.steps=40"]
    finish(launch("train", *options, f"--workdir={tmp_path / 'whole'}"))
    options.append(f"--workdir={bucket}/train")
    metrics = bucket / "train/metrics.jsonl"
    for stop, least in ((signal.SIGTERM, 0), (signal.SIGKILL, 20)):
        started = launch("train", *options)

        def reached(least=least):
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            return lines and json.loads(lines[-1])["step"] > least

        wait_until(reached, started)
        started[0].send_signal(stop)
        started[0].communicate()
        assert started[0].returncode == (75 if stop == signal.SIGTERM else -9)
    finish(launch("train", *options))
    steps = [line["step"] for line in rows(metrics)]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    ours, theirs = (
        zoo.load_released(str(place))[2]["sha256"]
        for place in (bucket / "train", tmp_path / "whole")
    )
    assert ours == theirs


def test_purifying_ones_own_images_by_two_processes(bucket, tmp_path):
    """Killed in the middle; the same files as in a folder of this machine."""
    images, _ = data.sample("fashion_mnist")
    for i in range(24):
        pictures.save(pictures.picture(images[i]), tmp_path / f"own/{i:02d}.png")
        pictures.save(pictures.picture(images[i]), bucket / f"own/{i:02d}.png")
    options = ["--config.purify.count=24", "--config.purify.batch=1"]
    here = [f"--config.purify.input={tmp_path}/own", f"--workdir={tmp_path}/out"]
    there = [f"--config.purify.input={bucket}/own", f"--workdir={bucket}/out"]
    finish(launch("purify", *options, *here))
    started = launch("purify", *options, *there, processes=2)
    parts = bucket / "out/parts"
    wait_until(lambda: any(list(p.iterdir()) for p in parts.glob("*")), started)
    kill(started, first=1)
    finish(launch("purify", *options, *there, processes=2))
    assert rows(bucket / "out/rows.jsonl") == rows(tmp_path / "out/rows.jsonl")
    (ours,), (theirs,) = (
        list((place / "out/purified").glob("*.npz")) for place in (bucket, tmp_path)
    )
    with np.load(ours.open("rb")) as found, np.load(theirs) as expected:
        np.testing.assert_array_equal(found["purified"], expected["purified"])
    assert _tree(bucket / "out") == _tree(zoo.epath.Path(tmp_path / "out"))


def _tree(folder):
    """The names of all files below a folder."""
    found = set()
    for path in folder.iterdir():
        inner = _tree(path) if path.is_dir() else {""}
        found |= {f"{path.name}/{name}" for name in inner}
    return found


def test_a_folder_in_use_is_refused(bucket):
    options = [f"--workdir={bucket}/busy", "--config.pixelcnn.train.steps=100000"]
    (first,) = launch("train", *options)
    wait_until((bucket / "busy/lock.json").exists, [first])
    ((_, errors),) = finish(launch("train", *options), code=2)
    assert "is in use by process" in errors
    first.kill()
    first.communicate()


def test_what_is_half_written_is_not_there(bucket):
    path = bucket / "half/file.json"
    with pytest.raises(RuntimeError):
        with files.whole_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert not path.exists() and not path.parent.exists()


@pytest.mark.parametrize(
    "path, message",
    [
        ("s3://bucket/a", "need the package s3fs"),
        ("ftp://host/a", "unknown kind of path ftp://"),
    ],
)
def test_kinds_that_cannot_be_reached_are_named(path, message):
    with pytest.raises(ValueError, match=message):
        files.prepare(["/tmp", path])
