import json
import os
import subprocess
import sys

import pytest
from processes import finish, launch, wait_for

from pixeldefend import lock
from pixeldefend.lock import Lock


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
    code = f"import os; from pixeldefend.lock import Lock; Lock({str(path)!r}).take();"
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


def test_two_jobs_in_one_workdir_are_refused_in_one_line(tmp_path):
    options = ["--config.purify.count=40", "--config.purify.batch=1"]
    options.append(f"--workdir={tmp_path / 'run'}")
    first = launch("purify", *options)
    wait_for(tmp_path / "run", "lock.json", first)
    ((_, errors),) = finish(launch("purify", *options), code=2)
    assert f"in use by process {first[0].pid}" in errors
    assert len(errors.splitlines()) == 1
    finish(first)
