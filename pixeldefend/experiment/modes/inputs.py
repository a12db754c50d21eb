"""What several modes read of a config: images, splits, models and attacks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import (
    data,
    files,
    own_classifier,
    parallel,
    schedule,
    tensors,
    zoo,
)
from pixeldefend.experiment.store import Store, Unfinished, fingerprint
from pixeldefend.experiment.tools import SECTIONS
from pixeldefend.models import classifiers

if TYPE_CHECKING:
    from ml_collections import ConfigDict as Config
else:
    Config = Any  # whoever makes one has the package; the modes do without


def chosen(config: Config, mode: str, shape: Sequence[int]) -> data.Input:
    """The images that a mode works on."""
    settings = config[mode]
    count = settings.count
    if count == -1:
        count = 128 if settings.input in ("sample", *data.SPLITS) else 0
    given = read(config, settings.input, count, shape)
    files.check_name(f"{given.source}.npz")
    return given


def read(config: Config, source: str, count: int, shape: Sequence[int]) -> data.Input:
    """The first images of a source; see `data.read_input`."""
    height, width, channels = shape
    return data.read_input(
        config.dataset,
        source,
        count,
        (height, width, channels),
        config.data_dir,
        **config.own,
    )


def dataset(config: Config) -> str:
    """The name of the data set, for cards and rows."""
    return data.name_of(config.dataset, config.data_dir)


def is_own(config: Config) -> bool:
    """Whether the data set is the user's own."""
    return data.find(config.dataset, config.data_dir) is not None


def program(config: Config, kind: str, card: dict) -> str:
    """The beginning of a command with the same data set, of a model that is released.

    Args:
      config: of the release.
      kind: section of the model.
      card: its.
    """
    name, options = card["name"], ""
    data_set = f"{config.dataset}.py"
    if is_own(config):
        data_set, name = f"custom.py:{config.dataset}", config.release.to
        options = "".join(f" --config.own.{k}={v}" for k, v in config.own.items())
    return (
        f"python main.py --config=configs/{data_set}{options}"
        f" --config.{kind}.weights={name}"
    )


def source(
    config: Config, given: str, field: str = "input", split: str = "test"
) -> str:
    """Of images: "auto" is a split, or without data_dir the bundled sample.

    Raises:
      ValueError: there is none; the message names the field.
    """
    if not given:
        raise ValueError(
            f"{field} is empty: give auto, sample, a split, a file or a folder"
        )
    if given != "auto":
        return given
    return split if config.data_dir or is_own(config) else "sample"


def tell_source(config: Config, given: data.Input) -> None:
    """Says where the images come from, where a user may have meant more of them."""
    if given.source == "sample" and not given.own and not config.data_dir:
        print(
            "using the bundled first 256 test images; for the whole set: "
            f"launch/prepare_data.sh DATA_DIR {config.dataset}, then "
            "--config.data_dir=DATA_DIR"
        )


def data_dir(config: Config, given: data.Input) -> str:
    """What a command needs besides to read the same images again."""
    known = given.source != "sample" and not is_own(config)
    return " --config.data_dir=DATA_DIR" if known else ""


def split(config: Config, name: str) -> dict[str, np.ndarray]:
    """A whole split as `images` and, where there are any, `labels`."""
    images, labels = data.load(config.dataset, name, config.data_dir, **config.own)
    return {"images": images} | ({} if labels is None else {"labels": labels})


def facts(config: Config) -> data.Facts:
    """Shape of the data set's images, and number of classes."""
    return data.facts(config.dataset, config.data_dir, **config.own)


def kind(config: Config, mode: str) -> str:
    """The kind of model that a mode is asked for, which is its section's name too."""
    found = config[mode].model
    if found not in zoo.KINDS:
        raise ValueError(
            f"{mode}.model must be one of {', '.join(zoo.KINDS)}: {found!r}"
        )
    return found


