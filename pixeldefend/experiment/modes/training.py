"""The mode `train`: a model of any kind, from its section of the config."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from pixeldefend.experiment import checkpoints, metrics, parallel, report, schedule, zoo
from pixeldefend.experiment.kinds import Trainable
from pixeldefend.experiment.modes import (
    autoencoders,
    classifier,
    density_model,
    inputs,
)
from pixeldefend.experiment.train import TrainState, fit, make_step, start
from pixeldefend.experiment.workdir import (
    UserError,
    Workdir,
    command_line,
    user_errors,
)


def train(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a model (`train.model`), or resumes its training."""
    begun = time.monotonic()
    with user_errors():
        kind = inputs.kind(config, "train")
        settings = config[kind].train
        plan = inputs.plan(config, settings)
        trainable = _TRAINABLES[kind](config, plan)
        training, held_out = inputs.training_splits(config, settings, plan)
        _check_labels(training, trainable.model)
        shape = training["images"].shape[1:]
        abstract = zoo.abstract_params(kind, trainable.model, shape)
        variables = None
        if settings.start:
            weights = zoo.find_released(settings.start) / "weights"
            variables = checkpoints.load_weights(weights, abstract)
        events = workdir.folder / "events"
        board = metrics.Events(events) if config.train.tensorboard else None
    folder = workdir.open()
    if variables is None:
        variables = trainable.init(training)
    with contextlib.closing(board) if board else contextlib.nullcontext():
        last, line = _fit(
            trainable, variables, training, held_out, plan, folder, begun, board
        )
    card = {
        "kind": kind,
        "dataset": inputs.dataset(config),
        "image_shape": list(shape),
        "training": _told_on_card(settings, last.params, line, trainable.told),
    }
    zoo.save_released(folder / "model", trainable.model, last.average, card)
    print(f"model written to {folder / 'model'}")


# By kind of model; each checks what the user gave for it.
_TRAINABLES: dict[str, Callable[[inputs.Config, schedule.Plan], Trainable]] = {
    "pixelcnn": density_model.trainable,
    "classifier": classifier.trainable,
    "puvae": autoencoders.trainable_puvae,
    "magnet": autoencoders.trainable_magnet,
}


def _check_labels(training: dict[str, np.ndarray], model: Any) -> None:
    """Raises ValueError for labels beyond the classes of a model that has any."""
    classes = getattr(model, "classes", 0)
    if classes and "labels" not in training:
        raise ValueError(f"classes is {classes}, but the images have no labels")
    if classes and training["labels"].max() >= classes:
        raise ValueError(
            f"classes is {classes}, but there are labels up to "
            f"{training['labels'].max()}"
        )


def _fit(
    trainable: Trainable,
    variables: Any,
    training: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
    plan: schedule.Plan,
    folder: epath.Path,
    begun: float,
    board: metrics.Events | None,
) -> tuple[TrainState, dict]:
    """The last state and line of metrics of a training, with its progress shown.

    Raises:
      UserError: the loss is not finite, a checkpoint cannot be read, or the time box
        was too short.
    """
    first = start(*trainable.split(variables), trainable.optimizer, trainable.averaged)
    step = make_step(
        trainable.loss_fn, trainable.optimizer, plan.polyak, trainable.averaged
    )
    evaluate = trainable.evaluation(held_out, plan.batch)
    how_long = f"{plan.hours:g} h" if plan.hours else f"{plan.steps} steps"
    print(
        f"training for {how_long}: {len(training['images'])} images in batches of "
        f"{plan.batch}, {len(held_out['images'])} for validation; a line every "
        f"{plan.log_every} steps, the first after compiling",
        flush=True,
    )
    progress = report.Progress("training")

    def show(line: dict) -> None:
        said = f"{trainable.in_words(line)}, {line['images_per_second']:.1f} images/s"
        progress.update(line["progress"], said)
        if board:
            board.add(line)

    try:
        last, line = fit(
            first, step, training, plan, folder, evaluate, show, begun=begun
        )
    except (
        metrics.NonFiniteLossError,
        schedule.UnfinishedWarmupError,
        checkpoints.UnreadableError,
    ) as error:
        raise UserError(str(error)) from error
    progress.close()
    if line["progress"] < 1:
        print(
            "resuming used up the hours that were left: the learning rate had gone "
            f"only {line['progress']:.0%} of its way to zero"
        )
    return last, line


def _told_on_card(
    settings: inputs.Config, params: Any, line: dict, more: Mapping[str, Any]
) -> dict[str, Any]:
    """What a card tells of a training run.

    Args:
      settings: the `train` section.
      params: those that were trained, to be counted.
      line: the last metrics.
      more: besides.
    """
    before = {}
    if settings.start:  # the runs that its weights come from, the first one first
        card = zoo.load_card(zoo.find_released(settings.start))
        first = card.get("training", {})
        before = {"before": [*first.pop("before", []), first]}
    return {
        "command": command_line(),
        "config": json.loads(settings.to_json_best_effort()),
        "device": parallel.devices(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **line,
        **more,  # which a metric of the same name must not hide
        **before,
    }
