"""What it takes to run an exported defence, beside the ways to keep what is compiled.

Exports a released model and calls it in processes of their own: with nothing compiled,
and with JAX's compilation cache. Beside that the executable itself, as
`jax.experimental.serialize_executable` keeps it (by pickle, which nobody should read
from others: here it is our own), and `Purifier`. Seconds of all cores together, which
depend less on what else a machine does than those of a clock, and bytes; the last line
is JSON.

  python -m benchmarks.export --weights=fashion_mnist/pixelcnn --eps=32 --batch=32
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from pixeldefend.experiment import artefacts, zoo

_WEIGHTS = flags.DEFINE_string("weights", "fashion_mnist/pixelcnn", "released model")
_CLASSIFIER = flags.DEFINE_string("classifier", "", "released; defence only")
_WHAT = flags.DEFINE_enum("what", "purify", artefacts.WHAT, "what is exported")
_EPS = flags.DEFINE_integer("eps", 32, "levels")
_BATCH = flags.DEFINE_integer("batch", 32, "images of a call")

_BEGIN = """
import json, pathlib, pickle, time
import jax, numpy as np
from jax import export
from jax.experimental import serialize_executable
jax.devices()
told = json.loads(pathlib.Path("defence.json").read_text())
images = np.random.default_rng(0).integers(
    0, 256, ({batch}, *told["inputs"]["images"]["shape"][1:]), np.uint8
)
arguments = [images, np.int32({eps})][: len(told["inputs"])]
found, begun = {{}}, time.process_time()

def lap(name):
    global begun
    found[name] = round(time.process_time() - begun, 3)
    begun = time.process_time()

def call(run):
    for name in ("first_call", "second_call"):
        jax.block_until_ready(run(*arguments))
        lap(name)
"""
_PROGRAM = """
program = export.deserialize(bytearray(pathlib.Path("defence.jax").read_bytes()))
lap("load")
call(jax.jit(program.call))
"""
_COMPILE = """
program = export.deserialize(bytearray(pathlib.Path("defence.jax").read_bytes()))
compiled = jax.jit(program.call).lower(*arguments).compile()
kept = pickle.dumps(serialize_executable.serialize(compiled))
pathlib.Path("executable").write_bytes(kept)
found["bytes"] = len(kept)
"""
_EXECUTABLE = """
kept = pickle.loads(pathlib.Path("executable").read_bytes())
run = serialize_executable.deserialize_and_load(*kept)
lap("load")
call(run)
"""
_PURIFIER = """
import pixeldefend
begun = time.process_time()
run = pixeldefend.Purifier("{weights}", eps={eps}, batch={batch}, cache=False)
lap("load")
call(lambda images, _: run(images))
"""


def _run(text: str, folder: str, **environment: str) -> dict[str, float]:
    """What a process of its own finds, in `folder`."""
    named = {"weights": _WEIGHTS.value, "eps": _EPS.value, "batch": _BATCH.value}
    lines = f"{_BEGIN}{text}print(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-c", lines.format(**named)],
        cwd=folder,
        env={"PYTHONPATH": str(pathlib.Path.cwd())} | _without_cache() | environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _without_cache() -> dict[str, str]:
    hidden = "JAX_COMPILATION_CACHE_DIR"
    return {name: value for name, value in os.environ.items() if name != hidden}


def main(_: list[str]) -> None:
    scored = _WHAT.value == "score"
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        artefacts.export(
            str(zoo.find_released(_WEIGHTS.value)),
            folder,
            what=_WHAT.value,
            eps=None if scored else _EPS.value,
            classifier=_CLASSIFIER.value,
        )
        found = {"export": round(time.process_time() - begun, 3)}
        told = json.loads((pathlib.Path(folder) / artefacts.TOLD).read_text())
        found["bytes"] = told["bytes"]
        found["program"] = _run(_PROGRAM, folder)
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        _run(_PROGRAM, folder, **cache)
        found["program_cached"] = _run(_PROGRAM, folder, **cache)
        found["executable"] = _run(_COMPILE, folder)
        found["executable"] |= _run(_EXECUTABLE, folder)
        if _WHAT.value == "purify":
            found["purifier"] = _run(_PURIFIER, folder)
    print(json.dumps({"what": _WHAT.value, "batch": _BATCH.value, **found}))


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    app.run(main)
