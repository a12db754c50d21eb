"""Modes around PuVAE and MagNet: training and releasing."""

import json
import time
from typing import Any

import jax
import numpy as np

from pixeldefend import attacks
from pixeldefend.defences import magnet, puvae
from pixeldefend.experiment import (
    autoencoder_training,
    data,
    grid,
    parallel,
    report,
    train,
    zoo,
)
from pixeldefend.experiment.modes import evaluating, inputs, programs
from pixeldefend.experiment.modes import training as training_
from pixeldefend.experiment.modes.programs import Tools
from pixeldefend.experiment.rows import accuracy
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers


def train_puvae(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a PuVAE for a classifier; continues where it was stopped."""
    begun = time.monotonic()
    settings = config.puvae.train
    with user_errors():
        classifier, variables, card = inputs.classifier(config)
        inputs.check_dataset(config, config.classifier.weights, card)
        shape = tuple(card["image_shape"])
        model = puvae.PuVAE(
            **config.puvae.model, shape=shape, classes=classifier.classes
        )
        weights = puvae.Weights(**config.puvae.loss)
        plan = inputs.plan(config, settings)
        training, validation = inputs.training_splits(config, settings, plan)
        params = _first("puvae", model, settings, training, config.seed)
    folder = workdir.open()
    step = train.make_step(
        autoencoder_training.puvae_loss(model, classifier, weights),
        train.adam(plan, usual=True),
        plan.polyak,
    )
    scores = autoencoder_training.puvae_evaluation(
        model, classifier, validation, plan.batch, config.seed
    )

    def told(line: dict) -> str:
        found = f"loss {line['loss']:.3f}, {line['accuracy']:.1%} right"
        if "validation_accuracy" in line:
            found += (
                f", purified validation images {line['validation_accuracy']:.1%} "
                f"right and {line['validation_rmse']:.1f} levels away"
            )
        return found

    first = train.start(params, variables, train.adam(plan, usual=True))
    last, line = training_.fitted(
        first, step, training, plan, folder, scores, told, begun
    )
    training_.save(
        folder,
        model,
        last.average,
        kind="puvae",
        dataset=config.dataset,
        shape=shape,
        training=training_.told_on_card(
            settings,
            last.average,
            line,
            classifier=config.classifier.weights,
            classifier_sha256=card["sha256"],
            loss_weights=config.puvae.loss.to_dict(),
        ),
    )


def train_magnet(config: inputs.Config, workdir: Workdir) -> None:
    """Trains MagNet's autoencoders; continues where it was stopped."""
    begun = time.monotonic()
    settings = config.magnet.train
    with user_errors():
        model = magnet.make(**config.magnet.model)
        noise, diversity = config.magnet.noise, config.magnet.diversity
        for name, value in (("noise", noise), ("diversity", diversity)):
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"magnet.{name} must be finite and not negative: {value}"
                )
        plan = inputs.plan(config, settings)
        training, validation = inputs.training_splits(config, settings, plan)
        params = _first("magnet", model, settings, training, config.seed)
    folder = workdir.open()
    step = train.make_step(
        autoencoder_training.magnet_loss(model, noise=noise, diversity=diversity),
        train.adam(plan, usual=True),
        plan.polyak,
    )
    scores = autoencoder_training.magnet_evaluation(model, validation, plan.batch)

    def told(line: dict) -> str:
        found = f"squared error {line['reconstruction']:.5f}"
        if "validation_rmse" in line:
            found += f", validation images {line['validation_rmse']:.1f} levels away"
        return found

    first = train.start(params, {}, train.adam(plan, usual=True))
    last, line = training_.fitted(
        first, step, training, plan, folder, scores, told, begun
    )
    training_.save(
        folder,
        model,
        last.average,
        kind="magnet",
        dataset=config.dataset,
        shape=training["images"].shape[1:],
        training=training_.told_on_card(
            settings, last.average, line, noise=noise, diversity=diversity
        ),
    )


def release_puvae(config: inputs.Config, workdir: Workdir) -> None:
    """Makes a released PuVAE of a training run: test figures, card."""
    del workdir  # all that is written goes to release.to
    _release(config, "puvae")


def release_magnet(config: inputs.Config, workdir: Workdir) -> None:
    """Makes a released MagNet of a training run: test figures, card."""
    del workdir
    _release(config, "magnet")


def _release(config: inputs.Config, kind: str) -> None:
    weights = config[kind].weights
    with user_errors():
        row = grid.Pipeline(config.classifier.weights, (kind,))
        tools = evaluating.tools_for(config, [row])
        model, params, card = tools.model_of(kind)
        folder = inputs.release_folder(config, weights, card)
        shape = tuple(card["image_shape"])
        bundled = data.read_input(config.dataset, "sample", 0, shape, None)
        splits = {"test": bundled, "sample": bundled}
        if not config.release.on_sample:
            splits["test"] = data.read_input(
                config.dataset, "test", 0, shape, config.data_dir
            )
    card["note"] = config.release.note
    card["name"] = f"{folder.parent.name}/{folder.name}"
    card["figures"] = {
        split: _figures(config, tools, kind, card["name"], given)
        for split, given in splits.items()
    }
    del card["model"]
    card.pop("validation", None)  # of scores that are not taken along
    zoo.save_released(folder, model, params, card)
    print(json.dumps(card["figures"], indent=1))


def _figures(
    config: inputs.Config, tools: Tools, kind: str, name: str, given: data.Input
) -> dict:
    """What rebuilding does to clean images, and the command that says so again."""
    program = programs.rebuild(tools, kind)
    mapped = parallel.BatchMap(program.function, config.release.batch)
    found, _ = report.run_batches(
        mapped,
        f"rebuilding {given.source}",
        tools.model_of(kind).params,
        given.images,
        np.arange(len(given.images), dtype=np.uint32),
    )
    classifier = config.classifier.weights
    network, variables, _ = tools.classifiers[classifier]
    logits_fn = classifiers.logits_fn(network)

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return attacks.predicted(logits_fn, variables, images)

    guesses, _ = report.run_batches(
        parallel.BatchMap(predict, config.release.batch),
        f"classifying {given.source}",
        variables,
        found["images"],
    )
    moved = found["images"].astype(np.float64) - given.images
    data_dir = "" if given.source == "sample" else " --config.data_dir=DATA_DIR"
    return accuracy(guesses == given.labels) | {
        "rmse": round(float(np.sqrt(np.mean(moved**2, (1, 2, 3))).mean()), 3),
        "classifier": classifier,
        "command": (
            f"python main.py --config=configs/{config.dataset}.py --mode=evaluate"
            f" --config.{kind}.weights={name} --config.evaluate.attacks='()'"
            f" --config.evaluate.rows=\"('{classifier} + {kind}',)\""
            f" --config.evaluate.input={given.source} --config.evaluate.images=0"
            f"{data_dir}"
        ),
    }


def _first(
    kind: str,
    model: puvae.PuVAE | magnet.MagNet,
    settings: inputs.Config,
    training: dict,
    seed: int,
) -> dict:
    """First parameters: drawn afresh, or those of another run."""
    shape = training["images"].shape[1:]
    if settings.start:
        abstract = zoo.abstract_params(kind, model, shape)
        weights = zoo.find_released(settings.start) / "weights"
        return zoo.load_weights(weights, abstract)
    _, key = jax.random.split(jax.random.key(seed))
    init = {"puvae": puvae.init, "magnet": magnet.init}[kind]
    with parallel.on_host():
        return jax.jit(init, static_argnums=0)(model, key, training["images"][:2])
