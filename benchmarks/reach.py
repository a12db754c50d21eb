"""How long would training at the paper's scale take on this machine?

Runs a few steps of each training of the paper, on bundled images, in a process of its
own, and divides what the paper's training sees by the images/s found. Writes one line
of JSON for each.

  python -m benchmarks.reach --to=results/reach.jsonl
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from absl import app, flags, logging

from pixeldefend import files

ROOT = pathlib.Path(__file__).parent.parent
# What is trained; its configuration, mode and fields; the images of a timed step.
_TRAININGS: tuple[tuple[str, str, str, dict[str, Any], int], ...] = (
    ("CIFAR-10 PixelCNN++, 160 features, depth 5", "cifar10", "pixelcnn", {}, 4),
    (
        "Fashion-MNIST PixelCNN++, 40 features, depth 5",
        "fashion_mnist",
        "pixelcnn",
        {},
        16,
    ),
    ("CIFAR-10 ResNet-62", "cifar10", "classifier", {}, 64),
    ("CIFAR-10 VGG", "cifar10", "classifier", {"model.architecture": "vgg"}, 64),
    (
        "CIFAR-10 ResNet-62, adversarial FGSM",
        "cifar10",
        "classifier",
        {"training": "adversarial_fgsm"},
        64,
    ),
    (
        "CIFAR-10 ResNet-62, adversarial BIM",
        "cifar10",
        "classifier",
        {"training": "adversarial_bim"},
        64,
    ),
)
# Images that the paper's training sees: steps times the images of a step.
_IMAGES = {"pixelcnn": 400_000 * 48, "classifier": 80_000 * 128}

_STEPS = flags.DEFINE_integer("steps", 4, "timed steps, after a first one", 1)
_ONLY = flags.DEFINE_string("only", "", "part of the names of what is to be timed")
_TO = flags.DEFINE_string("to", "", "file for the rows; empty: printed only")


def _rate(dataset: str, kind: str, fields: dict[str, Any], batch: int) -> dict:
    """Images/s of training, and what the log says of its device.

    Raises:
      SystemExit: training failed.
    """
    fields = fields | {
        "train.on_sample": True,
        "train.batch": batch,
        "train.steps": 1 + _STEPS.value,
        "train.log_every": 1,
        "train.eval_images": 16,
    }
    if kind == "pixelcnn":
        fields["train.init_images"] = batch
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", f"--config=configs/{dataset}.py:paper"]
        command += [f"--mode=train_{kind}", f"--workdir={folder}"]
        command += [f"--config.{kind}.{name}={to}" for name, to in fields.items()]
        done = subprocess.run(command, cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
        at = pathlib.Path(folder)
        lines = (at / "metrics.jsonl").read_text().splitlines()
        card = json.loads((at / "model/card.json").read_text())
    seconds = [json.loads(line)["seconds"] for line in lines]
    # The first step is compiled; the last is followed by the validation.
    taken = [
        after - before for before, after in zip(seconds, seconds[1:], strict=False)
    ]
    return {
        "images_per_second": float(f"{batch / statistics.median(taken):.3g}"),
        "batch": batch,
        "parameters": card["training"]["parameters"],
        "device": card["training"]["device"],
    }


def main(_: list[str]) -> None:
    """Times the trainings, and writes the rows."""
    logging.set_verbosity(logging.ERROR)
    rows = []
    for name, dataset, kind, fields, batch in _TRAININGS:
        if _ONLY.value not in name:
            continue
        found = _rate(dataset, kind, fields, batch)
        hours = _IMAGES[kind] / found["images_per_second"] / 3600
        row = {"training": name, "images": _IMAGES[kind], **found}
        rows.append(row | {"hours": float(f"{hours:.3g}")})
        print(json.dumps(rows[-1]), flush=True)
    if _TO.value:
        with files.whole_file(_TO.value) as temporary:
            temporary.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    app.run(main)
