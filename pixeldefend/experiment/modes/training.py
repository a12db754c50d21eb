"""What training a model of any kind ends with."""

import json
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from pixeldefend.experiment import metrics, parallel, report, schedule, train, zoo
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.workdir import UserError, command_line


def fitted(
    first: train.TrainState,
    step: Callable[..., tuple[train.TrainState, dict]],
    training: dict,
    plan: schedule.Plan,
    folder: epath.Path,
    scores: Callable[[train.TrainState], dict],
    told: Callable[[dict], str],
    begun: float,
) -> tuple[train.TrainState, dict]:
    """`train.fit` with its progress shown; `told` puts a line of metrics in words.

    Raises:
      UserError: the loss is not finite, a checkpoint cannot be read, or the time box
        was too short.
    """
    progress = report.Progress("training")

    def show(line: dict) -> None:
        rate = line["images_per_second"]
        progress.update(line["progress"], f"{told(line)}, {rate:.1f} images/s")

    try:
        found = train.fit(
            first, step, training, plan, folder, scores, show, begun=begun
        )
    except (
        metrics.NonFiniteLossError,
        schedule.UnfinishedWarmupError,
        zoo.UnreadableError,
    ) as error:
        raise UserError(str(error)) from error
    progress.close()
    if found[1]["progress"] < 1:
        print(
            "starting again took what was left of the hours: the learning rate had "
            f"gone {found[1]['progress']:.0%} of its way to zero"
        )
    return found


def save(
    folder: epath.Path,
    model: Any,
    variables: Any,
    *,
    kind: str,
    dataset: str,
    shape: tuple[int, int, int],
    training: dict,
) -> None:
    """Writes the trained model to `folder / "model"`, with a card.

    Args:
      folder: of the run.
      model: the description.
      variables: what is saved.
      kind: of the model.
      dataset: that it was trained on.
      shape: of an image.
      training: see `told_on_card`.
    """
    card = {
        "kind": kind,
        "dataset": dataset,
        "image_shape": list(shape),
        "training": training,
    }
    zoo.save_released(folder / "model", model, variables, card)
    print(f"model written to {folder / 'model'}")


def told_on_card(
    settings: inputs.Config, params: Any, line: dict, **more: Any
) -> dict[str, Any]:
    """What a card tells of a training run.

    Args:
      settings: the `train` section.
      params: those that were trained, to be counted.
      line: the last metrics.
      **more: besides.
    """
    before = {}
    if settings.start:  # the runs that its weights come from, the first one first
        first = zoo.load_card(zoo.find_released(settings.start))
        earlier = first["training"].pop("before", [])
        before = {"before": [*earlier, first["training"]]}
    return {
        "command": command_line(),
        "config": json.loads(settings.to_json_best_effort()),
        "device": parallel.devices(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **line,
        **more,  # which a metric of the same name must not hide
        **before,
    }
