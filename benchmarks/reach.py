"""How long would training at the paper's scale take on this machine?

Runs a few steps of the paper's larger trainings, on bundled images, each in a process
of its own, and divides what the paper's training sees by the images/s found. A file of
rows gets the new ones in place of the old ones. The largest network is timed on fewer
images a step than the paper has, so that the optimizer's part weighs more: its hours
are an upper bound.

  python -m benchmarks.reach --to=results/reach.jsonl
"""

import json
import pathlib
import statistics
import tempfile

from absl import app, flags, logging

from benchmarks import common
from pixeldefend.experiment.rows import read_rows, write_rows

# Images of all steps of the paper's trainings.
IMAGES = {"pixelcnn": 400_000 * 48, "classifier": 80_000 * 128}


def _density_model(dataset: str, batch: int) -> common.Training:
    return common.Training(dataset, "pixelcnn", {"train.batch": batch})


def _classifier(**fields: str) -> common.Training:
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return common.Training("cifar10", "classifier", {"train.batch": 128} | named)


TRAININGS = {
    "CIFAR-10 PixelCNN++, 160 features, depth 5": _density_model("cifar10", 4),
    "Fashion-MNIST PixelCNN++, 40 features, depth 5": _density_model(
        "fashion_mnist", 48
    ),
    "CIFAR-10 ResNet-62": _classifier(),
    "CIFAR-10 VGG": _classifier(model__architecture="vgg"),
    "CIFAR-10 ResNet-62, adversarial FGSM": _classifier(training="adversarial_fgsm"),
    "CIFAR-10 ResNet-62, adversarial BIM": _classifier(training="adversarial_bim"),
}

_STEPS = flags.DEFINE_integer("steps", 4, "timed steps, after a first one", 1)
_ONLY = flags.DEFINE_string("only", "", "part of the names of what is to be timed")
_TO = flags.DEFINE_string("to", "", "file for the rows; empty: printed only")


def _rate(training: common.Training) -> dict:
    """Images/s, and what the card says of network and device.

    Raises:
      SystemExit: training failed.
    """
    kind, batch = training.kind, training.fields["train.batch"]
    fields = training.fields | {
        "train.on_sample": True,
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
        named["train.model"] = kind
        common.run_main(f"{training.dataset}.py:paper", "train", at, named)
        lines = read_rows(at / "metrics.jsonl")
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
    lines = read_rows(path) if path.exists() else []
    known = {old["training"]: old for old in lines}
    known[row["training"]] = row
    write_rows(path, [known[name] for name in TRAININGS if name in known])


def main(_: list[str]) -> None:
    """Times the trainings, and writes the rows."""
    logging.set_verbosity(logging.ERROR)
    chosen = {name: one for name, one in TRAININGS.items() if _ONLY.value in name}
    if not chosen:
        names = "; ".join(TRAININGS)
        raise SystemExit(f"--only={_ONLY.value} is part of none of these: {names}")
    for name, training in chosen.items():
        found = _rate(training)
        hours = IMAGES[training.kind] / found["images_per_second"] / 3600
        row = {"training": name, "images": IMAGES[training.kind], **found}
        row["hours"] = common.three_digits(hours)
        print(json.dumps(row), flush=True)
        if _TO.value:
            _keep(row)


if __name__ == "__main__":
    app.run(main)
