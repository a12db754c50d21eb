"""What stands in launch/: checked by the tools of those who run it."""

import copy
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
BIN = pathlib.Path(sys.executable).parent


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run(
        [BIN / "shellcheck", str(script)], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_shellcheck_finds_a_mistake(tmp_path):
    (tmp_path / "wrong.sh").write_text("#!/bin/sh\nrm $1\n")
    command = [BIN / "shellcheck", str(tmp_path / "wrong.sh")]
    assert subprocess.run(command, capture_output=True).returncode == 1


@pytest.fixture
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def _inner_jobs(jobset):
    """Jobs as JobSet makes them."""
    return [
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": replicated["name"]},
            "spec": replicated["template"]["spec"],
        }
        for replicated in jobset["spec"]["replicatedJobs"]
    ]


def _check_job(job):
    import kubernetes_validate

    kubernetes_validate.validate(job, "1.31", strict=True)


def _check_jobset(jobset):
    """By the models that Kubeflow makes of the JobSet CRD; no field may get lost."""
    from kubeflow_trainer_api import models

    read = models.JobsetV1alpha2JobSet.from_dict(copy.deepcopy(jobset))
    assert _names(jobset) <= _names(read.to_dict())  # which adds defaults


def _names(tree, prefix=""):
    if isinstance(tree, dict):
        pairs = [_names(value, f"{prefix}.{key}") for key, value in tree.items()]
    elif isinstance(tree, list):
        pairs = [_names(value, f"{prefix}[{i}]") for i, value in enumerate(tree)]
    else:
        return {prefix}
    return set().union(*pairs)


def test_the_jobset_is_valid(jobset):
    (job,) = _inner_jobs(jobset)
    _check_job(job)
    _check_jobset(jobset)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda job: job.update(parallelism="two"),
        lambda job: job.update(paralelism=2),
        lambda job: job["template"]["spec"].update(restartpolicy="Never"),
        lambda job: job["template"]["spec"]["containers"][0].pop("name"),
    ],
)
def test_a_mistake_in_the_job_is_found(jobset, wrong):
    (job,) = _inner_jobs(jobset)
    wrong(job["spec"])
    with pytest.raises(Exception, match="(?i)validat|required|additional|type"):
        _check_job(job)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda spec: spec.update(failurepolicy=spec.pop("failurePolicy")),
        lambda spec: spec["replicatedJobs"][0].pop("template"),
        lambda spec: spec["failurePolicy"].update(maxRestarts="never"),
    ],
)
def test_a_mistake_in_the_jobset_is_found(jobset, wrong):
    wrong(jobset["spec"])
    with pytest.raises((ValueError, AssertionError)):
        _check_jobset(jobset)


