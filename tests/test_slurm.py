"""launch/slurm.sbatch under a real Slurm: PIXELDEFEND_SLURM=1, and sbatch on PATH."""

import os
import subprocess
import sys
import time

import pytest
from processes import ROOT, SMOKE, environment, finish, launch, rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("PIXELDEFEND_SLURM") != "1",
        reason="needs a Slurm cluster that may be used: PIXELDEFEND_SLURM=1",
    ),
]
# Many small batches, so that there is a middle to be stopped in.
OPTIONS = ["--config.purify.count=60", "--config.purify.batch=1"]


def _slurm(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def submit(tmp_path):
    """Submits two tasks with two virtual devices each; cancels what is left of them."""
    submitted = []

    def start(*arguments):
        job = subprocess.run(
            ["sbatch", "--parsable", "--ntasks=2", f"--output={tmp_path}/job.log"]
            + ["launch/slurm.sbatch", *arguments],
            cwd=ROOT,
            env=environment(devices=2) | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        submitted.append(job.split(";")[0])  # a cluster's name may follow
        return submitted[-1]

    yield start
    for job in submitted:
        subprocess.run(["scancel", job], capture_output=True)
        for log in ROOT.glob(f"slurm-{job}-*.log"):
            log.unlink()


def _job(job):
    """What Slurm says of a job."""
    words = _slurm("scontrol", "show", "job", job).split()
    return dict(word.partition("=")[::2] for word in words if "=" in word)


def _wait(job, reached, seconds=600):
    """Waits until `reached(what Slurm says)`; returns what Slurm says."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if reached(told := _job(job)):
            return told
        time.sleep(0.1)
    logs = [path.read_text()[-2000:] for path in ROOT.glob(f"slurm-{job}-*.log")]
    raise AssertionError("\n".join([f"job {job} is {told['JobState']}", *logs]))


def _wait_for_part(job, workdir):
    """Waits until some of the run is on disk, and it is not over."""

    def reached(told):
        assert told["JobState"] in ("PENDING", "RUNNING"), told
        return any((workdir / "parts").rglob("[0-9]*.npz"))

    _wait(job, reached)
    assert not (workdir / "rows.jsonl").exists()


def _ended(told):
    return told["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def test_a_requeued_job_ends_with_the_same_rows(tmp_path, submit):
    whole, workdir = tmp_path / "whole", tmp_path / "requeued"
    job = submit("purify", SMOKE, *OPTIONS, f"--workdir={workdir}")
    _wait_for_part(job, workdir)
    _slurm("scontrol", "requeue", job)
    _wait(job, lambda told: told["Restarts"] == "1")
    _slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
    told = _wait(job, _ended)
    assert (told["JobState"], told["ExitCode"]) == ("COMPLETED", "0:0")
    assert told["Restarts"] == "1"
    finish(launch("purify", *OPTIONS, f"--workdir={whole}"))
    assert rows(workdir / "rows.jsonl") == rows(whole / "rows.jsonl")


def test_a_job_whose_tasks_are_asked_to_stop_goes_back_into_the_queue(tmp_path, submit):
    """As two minutes before the end of its time."""
    workdir = tmp_path / "out"
    job = submit("purify", SMOKE, *OPTIONS, f"--workdir={workdir}")
    _wait_for_part(job, workdir)
    _slurm("scancel", "--signal=TERM", job)
    told = _wait(job, lambda told: told["Restarts"] == "1" or _ended(told))
    assert told["Restarts"] == "1" and not _ended(told)
    assert "back into the queue" in (tmp_path / "job.log").read_text()


def test_a_cancelled_job_stays_away(tmp_path, submit):
    workdir = tmp_path / "out"
    job = submit("purify", SMOKE, *OPTIONS, f"--workdir={workdir}")
    _wait_for_part(job, workdir)
    _slurm("scancel", job)
    _wait(job, lambda told: told["JobState"] not in ("RUNNING", "COMPLETING"))
    told = _job(job)
    assert told["JobState"] == "CANCELLED" and told["Restarts"] == "0"


def test_a_mistake_is_not_tried_again(tmp_path, submit):
    job = submit("purify", SMOKE, f"--workdir={tmp_path}", "--config.purify.esp=1")
    told = _wait(job, _ended)
    assert (told["JobState"], told["ExitCode"]) == ("FAILED", "2:0")
    assert told["Restarts"] == "0"
