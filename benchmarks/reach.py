"""How long would training at the paper's scale take on this machine?

Runs a few steps of the paper's larger trainings, on bundled images, each in a process
of its own, and divides what the paper's training sees by the images/s found. A file of
rows gets the new ones in place of the old ones. The largest network is timed on fewer
images a step than the paper has, so that the optimizer's part weighs more: its hours
are an upper bound.

  python -m benchmarks.reach --to=results/reach.jsonl
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
from typing import Any

from absl import app, flags, logging

from benchmarks import common
from pixeldefend import evaluate


@dataclasses.dataclass(frozen=True)
class Training:
    """One of the paper's trainings.

    Attributes:
      dataset: of its configuration, with the variant "paper".
      kind: "pixelcnn" or "classifier".
      fields: of that section of the configuration, and their values.
      batch: images of a timed step.
    """

    dataset: str
    kind: str
    fields: dict[str, Any]
    batch: int

    @property
    def images(self) -> int:
        """Those of all its steps."""
        return {"pixelcnn": 400_000 * 48, "classifier": 80_000 * 128}[self.kind]


def _classifier(**fields: str) -> Training:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return Training("cifar10", "classifier", named, 128)


TRAININGS = {
    "CIFAR-10 PixelCNN++, 160 features, depth 5": Training(
        "cifar10", "pixelcnn", {}, 4
    ),
    "Fashion-MNIST PixelCNN++, 40 features, depth 5": Training(
        "fashion_mnist", "pixelcnn", {}, 48
    ),
    "CIFAR-10 ResNet-62": _classifier(),
    "CIFAR-10 VGG": _classifier(model__architecture="vgg"),
    "CIFAR-10 ResNet-62, adversarial FGSM": _classifier(training="adversarial_fgsm"),
    "CIFAR-10 ResNet-62, adversarial BIM": _classifier(training="adversarial_bim"),
}

_STEPS = flags.DEFINE_integer("steps", 4, "timed steps, after a first one", 1)
_ONLY = flags.DEFINE_string("only", "", "part of the names of what is to be timed")
_TO = flags.DEFINE_string("to", "", "file for the rows; empty: printed only")


def _rate(training: Training) -> dict:
    """Images/s, and what the card says of network and device.

    Raises:
      SystemExit: training failed.
    """
    kind, batch = training.kind, training.batch
    fields = training.fields | {
        "train.on_sample": True,
        "train.batch": batch,
        "train.steps": 1 + _STEPS.value,
        "train.log_every": 1,
        "train.eval_images": 16,
        "train.checkpoint_minutes": 1e6,  # none among the timed steps
    }
    if kind == "pixelcnn":
        fields["train.init_images"] = batch
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder)
        named = {f"{kind}.{name}": value for name, value in fields.items()}
        common.run_main(f"{training.dataset}.py:paper", f"train_{kind}", at, named)
        lines = evaluate.read_rows(at / "metrics.jsonl")
        card = json.loads((at / "model/card.json").read_text())
    seconds = [line["seconds"] for line in lines]
    # The first step is compiled; the last is followed by the validation.
    taken = [
        after - before for before, after in zip(seconds, seconds[1:], strict=False)
    ]
    return {
        "images_per_second": common.three_digits(batch / statistics.median(taken)),
        "batch": batch,
        "parameters": card["training"]["parameters"],
        "device": card["training"]["device"],
    }


def _keep(row: dict) -> None:
    """Puts a row into the file of `--to`, in place of an older one."""
    path = pathlib.Path(_TO.value)
    lines = evaluate.read_rows(path) if path.exists() else []
    known = {old["training"]: old for old in lines}
    known[row["training"]] = row
    evaluate.write_rows(path, [known[name] for name in TRAININGS if name in known])


def main(_: list[str]) -> None:
    """Times the trainings, and writes the rows."""
    logging.set_verbosity(logging.ERROR)
    chosen = {name: one for name, one in TRAININGS.items() if _ONLY.value in name}
    if not chosen:
        names = "; ".join(TRAININGS)
        raise SystemExit(f"--only={_ONLY.value} is part of none of these: {names}")
    for name, training in chosen.items():
        found = _rate(training)
        hours = training.images / found["images_per_second"] / 3600
        row = {"training": name, "images": training.images, **found}
        row["hours"] = common.three_digits(hours)
        print(json.dumps(row), flush=True)
        if _TO.value:
            _keep(row)


if __name__ == "__main__":
    app.run(main)
