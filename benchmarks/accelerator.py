"""Everything that a quarter of an hour on one accelerator is good for, in one command.

Each stage runs in a process of its own within a time box, needs no other stage to have
worked, prints its rows as it finds them and a short table last; `--to` gets all rows in
one file, rewritten whole with each, and the trained weights in pieces. A stage that
fails or runs out of time costs its own rows only.

* `device`: versions, memory, and two ceilings: copying, and a product in bfloat16.
* `correct`: in float32 at the highest precision, the scan against the teacher-forced
  pass, and purified bytes against those of a CPU (`--prepare`).
* `purify`: images/s of purification and of a forward pass, for models, batches, types,
  and XLA's command buffers; the most telling ones first, until time is up.
* `train=NAME`: a time-boxed training, one of `trainings.TRAININGS`.
* `profile`: which kernels a batch of purification spends its time in.

Before, where there is no accelerator, and after, to get a model of the pieces:

  python -m benchmarks.accelerator --prepare=PREPARED
  python -m benchmarks.accelerator --to=OUT --prepared=PREPARED --data_dir=DATA_DIR \
    --stages=device:20,correct:60,purify:150,train=cifar10-pixelcnn:400
  python -m benchmarks.accelerator --assemble=OUT/cifar10-pixelcnn --release=FOLDER

Needs neither TFDS nor matplotlib; training wants ml_collections, whose wheel is small.
`--smoke` tries all of it in minutes on a CPU.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl import app, flags, logging

from benchmarks import common, pieces, stages
from benchmarks.trainings import DATA_DIR, SET, SMOKE, TO, TRAININGS
from pixeldefend.experiment.rows import read_rows

# JAX takes an accelerator's memory when it is imported and used, so the process that
# watches over the others does not touch it: what needs it is imported where it is used.

STAGES = ("device", "correct", "purify", "train", "profile")
# Usual seconds of a stage. A training takes all of its own, the others what they need.
SECONDS = {"device": 20, "correct": 60, "purify": 150, "train": 240, "profile": 50}
_SMOKE_SECONDS = SECONDS | {"correct": 200, "train": 90, "profile": 200}
_GRACE = 10.0  # seconds in which a stage whose time is up may end by itself

_STAGES = flags.DEFINE_list("stages", "", "names, each with :seconds if wanted")
_SECONDS = flags.DEFINE_float("seconds", 0.0, "of all stages that do not say; 0: usual")
_PREPARE = flags.DEFINE_string("prepare", "", "folder for a model and what a CPU makes")
_ASSEMBLE = flags.DEFINE_string("assemble", "", "the pieces OUT/NAME of a training")
_RELEASE = flags.DEFINE_string("release", "", "folder for the model of --assemble")
_STAGE = flags.DEFINE_string("stage", "", "for this program's own use")


def _chosen() -> list[tuple[str, float]]:
    """Stages and their seconds.

    Raises:
      SystemExit: a name or a number that is none.
    """
    wanted = _STAGES.value or STAGES
    found = []
    for text in wanted:
        name, _, seconds = text.partition(":")
        if name == "train":
            name = "train=cifar10-pixelcnn"
        kind, _, training = name.partition("=")
        if kind not in STAGES or (kind == "train") != (training in TRAININGS):
            raise SystemExit(
                f"--stages: {name} is none of {', '.join(STAGES)}, with a training of "
                f"{', '.join(TRAININGS)}"
            )
        try:
            found.append((name, float(seconds or 0)))
        except ValueError:
            raise SystemExit(
                f"--stages: {seconds!r} is not a number of seconds"
            ) from None
    usual = _SMOKE_SECONDS if SMOKE.value else SECONDS
    shares = [0.0 if given else usual[name.partition("=")[0]] for name, given in found]
    left = _SECONDS.value - sum(given for _, given in found)
    if _SECONDS.value and any(shares) and left <= 0:
        raise SystemExit(f"--seconds={_SECONDS.value:g} leaves nothing for some stages")
    scale = left / sum(shares) if _SECONDS.value and any(shares) else 1.0
    return [
        (name, given or scale * share)
        for (name, given), share in zip(found, shares, strict=True)
    ]


def _watch(chosen: list[tuple[str, float]]) -> int:
    """Runs the stages; returns 0 if all of them ended well."""
    to = pathlib.Path(TO.value)
    to.mkdir(parents=True, exist_ok=True)
    path = to / "rows.jsonl"
    # Of earlier commands too: a machine is used in several calls.
    rows = read_rows(path) if path.exists() else []
    failed = []
    for name, seconds in chosen:
        print(f"== {name}, {seconds:.0f} s", flush=True)
        begun = time.monotonic()
        code, found = _run(name, begun + seconds, rows, path)
        taken = time.monotonic() - begun
        if code:
            failed.append(name)
        _table(found)
        print(f"== {name}: exit code {code} after {taken:.1f} s", flush=True)
    print(f"rows in {path}" + "".join(f"; {n} FAILED" for n in failed))
    return 1 if failed else 0


def _run(
    name: str, deadline: float, rows: list[dict], path: pathlib.Path
) -> tuple[int, list[dict]]:
    """A stage in a process of its own; its exit code and its rows."""
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--stage={name}"]
    command += [f"--deadline={deadline}", f"--{'' if SMOKE.value else 'no'}smoke"]
    command += [f"--{f.name}={f.value}" for f in (TO, DATA_DIR, stages.PREPARED)]
    command += [f"--set={field}" for field in SET.value]
    process = subprocess.Popen(
        command,
        cwd=common.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )

    def end(how: int) -> None:
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            pass

    left = deadline - time.monotonic()
    timers = [
        threading.Timer(left, end, [signal.SIGTERM]),
        threading.Timer(left + _GRACE, end, [signal.SIGKILL]),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    found = []
    try:
        for line in process.stdout:
            if line.startswith("ROW "):
                found.append(json.loads(line[4:]))
                rows.append(found[-1])
                # `write_rows` asks JAX for this process's number, and JAX
                # would take the device.
                temporary = path.with_suffix(".new")
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
                temporary.replace(path)
            else:
                print(line, end="", flush=True)
        return process.wait(), found
    finally:  # also where this process is asked to stop
        for timer in timers:
            timer.cancel()
        end(signal.SIGKILL)


def _table(rows: list[dict]) -> None:
    """A line for every row, what has a place in it first."""
    for row in rows:
        cells = [
            f"{name}={value:.5g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items()
            if not isinstance(value, dict | list) and name != "stage"
        ]
        print("  " + "  ".join(cells), flush=True)


def main(_: list[str]) -> None:
    """Runs the stages, or what comes before and after them."""
    logging.set_verbosity(logging.ERROR)
    if _STAGE.value:
        stages.run(_STAGE.value)
    elif _PREPARE.value:
        stages.prepare(pathlib.Path(_PREPARE.value))
    elif _ASSEMBLE.value:
        if not _RELEASE.value:
            raise SystemExit("--assemble wants --release, a folder for the model")
        pieces.assemble(pathlib.Path(_ASSEMBLE.value), pathlib.Path(_RELEASE.value))
    elif TO.value:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        sys.exit(_watch(_chosen()))
    elif SMOKE.value:
        with tempfile.TemporaryDirectory() as folder:
            flags.FLAGS.to = folder
            sys.exit(_watch(_chosen()))
    else:
        raise SystemExit("--to is missing: the folder for rows and weights")


if __name__ == "__main__":
    app.run(main)
