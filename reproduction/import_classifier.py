"""Makes a model folder of what `reproduction.torch_classifier` trained.

    python -m reproduction.import_classifier --run=RUN --to=FOLDER --dataset=cifar10

FOLDER is then like the workdir of `--mode=train --config.train.model=classifier`:
`--mode=classify` and `--mode=release --config.release.model=classifier` take it as
`--config.classifier.weights`. Refused unless the network here gives the logits that
torch gave, in float64.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np
from absl import logging

from pixeldefend.experiment import checkpoints, data, foreign, zoo
from pixeldefend.models import classifiers

# Two orders of summation in float64, through thirty-two layers.
_CLOSE = 1e-9


def largest_difference(
    model: classifiers.Classifier, variables: dict, images: np.ndarray, logits: list
) -> float:
    """Of our logits in float64 from given ones `[B, K]`, relative to the largest."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        found = jax.jit(classifiers.logits, static_argnums=0)(
            model, wide, images.astype(np.float64)
        )
        return float(np.abs(found - np.asarray(logits)).max() / np.abs(logits).max())


def read(path: pathlib.Path, shape: tuple[int, int, int]) -> tuple:
    """The description, the variables, the images and logits shown, and the training.

    Raises:
      ValueError: the arrays are not those of this network; the message names one.
    """
    foreign.check_regular(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    model = classifiers.make(**foreign.parse_json(str(arrays.pop("model"))))
    training = foreign.parse_json(str(arrays.pop("training")))
    shown = arrays.pop("shown_images"), arrays.pop("shown_logits")
    like = zoo.abstract_params("classifier", model, shape)
    names = checkpoints.flat(like)
    for name in sorted(set(names) ^ set(arrays)):
        raise ValueError(f"{path}: {name} is only in one of file and network")
    for name, wanted in names.items():
        if arrays[name].shape != wanted.shape:
            raise ValueError(
                f"{path}: {name} is {arrays[name].shape}, not {wanted.shape}"
            )
    ordered = iter(arrays[name].astype(np.float32) for name in names)
    variables = jax.tree.map(lambda _: next(ordered), like)
    return model, variables, shown, training


def main() -> None:
    """Reads, compares, writes."""
    logging.set_verbosity(logging.ERROR)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="folder of the run")
    parser.add_argument("--to", required=True, help="folder for the model")
    parser.add_argument(
        "--dataset",
        default="cifar10",
        choices=[*data.HEIGHT_WIDTH_CHANNELS],
        help="that it was trained on",
    )
    parser.add_argument("--start", default="", help="the imported run it began from")
    args = parser.parse_args()
    path = pathlib.Path(args.run) / "classifier.npz"
    try:
        shape = data.HEIGHT_WIDTH_CHANNELS[args.dataset]
        model, variables, (images, logits), training = read(path, shape)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"cannot read the run: {error}")
    apart = largest_difference(model, variables, images, logits)
    if not apart < _CLOSE:
        sys.exit(f"{path}: logits here and there differ by {apart:.1e} of the largest")
    if bool(training["config"]["start"]) != bool(args.start):
        parser.error("--start: the imported run that this one began from, if it did")
    if args.start:
        first = zoo.load_card(zoo.find_released(args.start))["training"]
        training["before"] = [*first.pop("before", []), first]
    training["logits"] = {
        "of": "test images 0 to 7, in float64",
        "values": np.round(logits, 9).tolist(),
    }
    card = {
        "kind": "classifier",
        "dataset": args.dataset,
        "image_shape": list(shape),
        "training": training,
    }
    to = pathlib.Path(args.to) / "model"
    zoo.save_released(to, model, variables, card)
    print(f"logits differ by {apart:.1e} of the largest; model written to {to}")


if __name__ == "__main__":
    main()
