"""Time-boxed trainings on one accelerator, and their weights in pieces."""

import importlib
import json
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from benchmarks import common, pieces

_PACKING = 6.0  # seconds of a training's box for writing its pieces
_TINY = {  # of a training that is to be tried on a CPU
    "pixelcnn": {
        "model.features": 4,
        "model.mixtures": 2,
        "model.depth": 1,
        "train.init_images": 8,
        "train.warmup": 1,
    },
    "classifier": {"model.divisor": 16, "train.warmup": 1},
}
_TINY_TRAIN = {"train.batch": 4, "train.eval_images": 16, "train.steps_per_call": 2}

TO = flags.DEFINE_string("to", "", "folder for rows and weights")
DATA_DIR = flags.DEFINE_string("data_dir", "", "as for main.py; training needs it")
SET = flags.DEFINE_multi_string("set", [], "field=value of a training's section")
SMOKE = flags.DEFINE_bool("smoke", False, "small, on the bundled sample")
DEADLINE = flags.DEFINE_float("deadline", 0.0, "for this program's own use")


def _classifier(training: str = "normal", **model: str) -> common.Training:
    fields = {f"model.{name}": value for name, value in model.items()}
    return common.Training("cifar10", "classifier", {"training": training, **fields})


def _small(fields: dict[str, Any] | None = None) -> common.Training:
    size = {"model.features": 24, "model.depth": 1}
    return common.Training("cifar10", "pixelcnn", size | (fields or {}))


# By the configurations' variant "gpu".
TRAININGS = {
    "cifar10-pixelcnn": common.Training("cifar10", "pixelcnn", {}),
    "cifar10-pixelcnn-96x3": common.Training(
        "cifar10", "pixelcnn", {"model.features": 96, "model.depth": 3}
    ),
    "cifar10-pixelcnn-24x1": _small(),
    "cifar10-pixelcnn-24x1-softmax": _small({"model.conditionals": "softmax"}),
    "cifar10-pixelcnn-24x1-noise": _small({"train.noise": 16.0}),
    "cifar10-resnet": _classifier(),
    "cifar10-vgg": _classifier(architecture="vgg", variant="paper"),
    "cifar10-resnet-label_smoothing": _classifier("label_smoothing"),
    "cifar10-resnet-adversarial_fgsm8": _classifier("adversarial_fgsm"),
    "cifar10-resnet-adversarial_bim8": _classifier("adversarial_bim"),
    "fashion_mnist-pixelcnn": common.Training("fashion_mnist", "pixelcnn", {}),
}


def left() -> float:
    """Seconds until this stage's time is up."""
    return DEADLINE.value - time.monotonic()


def _fields(training: common.Training) -> dict[str, Any]:
    """Fields of a training's section, with those of the command line."""
    fields = dict(training.fields)
    if SMOKE.value:
        fields |= _TINY[training.kind] | _TINY_TRAIN
        fields["train.on_sample"] = not DATA_DIR.value
    for text in SET.value:
        field, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"--set={text} wants field=value")
        fields[field] = value
    return fields


def configured(name: str) -> tuple[common.Training, Any]:
    """A training and its configuration, with the fields of the command line."""
    training = TRAININGS[name]
    config = importlib.import_module(f"configs.{training.dataset}").get_config("gpu")
    section = config[training.kind]
    for field, value in _fields(training).items():
        section.update_from_flattened_dict({field: _typed(section, field, value)})
    config.data_dir = DATA_DIR.value or None
    config.compilation_cache = ""
    section.train.steps = 0
    config.train.model = training.kind
    return training, config


def _as_command(training: common.Training, hours: float) -> list[str]:
    """The arguments with which `main.py` trains the same, for the model's card."""
    section = f"--config.{training.kind}"
    given = [f"{section}.{field}={value}" for field, value in _fields(training).items()]
    return [
        f"--config=configs/{training.dataset}.py:gpu",
        "--mode=train",
        f"--config.train.model={training.kind}",
        "--config.data_dir=DATA_DIR",
        *given,
        f"{section}.train.hours={hours:.4f}",
    ]


def _typed(section: Any, field: str, value: Any) -> Any:
    """A value from the command line, of its field's type.

    Raises:
      SystemExit: there is no such field, or it is of another type.
    """
    there = section.to_dict()
    try:
        for part in field.split("."):
            there = there[part]
    except (KeyError, TypeError):
        raise SystemExit(f"--set: the section has no field {field}") from None
    if not isinstance(value, str) or isinstance(there, str):
        return value
    try:
        if isinstance(there, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(there)(value)
    except (KeyError, ValueError):
        kind = type(there).__name__
        raise SystemExit(f"--set: {field} wants {kind}, not {value!r}") from None


def train(name: str) -> Iterator[dict]:
    """A training by `main.py`'s own mode, and its weights in pieces."""
    from pixeldefend.experiment import modes

    training, config = configured(name)
    if not (DATA_DIR.value or SMOKE.value):
        raise SystemExit("this stage wants --data_dir, see main.py's")
    # What ends it is its own deadline; a little late is better than without weights.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as folder:
        seconds = max(left() - _PACKING, 1.0)
        hours = config[training.kind].train.hours = seconds / 3600
        sys.argv[1:] = _as_command(training, hours)
        try:
            modes.start("train", config, folder)
        except modes.UserError as error:
            raise SystemExit(str(error)) from error
        files = pieces.pack(pathlib.Path(folder), pathlib.Path(TO.value) / name)
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
    yield {"training": name, **json.loads(lines[-1]), "files": files}
