"""Modes around the density model: training, sampling, scoring, releasing."""

import json
import time
from typing import Any

import jax
import numpy as np

from pixeldefend import detection, keys
from pixeldefend.density import likelihood, pixelcnn
from pixeldefend.experiment import (
    data,
    density_training,
    evaluate,
    files,
    parallel,
    report,
    train,
    zoo,
)
from pixeldefend.experiment import pictures as figures
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.modes import training as training_
from pixeldefend.experiment.workdir import Workdir, user_errors


def train_pixelcnn(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a PixelCNN++ on the training split; continues where it was stopped."""
    begun = time.monotonic()
    settings = config.pixelcnn.train
    with user_errors():
        model = pixelcnn.PixelCNN(**config.pixelcnn.model)
        plan = inputs.plan(config, settings)
        if settings.init_images < 1:
            raise ValueError(f"init_images must be at least 1: {settings.init_images}")
        training, validation = inputs.training_splits(config, settings, plan)
        if model.classes and training["labels"].max() >= model.classes:
            raise ValueError(
                f"classes is {model.classes}, but there are labels up to "
                f"{training['labels'].max()}"
            )
        shape = training["images"].shape[1:]
        abstract = zoo.abstract_params("pixelcnn", model, shape)
        params = None
        if settings.start:
            weights = zoo.find_released(settings.start) / "weights"
            params = zoo.load_weights(weights, abstract)
    folder = workdir.open()
    if params is None:
        params = density_training.initial_params(
            model, config.seed, training, settings.init_images
        )
    step = train.make_step(
        density_training.loss_fn(model, flip=settings.flip),
        train.adam(plan),
        plan.polyak,
    )
    scores = density_training.evaluation(model, validation, plan.batch)

    def told(line: dict) -> str:
        bits = line.get("validation_bits_per_dim")
        found = "" if bits is None else f", {bits:.3f} on validation images"
        return f"{line['loss']:.3f} bits/dim{found}"

    first = train.start(params, {}, train.adam(plan))
    last, line = training_.fitted(
        first, step, training, plan, folder, scores, told, begun
    )
    training_.save(
        folder,
        model,
        last.average,
        kind="pixelcnn",
        dataset=config.dataset,
        shape=shape,
        training=training_.told_on_card(settings, last.average, line),
    )


def sample(config: inputs.Config, workdir: Workdir) -> None:
    """Draws images from the density model and writes them as a grid and arrays."""
    settings = config.sample
    with user_errors():
        model, params, card = zoo.load_released(config.pixelcnn.weights)
        if settings.count < 1:
            raise ValueError(f"sample.count must be at least 1: {settings.count}")
        parallel.check_batch(settings.batch, "sample.batch")
        if settings.label >= model.classes and settings.label >= 0:
            raise ValueError(
                f"sample.label {settings.label}: this model has {model.classes} classes"
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
    figures.save(figures.grid(rows), folder / "samples.png")
    drawn = {"labels": labels.astype(np.int32)} if model.classes else {}
    files.write_arrays(folder / "samples.npz", images=images, **drawn)
    print(
        f"{len(images)} samples at {len(images) / seconds:.1f} images/s after "
        f"{mapped.compile_seconds:.1f} s of compilation: {folder / 'samples.png'}"
    )


def score(config: inputs.Config, workdir: Workdir) -> None:
    """Scores images: bits/dim, and p-values among the training images."""
    settings = config.score
    with user_errors():
        model, params, card = inputs.density_model(config)
        reference = zoo.load_reference(config.pixelcnn.weights)
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
        {"input": given.source, **evaluate.summary(bits)},
    )
    print(
        f"{config.pixelcnn.weights} on {len(bits)} images ({given.source}): "
        f"{evaluate.interval(bits)} bits/dim (mean, 95 %), "
        f"{len(bits) / seconds:.0f} images/s"
    )


def release(config: inputs.Config, workdir: Workdir) -> None:
    """Makes a released model of a training run: test figures, references, card."""
    with user_errors():
        model, params, card = inputs.density_model(config)
        folder = inputs.release_folder(config, config.pixelcnn.weights, card)
        if config.release.reference < 0:
            raise ValueError(
                f"release.reference must not be negative: {config.release.reference}"
            )
        mapped = inputs.score_map(model, config.release.batch)
        bundled = data.sample(config.dataset)[0]
        splits = {"train": bundled, "test": bundled, "sample": bundled}
        if not config.release.on_sample:
            training = inputs.split(config, "train")["images"]
            splits["train"] = training[: config.release.reference or None]
            splits["test"] = inputs.split(config, "test")["images"]
    del workdir  # all that is written goes to release.to
    scores = {
        name: report.run_batches(mapped, f"scoring {name}", params, images)[0]
        for name, images in splits.items()
    }
    bits = {
        split: likelihood.to_bits_per_dim(values, tuple(card["image_shape"]))
        for split, values in scores.items()
    }
    card["note"] = config.release.note
    card["name"] = f"{folder.parent.name}/{folder.name}"
    command = (
        f"python main.py --config=configs/{config.dataset}.py --mode=score "
        f"--config.pixelcnn.weights={card['name']}"
    )
    given = {
        "train": "train --config.data_dir=DATA_DIR",
        "test": "test --config.data_dir=DATA_DIR",
        "sample": "sample",
    }
    card["figures"] = {
        split: evaluate.summary(bits[split])
        | {"command": f"{command} --config.score.input={given[split]}"}
        for split in scores
    }
    if config.release.reference:
        part = f" --config.score.count={config.release.reference}"
        card["figures"]["train"]["command"] += part
    first = [round(float(value), 5) for value in bits["sample"][:4]]
    card["figures"]["sample"]["first_bits_per_dim"] = first
    del card["model"]
    zoo.save_released(folder, model, params, card, reference=scores["train"])
    print(json.dumps(card["figures"], indent=1))