def test_the_pods_of_the_jobset_are_the_processes_that_it_tells_them(jobset):
    (job,) = _inner_jobs(jobset)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    name, subdomain = jobset["metadata"]["name"], jobset["spec"]["network"]["subdomain"]
    first = f"{name}-{jobset['spec']['replicatedJobs'][0]['name']}-0-0.{subdomain}"
    assert told["JAX_COORDINATOR_ADDRESS"] == f"{first}:8476"
    assert int(told["JAX_NUM_PROCESSES"]) == job["spec"]["parallelism"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    assert "--distributed" in container["command"]


def _ends(jobset, code, disrupted=False):
    """What becomes of the set when a pod ends so, as both controllers have it."""
    (job,) = _inner_jobs(jobset)
    reason, message = "BackoffLimitExceeded", ""
    assert job["spec"]["backoffLimit"] == 0
    for i, rule in enumerate(job["spec"]["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        codes = rule.get("onExitCodes", {"values": []})["values"]
        if code in codes or (disrupted and "onPodConditions" in rule):
            reason = "PodFailurePolicy"
            message = f"Pod default/one ... matching FailJob rule at index {i}"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message) for pattern in patterns
        ):
            return rule["action"]
    return "RestartJobSet"  # which counts


@pytest.mark.parametrize(
    "code, disrupted, action",
    [
        (2, False, "FailJobSet"),
        (75, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, False, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (137, False, "RestartJobSet"),
        (1, False, "RestartJobSet"),
    ],
)
def test_the_jobset_starts_again_unless_the_user_is_mistaken(
    jobset, code, disrupted, action
):
    assert _ends(jobset, code, disrupted) == action
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def _stand_in(folder, name, script):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def _run(script, *arguments, path, **environment):
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
    )


ODD = "--config.evaluate.attacks=('bim', \"pgd images=5\", '$HOME')"


@pytest.mark.parametrize(
    "code, state, requeued",
    [
        (0, "RUNNING", False),
        (2, "RUNNING", False),
        (75, "RUNNING", True),
        (143, "RUNNING", True),
        # Slurm is at it: it requeues the job, or somebody has cancelled it.
        (75, "COMPLETING", False),
    ],
)
def test_a_job_that_was_asked_to_stop_is_requeued(tmp_path, code, state, requeued):
    told = tmp_path / "told"
    _stand_in(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" >>{told}; exit {code}')
    _stand_in(
        tmp_path / "bin",
        "scontrol",
        f'echo "scontrol $*" >>{told}; echo JobState={state}',
    )
    found = _run(
        "slurm.sbatch",
        *("evaluate", "configs/mnist.py", ODD),
        path=tmp_path / "bin",
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert found.returncode == code, found.stderr
    lines = told.read_text().splitlines()
    assert ODD in lines and "--distributed" in lines and "--mode=evaluate" in lines
    assert ("scontrol requeue 7" in lines) == requeued


@pytest.mark.parametrize("visible, taken", [("", ""), ("5", "0"), ("0,1,2", "0,1,2")])
def test_a_task_takes_all_gpus_that_slurm_gives_it(tmp_path, visible, taken):
    """By itself JAX takes one a process in a Slurm step."""
    srun = 'while [ "$1" != bash ]; do shift; done; exec "$@"'
    _stand_in(tmp_path / "bin", "srun", srun)
    python = tmp_path / "bin/python"
    _stand_in(tmp_path / "bin", "python", 'echo "$JAX_LOCAL_DEVICE_IDS; $*"')
    found = _run(
        "slurm.sbatch",
        *("evaluate", "configs/mnist.py", ODD),
        path=tmp_path / "bin",
        PYTHON=str(python),
        CUDA_VISIBLE_DEVICES=visible,
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"{taken}; main.py --distributed --mode=evaluate")
    assert ODD in found.stdout


def test_arguments_reach_the_workers_of_a_slice_as_they_are(tmp_path):
    """`gcloud` runs what it is given here, in an empty home."""
    home = tmp_path / "home"
    _stand_in(
        tmp_path / "bin",
        "gcloud",
        'for one in "$@"; do case "$one" in --command=*) '
        f'cd {home} && bash -c "${{one#--command=}}"; exit;; esac; done\n'
        f'cp "$5" {home}/"${{6#*:}}"',
    )
    home.mkdir()
    # Also uv's: told everything, it leaves itself as the environment's interpreter.
    python3 = [
        f"printf '%s\\n' \"$@\" >>{tmp_path}/told",
        'mkdir -p .venv/bin; cp -u "$0" .venv/bin/python 2>/dev/null || true',
    ]
    _stand_in(tmp_path / "bin", "python3", "\n".join(python3))
    found = _run(
        "tpu_vm.sh",
        *("evaluate", "configs/mnist.py", "--workdir=gs://bucket/a b", ODD),
        path=tmp_path / "bin",
        TPU="slice",
        ZONE="zone",
    )
    assert found.returncode == 0, found.stderr
    lines = (tmp_path / "told").read_text().splitlines()
    for argument in ("--distributed", "--workdir=gs://bucket/a b", ODD, "gcsfs"):
        assert argument in lines
    assert (home / "pixeldefend/main.py").exists()


def test_a_slice_needs_a_workdir_in_a_bucket(tmp_path):
    local = ("evaluate", "configs/mnist.py", "--workdir=out")
    found = _run("tpu_vm.sh", *local, path=tmp_path, TPU="a", ZONE="b")
    assert found.returncode == 2 and "gs://" in found.stderr


@pytest.mark.parametrize("script", ["slurm.sbatch", "tpu_vm.sh", "local.sh"])
def test_a_script_without_arguments_says_how_to_use_it(script, tmp_path):
    found = _run(script, path=tmp_path, TPU="a", ZONE="b")
    assert found.returncode == 2 and "usage:" in found.stderr


def _run_without_venv(script, folder, **more):
    """In a checkout without a .venv."""
    (folder / "launch").mkdir()
    copy = shutil.copy(LAUNCH / script, folder / "launch")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    environment |= {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7"}
    environment |= {k: str(v) for k, v in more.items()}
    command = ["/bin/bash", copy, "purify", "configs/mnist.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["local.sh", "slurm.sbatch"])
def test_a_run_that_has_no_interpreter_does_not_start(tmp_path, script):
    _stand_in(tmp_path / "bin", "dirname", 'exec /usr/bin/dirname "$@"')
    found = _run_without_venv(script, tmp_path, PATH=tmp_path / "bin")
    assert found.returncode == 2 and "there is no python3" in found.stderr
    given = _run_without_venv(script, _inner(tmp_path), PYTHON=tmp_path / "absent")
    assert given.returncode == 2 and "absent; make .venv" in given.stderr
    assert not list(tmp_path.rglob("runs"))


def _inner(folder):
    (folder / "inner").mkdir()
    return folder / "inner"


def test_an_interpreter_without_the_packages_is_told(tmp_path):
    _stand_in(tmp_path / "bin", "python3", f'exec {sys.executable} -S -E "$@"')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    found = _run_without_venv("local.sh", tmp_path, PATH=path)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert "python3 lacks packages" in found.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_without_a_venv_takes_the_interpreter_of_the_path(tmp_path):
    _stand_in(tmp_path / "bin", "python3", f'echo "$@" >>{tmp_path}/told')
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    found = _run_without_venv("local.sh", tmp_path, PATH=path)
    assert found.returncode == 0 and "process " in found.stdout, found.stderr
    for _ in range(100):
        if "main.py --mode=purify" in (tmp_path / "told").read_text():
            return
        time.sleep(0.1)
    raise AssertionError((tmp_path / "told").read_text())


def _instructions():
    """Of the Dockerfile, each with what it is given."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    return [line.split(None, 1) for line in lines]


def test_the_image_is_made_of_what_is_there():
    told = _instructions()
    copied = [path for name, rest in told if name == "COPY" for path in rest.split()]
    copied = {path for path in copied if path not in (".", "./")}
    assert copied and all((ROOT / path).exists() for path in copied)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*" and kept == copied
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # What pip needs to make the package.
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= copied
    (extras,) = (rest.partition("=")[2] for name, rest in told if name == "ARG")
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (entry,) = (json.loads(rest) for name, rest in told if name == "ENTRYPOINT")
    assert entry == ["pixeldefend"] and entry[0] in project["scripts"]


def test_the_image_runs_as_a_user_of_its_own():
    told = _instructions()
    (user,) = (rest for name, rest in told if name == "USER")
    names = [name for name, _ in told]
    assert user != "root" and f" {user} " in told[names.index("RUN")][1]
    last = max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert last < names.index("USER") < names.index("ENTRYPOINT")


def test_the_jobset_runs_where_the_image_has_main_py(jobset):
    (job,) = _inner_jobs(jobset)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    told = dict(_instructions())
    assert container["workingDir"] == told["WORKDIR"]
    assert container["command"][:2] == ["python", "main.py"]
