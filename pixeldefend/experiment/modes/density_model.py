"""The density model: training and releasing it, sampling, scoring."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pixeldefend import detection, keys
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import (
    data,
    density_training,
    files,
    parallel,
    pictures,
    report,
    schedule,
    summaries,
    zoo,
)
from pixeldefend.experiment.kinds import Releasable, Trainable
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.train import adam
from pixeldefend.experiment.workdir import Workdir, user_errors


def trainable(config: inputs.Config, plan: schedule.Plan) -> Trainable:
    """A PixelCNN++ to be trained, for as many channels as the images have."""
    settings = config.pixelcnn.train
    given = config.pixelcnn.model.to_dict()
    given["channels"] = given["channels"] or inputs.facts(config).shape[2]
    model = pixelcnn.PixelCNN(**given)
    if settings.init_images < 1:
        raise ValueError(f"init_images must be at least 1: {settings.init_images}")
    return Trainable(
        model,
        density_training.loss_fn(model, flip=settings.flip, noise=settings.noise),
        adam(plan),
        init=functools.partial(
            density_training.initial_params,
            model,
            config.seed,
            count=settings.init_images,
        ),
        evaluation=functools.partial(density_training.evaluation, model),
        words=(
            "{loss:.3f} bits/dim",
            "{validation_bits_per_dim:.3f} on validation images",
        ),
    )


def releasable(config: inputs.Config, card: dict) -> Releasable:
    """A density model of a training run; see `measured`."""
    count = config.release.reference
    if count < 0:
        raise ValueError(f"release.reference must not be negative: {count}")
    model, params, _ = inputs.density_model(config)
    splits = {"train": count, "test": 0, "sample": 0}
    return measured(
        config, card, model, params, batch=config.release.batch, splits=splits
    )


def measured(
    config: inputs.Config,
    card: dict,
    model: pixelcnn.PixelCNN,
    params: Any,
    *,
    batch: int,
    splits: Mapping[str, int],
) -> Releasable:
    """Bits/dim of a density model; the scores of training images are its reference.

    Args:
      config: says whose images they are.
      card: of the model, with its name.
      model: the description.
      params: of the network.
      batch: images at a time, per device.
      splits: see `Releasable`.
    """
    mapped = inputs.score_map(model, batch)

    def measure(split: str, given: data.Input) -> tuple[dict, np.ndarray]:
        scores, _ = report.run_batches(mapped, f"scoring {split}", params, given.images)
        bits = likelihood.to_bits_per_dim(scores, given.images.shape[1:])
        count = splits[split]
        part = f" --config.score.count={count}" if count else ""
        figures = summaries.summary(bits) | {
            "command": (
                f"{inputs.program(config, 'pixelcnn', card)} --mode=score"
                f" --config.score.input={given.source}"
                f"{inputs.data_dir(config, given)}{part}"
            )
        }
        if split == "sample":
            figures["first_bits_per_dim"] = [round(float(b), 5) for b in bits[:4]]
        return figures, scores

    return Releasable(model, params, measure, splits)


def sample(config: inputs.Config, workdir: Workdir) -> None:
    """Samples images from the density model, as a grid and an array."""
    settings = config.sample
    with user_errors():
        model, params, card = zoo.load_released(config.pixelcnn.weights)
        parallel.check_batch(settings.count, "sample.count")
        parallel.check_batch(settings.batch, "sample.batch")
        if not -1 <= settings.label < model.classes:
            raise ValueError(
                f"sample.label must be one of this model's {model.classes} classes, or "
                f"-1 for each in turn: {settings.label}"
            )
    height, width, _ = card["image_shape"]
    indices = np.arange(settings.count, dtype=np.uint32)
    fixed = np.full(settings.count, settings.label, np.int32)
    labels = fixed if settings.label >= 0 else indices % max(model.classes, 1)

    def draw(params: Any, indices: Any, labels: Any) -> Any:
        return likelihood.sample(
            model,
            params,
            keys.for_images(jax.random.key(config.seed), indices),
            height=height,
            width=width,
            labels=labels if model.classes else None,
        )

    folder = workdir.open()
    mapped = parallel.BatchMap(draw, settings.batch)
    images, seconds = report.run_batches(
        mapped, "sampling", params, indices, labels.astype(np.int32)
    )
    columns = int(np.ceil(len(images) ** 0.5))
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    grid = pictures.grid([pictures.Row(row) for row in rows])
    pictures.save(grid, folder / "samples.png")
    drawn: dict[str, Any] = {"labels": labels.astype(np.int32)} if model.classes else {}
    files.write_arrays(folder / "samples.npz", images=images, **drawn)
    print(
        f"{len(images)} samples at {len(images) / seconds:.1f} images/s after "
        f"{mapped.compile_seconds:.1f} s of compilation: {folder / 'samples.png'}"
    )


def score(config: inputs.Config, workdir: Workdir) -> None:
    """Scores images: bits/dim, and p-values relative to the training images."""
    settings = config.score
    with user_errors():
        model, params, card = inputs.density_model(config)
        reference = inputs.reference(config)
        given = inputs.chosen(config, "score", card["image_shape"])
        parallel.check_batch(settings.batch, "score.batch")
        mapped = inputs.score_map(model, settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, given)
    log_probs, seconds = report.run_batches(mapped, "scoring", params, given.images)
    bits = likelihood.to_bits_per_dim(log_probs, given.images.shape[1:])
    arrays = {"log_probs": log_probs, "bits_per_dim": bits}
    arrays["names"] = np.array(given.names)
    if reference is not None:
        arrays["p_values"] = np.asarray(detection.p_values(log_probs, reference))
    files.write_arrays(folder / "scores.npz", **arrays)
    files.write_json(
        folder / "figures.json",
        {"input": given.source, **summaries.summary(bits)},
    )
    ranks = ""
    if reference is not None:
        middle, low = np.median(arrays["p_values"]), np.mean(arrays["p_values"] < 0.05)
        ranks = f"median p-value {middle:.4f}, {low:.0%} below 0.05, "
    print(
        f"{config.pixelcnn.weights} on {len(bits)} images ({given.source}): "
        f"{summaries.interval(bits)} bits/dim (mean, 95 %), {ranks}"
        f"{len(bits) / seconds:.3g} images/s\nresults in {folder}"
    )
