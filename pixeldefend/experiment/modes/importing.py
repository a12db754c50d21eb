"""The mode `import`: a released model of weights that others published."""

from typing import Any

import jax

from pixeldefend.density import pixelcnn, published_weights
from pixeldefend.experiment import data, foreign, foreign_weights
from pixeldefend.experiment.modes import density_model, inputs, releasing
from pixeldefend.experiment.workdir import Workdir, user_errors

# Bits/dim of CIFAR-10's test images by their own account, of 160 features and depth 5.
CLAIMED = {published_weights.TENSORFLOW: 2.92, published_weights.PYTORCH: 2.95}


def import_weights(config: inputs.Config, workdir: Workdir) -> None:
    """Turns published PixelCNN++ weights into a released model."""
    del workdir  # all that is written goes to release.to
    settings, batch = config.import_, config.release.batch
    with user_errors():
        if not settings.weights:
            raise ValueError("import_.weights is missing: name a file of weights")
        if settings.count < 0:
            raise ValueError(f"import_.count must not be negative: {settings.count}")
        card: dict[str, Any] = {"kind": "pixelcnn", "dataset": config.dataset}
        folder = inputs.release_folder(config, settings.weights, card)
        model, params, told = _read(settings.weights)
        card["image_shape"] = list(_image_shape(config, model))
        card["training"] = told
        found = density_model.measured(
            config,
            card,
            model,
            params,
            # A batch is as long as it is told, however few images there are.
            batch=min(settings.count or batch, batch),
            splits=dict.fromkeys(("train", "test", "sample"), settings.count),
        )
    figures = releasing.write(config, folder, card, found)["sample"]
    said = f"{figures['bits_per_dim']:.3f} bits/dim on {figures['n']} bundled images"
    if config.dataset == "cifar10":
        said += (
            f"; {told['code']} claims {CLAIMED[told['code']]} on all test images, with "
            "160 features and depth 5"
        )
    print(f"{said}\nmodel written to {folder}")


def _read(weights: str) -> tuple[pixelcnn.PixelCNN, dict, dict]:
    """The model, its parameters, and what the card tells of where they come from."""
    arrays = foreign_weights.read(weights)
    try:
        model, params = published_weights.import_pixelcnn(arrays)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    files = foreign_weights.files_of(weights)
    told = {
        "command": "not known: trained by others, and imported",
        "code": published_weights.code_of(arrays),
        "averaged": published_weights.averaged(arrays),
        "files": {file.name: foreign.sha256(file) for file in files},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    return model, params, told


def _image_shape(
    config: inputs.Config, model: pixelcnn.PixelCNN
) -> tuple[int, int, int]:
    """Of the data set's images; ValueError where the model is not one of them."""
    shape = data.HEIGHT_WIDTH_CHANNELS[config.dataset]
    weights = config.import_.weights
    if model.channels != shape[2]:
        raise ValueError(
            f"{weights} takes images with {model.channels} channels, but those of "
            f"{config.dataset} have {shape[2]}: use the config of its data set"
        )
    if model.classes:
        raise ValueError(
            f"{weights} is class-conditional and gives no p-values; "
            "pixeldefend.import_pixelcnn reads it from Python"
        )
    return shape
