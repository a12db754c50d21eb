"""Which density model purifies best, trained equally long?

Trains the networks of a comparison one after the other, each for as many steps or
hours, scores test images, puts each in front of the released ResNet, and times their
purifiers in turn in one process. Started again with the same folder it goes on where it
was. Writes one line of JSON for each network, in which `curve` has what it scored on
validation images on the way.

  python -m benchmarks.networks --comparison=conditionals --data_dir=DATA_DIR \
    --steps=1500 --folder=runs/conditionals --to=results/conditionals_cifar10.jsonl
  python -m benchmarks.networks --comparison=sizes --data_dir=DATA_DIR \
    --hours=0.4 --folder=runs/sizes --to=results/sizes_fashion_mnist.jsonl
"""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from pixeldefend import checkpoint, data, files, purification

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Networks that differ in a few fields of one configuration.

    Attributes:
      dataset: of all.
      networks: by name, fields of `pixelcnn.model` and their values.
      eps: of the attacks, levels.
      eps_defend: of the purifier, levels.
    """

    dataset: str
    networks: dict[str, dict[str, Any]]
    eps: tuple[float, ...]
    eps_defend: int


COMPARISONS = {
    "conditionals": Comparison(
        "cifar10",
        {kind: {"conditionals": kind} for kind in ("independent", "joint", "softmax")},
        (2.0, 8.0),
        16,
    ),
    "sizes": Comparison(
        "fashion_mnist",
        {
            "24 features, depth 1": {"features": 24, "depth": 1},
            "32 features, depth 2": {"features": 32, "depth": 2},
            "48 features, depth 1": {"features": 48, "depth": 1},
        },
        (8.0, 25.0),
        32,
    ),
}

_COMPARISON = flags.DEFINE_enum("comparison", "conditionals", COMPARISONS, "which one")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "as for main.py; not set: the sample")
_STEPS = flags.DEFINE_integer("steps", 0, "of training; or give hours")
_HOURS = flags.DEFINE_float("hours", 0.0, "of training; or give steps")
_EVAL_EVERY = flags.DEFINE_integer("eval_every", 250, "steps between two validations")
_IMAGES = flags.DEFINE_integer("images", 500, "attacked and purified, the first")
_BATCH = flags.DEFINE_integer("batch", 128, "images of a timed purification")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed turns", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", "runs/networks", "of the training runs")
_TO = flags.DEFINE_string("to", "", "file for the rows; empty: printed only")
_VARIANT = flags.DEFINE_string("variant", "", "of the config: smoke, to try the code")


def _run(comparison: Comparison, mode: str, workdir: pathlib.Path, **fields) -> None:
    """Runs `main.py` in a process of its own.

    Raises:
      SystemExit: it failed.
    """
    variant = f":{_VARIANT.value}" if _VARIANT.value else ""
    command = [sys.executable, "main.py", f"--mode={mode}", f"--workdir={workdir}"]
    command.append(f"--config=configs/{comparison.dataset}.py{variant}")
    if _DATA_DIR.value:
        command.append(f"--config.data_dir={_DATA_DIR.value}")
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{mode} in {workdir} ended with {done.returncode}")


def _lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _trained(comparison: Comparison, name: str, folder: pathlib.Path) -> pathlib.Path:
    """Trains a network, unless that is done; returns its workdir."""
    workdir = folder / name.replace(", ", "-").replace(" ", "_")
    fields = {
        f"pixelcnn.model.{field}": value
        for field, value in comparison.networks[name].items()
    }
    if not _VARIANT.value:
        fields |= {
            "pixelcnn.train.steps": _STEPS.value,
            "pixelcnn.train.hours": _HOURS.value,
            "pixelcnn.train.eval_every": _EVAL_EVERY.value,
        }
    if not (workdir / "model").exists():
        _run(comparison, "train_pixelcnn", workdir, **fields)
    return workdir


def _measured(comparison: Comparison, name: str, workdir: pathlib.Path) -> dict:
    """A row: how it was trained, and what it scores and mends."""
    card = checkpoint.load_card(checkpoint.find_released(str(workdir)))
    classifier = f"{comparison.dataset}/" + ("vgg" if _VARIANT.value else "resnet")
    known = {"pixelcnn.weights": workdir}
    split = "test" if _DATA_DIR.value else "sample"
    scored, evaluated = workdir / "score", workdir / "evaluate"
    count = {} if not _VARIANT.value else {"score.count": 16}
    if not (scored / "figures.json").exists():
        _run(comparison, "score", scored, **known, **{"score.input": split}, **count)
    if not (evaluated / "rows.jsonl").exists():
        _run(
            comparison,
            "evaluate",
            evaluated,
            **known,
            **{
                "evaluate.images": _IMAGES.value,
                "evaluate.rows": (classifier, f"{classifier} + purify"),
                "evaluate.attacks": ("fgsm", "bim"),
                "evaluate.eps_attack": comparison.eps,
            },
        )
    training = card["training"]
    bits = json.loads((scored / "figures.json").read_text())
    kept = ("attack", "eps_attack", "defence", "accuracy", "low", "high", "n")
    return {
        "network": name,
        "model": card["model"],
        "steps": training["step"],
        "images": training["images"],
        "seconds": training["seconds"],
        "parameters": training["parameters"],
        "device": training["device"],
        "command": training["command"],
        "curve": [
            {key: line[key] for key in ("images", "seconds", "validation_bits_per_dim")}
            for line in _lines(workdir / "metrics.jsonl")
            if "validation_bits_per_dim" in line
        ],
        "test": {key: bits[key] for key in ("bits_per_dim", "half_width_95", "n")},
        "accuracies": [
            {key: row[key] for key in kept}
            for row in _lines(evaluated / "rows.jsonl")
            if row["attack"] in ("none", "fgsm", "bim")
        ],
    }


def _speeds(comparison: Comparison, workdirs: dict[str, pathlib.Path]) -> dict:
    """Images/s of each purifier, and how many times as long as the first one takes."""
    eps = comparison.eps_defend
    clean = data.sample(comparison.dataset)[0]
    images = np.resize(clean, (_BATCH.value, *clean.shape[1:])).astype(np.int16)
    noise = np.random.default_rng(0).integers(-8, 9, images.shape)
    noisy = np.clip(images + noise, 0, 255).astype(np.uint8)
    programs = {}
    for name, workdir in workdirs.items():
        model, params, _ = checkpoint.load_released(str(workdir))
        purify = functools.partial(
            purification.purify, model, eps=eps, width=purification.width_for(eps)
        )
        programs[name] = jax.jit(purify).lower(params, noisy).compile(), params
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(_REPEATS.value + 1):
        for name, (program, params) in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(params, noisy))
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun)
    first = np.array(next(iter(seconds.values())))
    found = {}
    for name, taken in seconds.items():
        ratios = np.array(taken) / first
        low, middle, high = np.quantile(ratios, [0, 0.5, 1])
        found[name] = {
            "images_per_second": float(f"{_BATCH.value / np.median(taken):.3g}"),
            "ratio": float(f"{middle:.3g}"),
            "ratio_range": [float(f"{low:.3g}"), float(f"{high:.3g}")],
            "batch": _BATCH.value,
        }
    return found


def main(_: list[str]) -> None:
    """Trains, measures, and writes the rows."""
    logging.set_verbosity(logging.ERROR)
    if not _VARIANT.value and bool(_STEPS.value) == bool(_HOURS.value):
        raise SystemExit("give --steps or --hours of training, the same for each")
    comparison = COMPARISONS[_COMPARISON.value]
    folder = pathlib.Path(_FOLDER.value).absolute()
    workdirs = {
        name: _trained(comparison, name, folder) for name in comparison.networks
    }
    rows = [_measured(comparison, name, at) for name, at in workdirs.items()]
    speeds = _speeds(comparison, workdirs)
    rows = [row | {"speed": speeds[row["network"]]} for row in rows]
    if _TO.value:
        with files.whole_file(_TO.value) as temporary:
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for row in rows:
        print(json.dumps(row | {"curve": len(row["curve"])}))


if __name__ == "__main__":
    app.run(main)
