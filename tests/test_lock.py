import concurrent.futures
import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import tensorstore
from processes import finish, launch, wait_for

from pixeldefend.experiment import lock
from pixeldefend.experiment.lock import Lock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lock.json"


def test_a_folder_that_is_in_use_is_refused_until_it_is_given_back(path):
    first, second = Lock(path), Lock(path)
    first.take()
    first.take()
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"):
        second.take()
    second.release()
    assert path.exists()
    first.release()
    assert not path.exists()
    second.take()
    second.release()


def test_a_run_that_died_on_this_host_is_in_nobodys_way(path):
    code = "import os; from pixeldefend.experiment.lock import Lock; "
    code += f"Lock({str(path)!r}).take();"
    subprocess.run([sys.executable, "-c", f"{code} os._exit(0)"], check=True)
    assert path.exists()
    mine = Lock(path)
    mine.take()
    mine.release()


def _elsewhere(path, beat=0):
    one = {"host": "other", "machine": "other", "process": 1, "token": "t"}
    path.write_text(json.dumps(one | {"beat": beat}))


def test_a_silent_run_on_another_host_counts_as_dead(path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_PATIENCE", 1.0)
    _elsewhere(path)
    mine = Lock(path)
    mine.take()
    assert "whether the run on other" in capsys.readouterr().out
    mine.release()


def test_a_living_run_on_another_host_is_not_disturbed(path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 60.0)
    _elsewhere(path)
    beats = iter(range(1, 100))
    monkeypatch.setattr(lock.time, "sleep", lambda _: _elsewhere(path, next(beats)))
    with pytest.raises(ValueError, match="in use by process 1 on other"):
        Lock(path).take()


@pytest.mark.parametrize("what", [{}, {"process": None}, {"process": "one"}])
def test_a_file_of_this_host_that_names_no_process_is_no_run(path, what):
    path.write_text(json.dumps({"machine": lock._machine(), "token": "t"} | what))
    mine = Lock(path)
    mine.take()
    mine.release()


@pytest.mark.parametrize("ahead", [0, 1e6])
def test_one_that_died_while_it_took_the_folder_is_in_nobodys_way(path, ahead):
    """Whenever that was by the clock."""
    dead = {"machine": lock._machine(), "process": -1, "started": "1", "token": "t"}
    path.write_text(json.dumps(dead))
    name = hashlib.sha256(json.dumps(dead, sort_keys=True).encode()).hexdigest()
    left = [path.parent / f".lock.json.{name[:16]}.partial.json"]
    left.append(path.parent / "lock.json.__lock")  # TensorStore's
    for claim in left:
        claim.touch()
        os.utime(claim, (time.time() + ahead,) * 2)
    mine = Lock(path)
    mine.take()
    mine.release()


def test_a_link_to_nowhere_is_no_run(path):
    path.symlink_to(path.parent / "nowhere")
    mine = Lock(path)
    mine.take()
    mine.release()
    assert not path.is_symlink() and not (path.parent / "nowhere").exists()


def test_storage_without_locks_is_watched_for_a_while(path, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLED", 0.2)

    def fails(folder):
        raise ValueError("UNIMPLEMENTED")

    monkeypatch.setattr(tensorstore.KvStore, "open", fails)
    mine = Lock(path)
    mine.take()
    with pytest.raises(ValueError, match="in use"):
        Lock(path).take()
    mine.release()
    # Somebody else's comes while it is watched.
    monkeypatch.setattr(lock.time, "sleep", lambda _: _elsewhere(path))
    with pytest.raises(ValueError, match="in use by process 1 on other"):
        Lock(path).take()


@pytest.mark.parametrize("text", ["", "{", "[1]", "\0"])
def test_a_damaged_file_is_no_run(path, text):
    path.write_text(text)
    mine = Lock(path)
    mine.take()
    mine.release()


def test_a_file_shows_signs_of_life(path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    mine = Lock(path)
    mine.take()
    before = path.read_text()
    for _ in range(1000):
        if path.read_text() != before:
            break
        lock.time.sleep(0.01)
    else:
        pytest.fail("no sign of life")
    mine.release()


def _take_at_once(path, count=8):
    """How many of so many that come at the same time get the folder."""
    runs = [Lock(path) for _ in range(count)]
    together = threading.Barrier(count)

    def take(run):
        together.wait()
        try:
            run.take()
        except ValueError:
            return 0
        return 1

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        got = sum(pool.map(take, runs))
    for run in runs:
        run.release()
    return got


def test_of_those_that_come_at_once_one_gets_it(path):
    for _ in range(30):
        assert _take_at_once(path) == 1
        assert not list(path.parent.iterdir())


def test_a_dead_runs_folder_is_not_given_to_two(path):
    dead = {"host": "h", "machine": lock._machine(), "process": -1, "started": "1"}
    for _ in range(30):
        path.write_text(json.dumps(dead | {"token": "t", "beat": 3}))
        assert _take_at_once(path) <= 1
        path.unlink(missing_ok=True)
        assert not list(path.parent.iterdir())


def test_a_run_whose_folder_was_taken_stops(path, monkeypatch, capsys):
    asked = threading.Event()
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    monkeypatch.setattr(lock.interruption, "ask", asked.set)
    mine = Lock(path)
    mine.take()
    _elsewhere(path)
    assert asked.wait(10)
    mine.release()
    assert mine.holder() == "t"
    assert "was taken over by another run" in capsys.readouterr().err


def test_a_storage_that_fails_for_a_while_does_not_stop_the_signs(path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT", 0.01)
    mine = Lock(path)
    mine.take()
    write, failed = mine._write, threading.Event()

    def fail(beat):
        if beat < 5:
            failed.set()
            raise RuntimeError("server disconnected")
        write(beat)

    monkeypatch.setattr(mine, "_write", fail)
    assert failed.wait(10)
    for _ in range(1000):
        if json.loads(path.read_text())["beat"] > 5:
            break
        lock.time.sleep(0.01)
    else:
        pytest.fail("no sign of life")
    mine.release()


@pytest.mark.slow
def test_two_jobs_in_one_workdir_are_refused_in_one_line(tmp_path):
    options = ["--config.purify.count=40", "--config.purify.batch=1"]
    options.append(f"--workdir={tmp_path / 'run'}")
    first = launch("purify", *options)
    wait_for(tmp_path / "run", "lock.json", first)
    ((_, errors),) = finish(launch("purify", *options), code=2)
    assert f"in use by process {first[0].pid}" in errors
    assert len(errors.splitlines()) == 1
    finish(first)
