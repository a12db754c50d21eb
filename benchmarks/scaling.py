"""What do more devices change? Nothing in the results; and what do they say?

Runs the same purification and the same training steps on 1, 2, 4 and 8 virtual devices
of this CPU, each in a process of its own, and prints whether the purified bytes and the
trained parameters are those of one device, and which collectives the compiled programs
have: none to purify, one all-reduce for a training step. Virtual devices share the
cores, so times say what dividing the work costs, not what more machines gain. The last
line is JSON.

  python -m benchmarks.scaling --devices=1,2,4,8
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from pixeldefend.defences import purification as purifiers
from pixeldefend.density import pixelcnn
from pixeldefend.experiment import data, density_training, parallel, schedule, train

_DEVICES = flags.DEFINE_list("devices", "1,2,4,8", "numbers of virtual devices")
_FEATURES = flags.DEFINE_integer("features", 8, "of the PixelCNN++")
_IMAGES = flags.DEFINE_integer("images", 64, "to purify, and of a training step")
_STEPS = flags.DEFINE_integer("steps", 3, "of training")
_ALONE = flags.DEFINE_bool("alone", False, "one measurement, on all devices there are")
_BATCH = 4  # images per device when purifying: the same on any number of devices
_COLLECTIVES = r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute)"


def _collectives(program: Any) -> list[str]:
    text = re.sub(r"\([^()]*\) (?=all-)", "tuple ", program.as_text())
    return sorted(re.findall(f"{_COLLECTIVES}(?:-start)?\\(", text))


def _purified(model: pixelcnn.PixelCNN, params: dict, images: np.ndarray) -> dict:
    options = {"eps": 16, "window": purifiers.window_for(16)}
    mapped = parallel.BatchMap(
        lambda params, images: purifiers.purify(model, params, images, **options),
        _BATCH,
    )
    mapped.compile(params, images)
    begun = time.perf_counter()
    found = mapped(params, images)
    return {
        "purified": hashlib.sha256(found.tobytes()).hexdigest()[:16],
        "purify_seconds": round(time.perf_counter() - begun, 3),
        "purify_collectives": _collectives(mapped.program),
    }


def _trained(model: pixelcnn.PixelCNN, params: dict, images: np.ndarray) -> dict:
    plan = schedule.Plan(batch=len(images), steps=_STEPS.value)
    optimizer = train.adam(plan)
    step = train.make_step(density_training.loss_fn(model), optimizer, plan.polyak)
    mapped = parallel.map_step(train.several(step, 1))
    state = train.start(params, {}, optimizer)
    placed = parallel.on_every_device({"images": images})
    rows = np.arange(len(images))[None]
    given = (state, placed, rows, [1e-3], jax.random.key(0))
    program = mapped.lower(*given).compile()
    begun = time.perf_counter()
    for _ in range(_STEPS.value):
        state, _ = mapped(state, *given[1:])
    leaves = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(state.params)]
    return {
        "trained": np.concatenate(leaves).astype(float).tolist(),
        "train_seconds": round(time.perf_counter() - begun, 3),
        "train_collectives": _collectives(program),
    }


def _measure() -> dict:
    model = pixelcnn.PixelCNN(
        features=_FEATURES.value, depth=1, mixtures=2, channels=1, dropout=0.0
    )
    images = data.sample("fashion_mnist")[0][: _IMAGES.value]
    params = pixelcnn.init(model, jax.random.key(0), images[:8])
    return _purified(model, params, images) | _trained(model, params, images)


def _apart(count: int) -> dict:
    """`_measure` in a process with so many devices."""
    flag = f"--xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "benchmarks.scaling", "--alone"]
    command += [f"--{f.name}={f.value}" for f in (_FEATURES, _IMAGES, _STEPS)]
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
    """Prints a line for every number of devices."""
    logging.set_verbosity(logging.ERROR)
    if _ALONE.value:
        print(json.dumps(_measure()))
        return
    counts = [int(count) for count in _DEVICES.value]
    found = {count: _apart(count) for count in counts}
    trained = {count: np.array(one.pop("trained")) for count, one in found.items()}
    rows = [
        {"devices": count, "device": "cpu"}
        | one
        | {
            "same_bytes": one["purified"] == found[counts[0]]["purified"],
            "largest_difference": float(
                np.abs(trained[count] - trained[counts[0]]).max()
            ),
        }
        for count, one in found.items()
    ]
    for row in rows:
        print(json.dumps(row))
    print(json.dumps(rows))


if __name__ == "__main__":
    app.run(main)
