"""Which density model purifies best, trained equally long?

Trains the networks of a comparison one after the other, each for as many steps or hours
by the clock (which other work on the machine makes unequal), once. Scores test images,
puts each network in front of the released ResNet, and times their purifiers in turn in
one process. Started again with the same folder and flags it goes on where it was.
Writes one line of JSON for each network that is trained, in which `curve` has what it
scored on validation images on the way.

  python -m benchmarks.networks --comparison=conditionals --data_dir=DATA_DIR \
    --steps=1000 --folder=runs/conditionals --to=results/conditionals_cifar10.jsonl
  python -m benchmarks.networks --comparison=sizes --data_dir=DATA_DIR \
    --hours=0.4 --folder=runs/sizes --to=results/sizes_fashion_mnist.jsonl
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks import common
from pixeldefend.defences import purification
from pixeldefend.experiment import files, grid, zoo
from pixeldefend.experiment.rows import read_rows, write_rows

_ATTACKS = ("fgsm", "bim")


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
_ONLY = flags.DEFINE_multi_string("only", [], "to train now, by name; not given: all")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "as for main.py; smoke does without")
_STEPS = flags.DEFINE_integer("steps", 0, "of training; or give hours", 0)
_HOURS = flags.DEFINE_float("hours", 0.0, "of training; or give steps", 0.0)
_EVAL_EVERY = flags.DEFINE_integer("eval_every", 250, "steps between validations", 1)
_IMAGES = flags.DEFINE_integer("images", 500, "attacked and purified, the first", 1)
_BATCH = flags.DEFINE_integer("batch", 128, "images of a timed purification", 1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed turns", 1)
_FOLDER = flags.DEFINE_string("folder", "", "of the runs; empty: runs/COMPARISON")
_TO = flags.DEFINE_string("to", "", "file for the rows; empty: printed only")
_SMOKE = flags.DEFINE_bool("smoke", False, "a few steps and images, to try the code")


def _run(
    comparison: Comparison, mode: str, workdir: pathlib.Path, fields: dict
) -> None:
    """Runs a mode with the configuration of a comparison."""
    if _DATA_DIR.value:
        fields = fields | {"data_dir": pathlib.Path(_DATA_DIR.value).absolute()}
    variant = ":smoke" if _SMOKE.value else ""
    common.run_main(f"{comparison.dataset}.py{variant}", mode, workdir, fields)


def _claim(folder: pathlib.Path) -> None:
    """Keeps a folder for these flags, so that no result of others is taken for theirs.

    Raises:
      SystemExit: it has runs of other flags, or something else.
    """
    of_runs = (_COMPARISON, _STEPS, _HOURS, _EVAL_EVERY, _IMAGES, _SMOKE)
    plan = {flag.name: flag.value for flag in of_runs}
    if _DATA_DIR.value:
        plan["data_dir"] = str(pathlib.Path(_DATA_DIR.value).absolute())
    path = folder / "plan.json"
    if path.exists():
        known = json.loads(path.read_text())
        other = [name for name, value in plan.items() if known.get(name) != value]
        if other:
            theirs = ", ".join(f"{name} {known.get(name)}" for name in other)
            raise SystemExit(f"{folder} has runs of {theirs}: name another --folder")
    elif folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not of a comparison: name another --folder")
    files.write_json(path, plan)


def _workdir(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / name.replace(", ", "-").replace(" ", "_")


def _is_trained(workdir: pathlib.Path) -> bool:
    return (workdir / "model" / "card.json").exists()  # what is written last


def _train(comparison: Comparison, name: str, workdir: pathlib.Path) -> None:
    """Trains a network, unless that is done."""
    if _is_trained(workdir):
        return
    fields = {
        f"pixelcnn.model.{field}": value
        for field, value in comparison.networks[name].items()
    }
    if not _SMOKE.value:
        fields |= {
            "pixelcnn.train.steps": _STEPS.value,
            "pixelcnn.train.hours": _HOURS.value,
            "pixelcnn.train.eval_every": _EVAL_EVERY.value,
        }
    _run(comparison, "train", workdir, fields)


def _measured(comparison: Comparison, name: str, workdir: pathlib.Path) -> dict:
    """A row: how it was trained, and what it scores and mends."""
    card = zoo.load_card(zoo.find_released(str(workdir)))
    classifier = f"{comparison.dataset}/" + ("vgg" if _SMOKE.value else "resnet")
    scored, evaluated = workdir / "score", workdir / "evaluate"
    if not (scored / "figures.json").exists():
        fields = {"score.input": "test"}
        if _SMOKE.value:
            fields = {"score.input": "sample", "score.count": 16}
        _run(comparison, "score", scored, {"pixelcnn.weights": workdir} | fields)
    if not (evaluated / "rows.jsonl").exists():
        fields = {
            "pixelcnn.weights": workdir,
            "purify.eps": comparison.eps_defend,
            "evaluate.images": _IMAGES.value,
            "evaluate.rows": (classifier, f"{classifier} + purify"),
            "evaluate.attacks": _ATTACKS,
            "evaluate.eps_attack": comparison.eps,
        }
        _run(comparison, "evaluate", evaluated, fields)
    rows = read_rows(evaluated / "rows.jsonl")
    if {row["density_model_sha256"] for row in rows} - {None, card["sha256"][:8]}:
        raise SystemExit(f"{evaluated} is of other weights than {workdir}: remove it")
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
            for line in read_rows(workdir / "metrics.jsonl")
            if "validation_bits_per_dim" in line
        ],
        "test": {key: bits[key] for key in ("bits_per_dim", "half_width_95", "n")},
        "accuracies": [
            {key: row[key] for key in kept}
            for row in rows
            if row["attack"] in (grid.CLEAN, *_ATTACKS)
        ],
    }


def _speeds(comparison: Comparison, workdirs: dict[str, pathlib.Path]) -> dict:
    """Images/s of each purifier, and how many times as long as the first one takes."""
    eps = comparison.eps_defend
    functions = {}
    for name, workdir in workdirs.items():
        model, params, _ = zoo.load_released(str(workdir))
        purify = functools.partial(
            purification.purify, model, eps=eps, window=purification.window_for(eps)
        )
        functions[name] = purify, params
    images = common.noisy(comparison.dataset, _BATCH.value)
    programs = common.compiled(functions, images)
    seconds = common.in_turn(programs, _REPEATS.value)
    first = next(iter(seconds.values()))
    found = {}
    for name, taken in seconds.items():
        ratio, ratio_range = common.spread(taken / first)
        found[name] = {
            "images_per_second": common.three_digits(_BATCH.value / np.median(taken)),
            "ratio": ratio,
            "ratio_range": ratio_range,
            "batch": _BATCH.value,
        }
    return found


def main(_: list[str]) -> None:
    """Trains, measures, and writes the rows."""
    logging.set_verbosity(logging.ERROR)
    comparison = COMPARISONS[_COMPARISON.value]
    names = _ONLY.value or list(comparison.networks)
    unknown = set(names) - set(comparison.networks)
    if unknown:
        raise SystemExit(
            f"no network {', '.join(sorted(unknown))}: one of "
            f"{', '.join(map(repr, comparison.networks))}"
        )
    if _SMOKE.value == bool(_STEPS.value or _HOURS.value):
        raise SystemExit("give --steps or --hours of training, or --smoke without them")
    if _STEPS.value and _HOURS.value:
        raise SystemExit("give --steps or --hours of training, not both")
    if not _SMOKE.value and not _DATA_DIR.value:
        raise SystemExit("--data_dir is missing; --smoke does without")
    default = f"runs/{_COMPARISON.value}{'-smoke' if _SMOKE.value else ''}"
    folder = pathlib.Path(_FOLDER.value or default).absolute()
    _claim(folder)
    workdirs = {name: _workdir(folder, name) for name in comparison.networks}
    for name in names:
        _train(comparison, name, workdirs[name])
    workdirs = {name: at for name, at in workdirs.items() if _is_trained(at)}
    rows = [_measured(comparison, name, at) for name, at in workdirs.items()]
    speeds = _speeds(comparison, workdirs)
    rows = [row | {"speed": speeds[row["network"]]} for row in rows]
    if _TO.value:
        write_rows(_TO.value, rows)
    for row in rows:
        print(json.dumps(row | {"curve": len(row["curve"])}))


if __name__ == "__main__":
    app.run(main)
