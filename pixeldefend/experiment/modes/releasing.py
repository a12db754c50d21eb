"""The mode `release`: a released model of a training run, of any kind."""

import json
from collections.abc import Callable

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
    """Makes a released model, `release.model`, of a training run: figures, card."""
    del workdir  # all that is written goes to release.to
    settings = config.release
    with user_errors():
        kind = inputs.kind(config, "release")
        weights = config[kind].weights
        card = zoo.load_card(zoo.find_released(weights))
        if card["kind"] != kind:
            raise ValueError(f"{weights} is no {kind}, but a {card['kind']}")
        folder = inputs.release_folder(config, weights, card)
        card["note"] = settings.note
        card["name"] = f"{folder.parent.name}/{folder.name}"
        found = _RELEASABLES[kind](config, card)
        shape = tuple(card["image_shape"])
        splits = {name: _read(config, name, shape) for name in found.splits}
    scores = {}
    card["figures"] = {}
    for split, given in splits.items():
        card["figures"][split], scores[split] = found.measure(split, given)
    del card["model"]
    card.pop("validation", None)  # of scores that are not taken along
    reference = scores.get("train")
    zoo.save_released(folder, found.model, found.params, card, reference=reference)
    print(json.dumps(card["figures"], indent=1))


def _read(config: inputs.Config, split: str, shape: tuple[int, int, int]) -> data.Input:
    """The images of a split."""
    source = "sample" if config.release.on_sample else split
    count = config.release.reference if split == "train" else 0
    return data.read_input(config.dataset, source, count, shape, config.data_dir)


# By kind of model, from its card; each checks what the user gave for it.
_RELEASABLES: dict[str, Callable[[inputs.Config, dict], Releasable]] = {
    "pixelcnn": density_model.releasable,
    "classifier": classifier.releasable,
    "puvae": autoencoders.releasable,
    "magnet": autoencoders.releasable,
}
