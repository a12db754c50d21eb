"""What several modes read: images, splits and the density model of a config."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from pixeldefend import checkpoint, classifiers, data, parallel, pixelcnn, train

Config = ml_collections.ConfigDict


def chosen(config: Config, mode: str, shape: Sequence[int]) -> data.Input:
    """What `purify` and `score` work on."""
    settings = config[mode]
    count = settings.count
    if count == -1:
        count = 128 if settings.input in ("sample", *data.SPLITS) else 0
    given = data.read_input(
        config.dataset, settings.input, count, tuple(shape), config.data_dir
    )
    if settings.input == "sample" and not config.data_dir:
        print(
            "using the bundled first 256 test images; for the whole set: "
            f"launch/prepare_data.sh DATA_DIR {config.dataset}, then "
            "--config.data_dir=DATA_DIR"
        )
    return given


def split(config: Config, name: str) -> dict[str, np.ndarray]:
    """A whole split as `images` and `labels`."""
    images, labels = data.load(config.dataset, name, config.data_dir)
    return {"images": images, "labels": labels}


def plan(config: Config, settings: Config, **fixed: Any) -> train.Plan:
    """The plan in a `train` section; `fixed` are fields that it does not leave open."""
    options = set(train.Plan.__dataclass_fields__) & set(settings)
    found = train.Plan(seed=config.seed, **{k: settings[k] for k in options}, **fixed)
    parallel.check_batch(found.batch, "train.batch")
    return found


def training_splits(
    config: Config, settings: Config, plan: train.Plan
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a `train` section trains on, and the images held out from it."""
    if settings.eval_images < 1:
        raise ValueError(f"eval_images must be at least 1: {settings.eval_images}")
    if settings.on_sample:
        images, labels = data.sample(config.dataset)
        training = held_out = {"images": images, "labels": labels}
    else:
        training, held_out = (split(config, name) for name in ("train", "validation"))
    data.Batches(len(training["images"]), plan.batch, plan.seed)
    first = {name: rows[: settings.eval_images] for name, rows in held_out.items()}
    return training, first


def density_model(config: Config) -> tuple[pixelcnn.PixelCNN, dict, dict]:
    """The PixelCNN++ of a config: description, parameters, card."""
    model, params, card = checkpoint.load_released(config.pixelcnn.weights)
    if not isinstance(model, pixelcnn.PixelCNN):
        raise ValueError(f"{config.pixelcnn.weights} is no PixelCNN++")
    if model.classes:
        raise ValueError("class-conditional weights can only be sampled from here")
    return model, params, card


def classifier(config: Config) -> tuple[classifiers.Classifier, dict, dict]:
    """The classifier of a config: description, variables, card."""
    model, variables, card = checkpoint.load_released(config.classifier.weights)
    if card["kind"] != "classifier":
        raise ValueError(f"{config.classifier.weights} is no classifier")
    return model, variables, card


def release_folder(config: Config, weights: str, card: dict) -> epath.Path:
    """Where a release goes, after the checks that all kinds of models share."""
    to = config.release.to
    if not to:
        raise ValueError("release.to is missing: the folder for the released model")
    if epath.Path(to).is_file():
        raise ValueError(f"release.to {to} is a file; name a folder")
    check_dataset(config, weights, card)
    parallel.check_batch(config.release.batch, "release.batch")
    return epath.Path(to)


def check_dataset(config: Config, weights: str, card: dict) -> None:
    """Raises ValueError where a model belongs to another data set than the config's."""
    if card["dataset"] != config.dataset:
        raise ValueError(
            f"{weights} was trained on {card['dataset']}; use the config of that data "
            f"set, not of {config.dataset}"
        )
