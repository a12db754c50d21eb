"""The mode `release`: a released model of a training run, of any kind."""

import json
from collections.abc import Callable

from etils import epath

from pixeldefend.experiment import data, zoo
from pixeldefend.experiment.kinds import Releasable
from pixeldefend.experiment.modes import (
    autoencoders,
    classifier,
    density_model,
    inputs,
)
from pixeldefend.experiment.workdir import Workdir, user_errors


def release(config: inputs.Config, workdir: Workdir) -> None:
    """Turns a training run into a released model, with measurements on its card."""
    del workdir  # all that is written goes to release.to
    with user_errors():
        kind = inputs.kind(config, "release")
        weights = config[kind].weights
        card = zoo.load_card(zoo.find_released(weights))
        if card["kind"] != kind:
            raise ValueError(f"{weights} is a {card['kind']}, not a {kind}")
        folder = inputs.release_folder(config, weights, card)
        found = _RELEASABLES[kind](config, card)
    del card["model"]
    card.pop("validation", None)  # of scores that are not taken along
    write(config, folder, card, found)


def write(
    config: inputs.Config, folder: epath.Path, card: dict, found: Releasable
) -> dict:
    """Measures a model and writes it with its card, as a released one.

    Args:
      config: its section `release` says which images, and has a note for the card.
      folder: from `inputs.release_folder`.
      card: what it tells besides.
      found: the model.

    Returns:
      The figures, by split.
    """
    settings = config.release
    card["note"] = settings.note
    card["name"] = f"{folder.parent.name}/{folder.name}"

    def read(split: str, count: int) -> data.Input:
        source = "sample" if settings.on_sample else split
        return inputs.read(config, source, count, card["image_shape"])

    with user_errors():
        splits = {
            split: read(split, count)
            for split, count in found.splits.items()
            if split != "sample" or not inputs.is_own(config)
        }
    scores = {}
    card["figures"] = {}
    for split, given in splits.items():
        card["figures"][split], scores[split] = found.measure(split, given)
    reference = scores.get("train")
    zoo.save_released(folder, found.model, found.params, card, reference=reference)
    print(json.dumps(card["figures"], indent=1))
    return card["figures"]


# By kind of model, from its card; each checks what the user gave for it.
_RELEASABLES: dict[str, Callable[[inputs.Config, dict], Releasable]] = {
    "pixelcnn": density_model.releasable,
    "classifier": classifier.releasable,
    "puvae": autoencoders.releasable,
    "magnet": autoencoders.releasable,
}