def plan(config: Config, settings: Config) -> schedule.Plan:
    """The plan in a `train` section."""
    options = set(schedule.Plan.__dataclass_fields__) & set(settings)
    given = {name: settings[name] for name in options}
    if given["steps_per_call"] < 0:
        raise ValueError(
            f"steps_per_call must not be negative: {given['steps_per_call']}"
        )
    given["steps_per_call"] = parallel.steps_per_call(given["steps_per_call"])
    found = schedule.Plan(seed=config.seed, **given)
    parallel.per_device(found.batch, "train.batch")
    return found


def training_splits(
    config: Config, settings: Config, plan: schedule.Plan
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What a `train` section trains on, and the images held out from it."""
    if settings.eval_images < 1:
        raise ValueError(f"eval_images must be at least 1: {settings.eval_images}")
    if settings.on_sample:
        images, labels = data.sample(config.dataset)
        training = held_out = {"images": images, "labels": labels}
    else:
        training, held_out = (split(config, name) for name in ("train", "validation"))
        if is_own(config):  # what cannot be read is told before hours of training
            split(config, "test")
    schedule.Batches(len(training["images"]), plan.batch, plan.seed)
    first = {name: rows[: settings.eval_images] for name, rows in held_out.items()}
    return training, first


def density_model(config: Config) -> zoo.Loaded:
    """The PixelCNN++ of a config."""
    found = zoo.load_released(config.pixelcnn.weights)
    if not isinstance(found.model, pixelcnn.PixelCNN):
        raise ValueError(f"{config.pixelcnn.weights} is not a PixelCNN++")
    if found.model.classes:
        raise ValueError(
            "class-conditional weights can only be used with --mode=sample"
        )
    return found


def autoencoder(config: Config, kind: str) -> zoo.Loaded:
    """The PuVAE or the MagNet of a config.

    Args:
      config: whose section `kind` names the weights.
      kind: "puvae" or "magnet".

    Raises:
      ValueError: weights of another model, or of another data set.
    """
    weights = config[kind].weights
    found = zoo.load_released(weights)
    if found.card["kind"] != kind:
        raise ValueError(f"{weights} is a {found.card['kind']}, not a {kind}")
    check_dataset(config, weights, found.card)
    return found


def defence_model(config: Config, kind: str) -> zoo.Loaded:
    """A model of a kind that defences take, such as "density_model"."""
    if kind not in SECTIONS:
        raise ValueError(
            f"a defence takes a model of kind {kind!r}: one of {', '.join(SECTIONS)}"
        )
    if kind != "density_model":
        return autoencoder(config, kind)
    model = density_model(config)
    check_dataset(config, config.pixelcnn.weights, model.card)
    return model


def classifier(config: Config) -> zoo.Loaded:
    """The classifier of a config."""
    return classifier_named(config, config.classifier.weights)


def classifier_named(config: Config, weights: str) -> zoo.Loaded:
    """A classifier by its weights, or by `module:object`.

    Raises:
      ValueError: weights of another model, or an object that is no classifier.
    """
    if own_classifier.is_named(weights):
        return own_classifier.load(weights, dataset(config), facts(config).shape)
    found = zoo.load_released(weights)
    if found.card["kind"] != "classifier":
        raise ValueError(f"{weights} is a {found.card['kind']}, not a classifier")
    return found


def reference(config: Config) -> np.ndarray | None:
    """Log-probabilities of training images, sorted, nats; says so where none are kept.

    Raises:
      ValueError, FileNotFoundError: as for `zoo.load_reference`.
    """
    found = zoo.load_reference(config.pixelcnn.weights)
    if found is None:
        print(
            f"no p-values: {config.pixelcnn.weights} has no scores of training images "
            "(--mode=release makes a released model of it, which has)"
        )
    return found


def score_map(model: pixelcnn.PixelCNN, batch: int) -> parallel.BatchMap:
    """`mapped(params, images)`: log-probabilities `[N]` of images, nats."""
    return parallel.BatchMap(
        lambda params, images: likelihood.log_prob(model, params, images), batch
    )


def prediction_map(model: classifiers.Classifier, batch: int) -> parallel.BatchMap:
    """`mapped(variables, images)`: predicted classes `[N]` of images."""
    logits_fn = classifiers.logits_fn(model)
    return parallel.BatchMap(
        lambda variables, images: attacks.predicted(logits_fn, variables, images), batch
    )


def check_labels(given: data.Input, weights: str, classes: int) -> None:
    """Raises ValueError where images have labels that a classifier does not know."""
    if given.labels is not None and given.labels.max() >= classes:
        raise ValueError(
            f"{weights} has {classes} classes, but there are labels up to "
            f"{given.labels.max()}"
        )


def labels_or_unknown(given: data.Input) -> np.ndarray:
    """Labels `[N]` int32; -1 for all where there are none."""
    if given.labels is None:
        return np.full(len(given.images), -1, np.int32)
    return given.labels.astype(np.int32)


def attack(name: str, preset: str, eps: float, field: str) -> Callable:
    """An attack by name, after the checks of what a user gave for it.

    Args:
      name: of `attacks.ATTACKS`.
      preset: of its.
      eps: levels.
      field: that has it.

    Raises:
      ValueError: unknown attack or preset; a negative eps, or one between 0 and 1.
    """
    attacks.check_eps(eps, field, whole=True)
    return attacks.named(name, preset)


def threshold(given: float, weights: str, card: dict) -> float:
    """The threshold of adaptive purification, bits/dim.

    Args:
      given: by the user; -1 for the one that was chosen for the density model.
      weights: of the density model.
      card: its.

    Raises:
      ValueError: neither -1 nor a finite number from 0, or -1 without one on the card.
    """
    if given == -1:
        if "threshold" in card.get("adaptive", {}):
            return float(card["adaptive"]["threshold"])
        raise ValueError(
            f"the card of {weights} has no threshold: choose one with "
            "--mode=calibrate, or give a threshold in bits/dim"
        )
    if not 0 <= given < float("inf"):
        raise ValueError(
            f"threshold must be finite, in bits/dim from 0, or -1 for the card's: "
            f"{given}"
        )
    return float(given)


def check_save_seconds(seconds: float) -> None:
    """Raises ValueError for a pause between writings that is negative or no number."""
    if not seconds >= 0:
        raise ValueError(f"save_seconds must not be negative: {seconds}")


def unfinished(
    store: Store, words: Any, given: data.Input, variables: Any, pause: float
) -> Unfinished:
    """What a killed run of the same work on the same images left; else, none.

    Args:
      store: of the run.
      words: what the work depends on besides, see `fingerprint`.
      given: the images.
      variables: a pytree, all that the work is done with.
      pause: seconds between two writings.
    """
    arrays = (variables, given.images, labels_or_unknown(given))
    of = fingerprint((words, tuple(given.names)), arrays)
    return store.unfinished(of, pause=pause)


def release_folder(config: Config, weights: str, card: dict) -> epath.Path:
    """Where a release goes, after the checks that all kinds of models share."""
    to = config.release.to
    if not to:
        raise ValueError("release.to is missing: name a folder for the released model")
    folder = files.output_folder(to, "release.to")
    if (folder / tensors.NAME).exists():  # beside which ours would not be told apart
        raise ValueError(f"release.to {to} holds {tensors.NAME}: name another folder")
    there = zoo.load_card(folder) if (folder / "card.json").exists() else card
    if there["kind"] != card["kind"]:
        raise ValueError(
            f"release.to {to} holds a {there['kind']}, {weights} is a {card['kind']}: "
            "name another folder"
        )
    check_dataset(config, weights, card)
    parallel.check_batch(config.release.batch, "release.batch")
    return folder


def check_dataset(config: Config, weights: str, card: dict) -> None:
    """Raises ValueError where a model belongs to another data set than the config's."""
    if card["dataset"] != dataset(config):
        raise ValueError(
            f"{weights} was trained on {card['dataset']}: use the config of that data "
            f"set, not that of {config.dataset}"
        )
