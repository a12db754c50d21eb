"""Classifiers: training and releasing them, classifying."""

import functools
from typing import Any

import numpy as np

from pixeldefend import attacks
from pixeldefend.experiment import (
    classifier_training,
    data,
    files,
    measure,
    parallel,
    report,
    schedule,
    summaries,
)
from pixeldefend.experiment.kinds import Releasable, Trainable, init_by_shape
from pixeldefend.experiment.modes import attacking, inputs
from pixeldefend.experiment.rows import accuracy, write_rows
from pixeldefend.experiment.train import sgd
from pixeldefend.experiment.workdir import Workdir, remove_results, user_errors
from pixeldefend.models import classifiers


def trainable(config: inputs.Config, plan: schedule.Plan) -> Trainable:
    """A classifier to be trained; the average is of the batch statistics, too."""
    settings = config.classifier
    classes = inputs.facts(config).classes
    if not classes:
        raise ValueError(
            f"{config.dataset} has no labels: put its pictures into one folder per "
            "class"
        )
    model = classifiers.make(**settings.model, classes=classes)
    recipe = classifier_training.Recipe(
        training=settings.training,
        delta=settings.delta,
        preset=settings.preset,
        flip=settings.train.flip,
        crop=settings.train.crop,
        weight_decay=settings.train.weight_decay,
    )
    told: dict[str, Any] = {"training": recipe.training}
    if recipe.adversarial:
        told |= {"delta": recipe.delta, "preset": recipe.preset}
        if parallel.per_device(plan.batch) % 2:
            raise ValueError(
                f"train.batch must be even on every device for {recipe.training}: "
                f"{plan.batch}"
            )
    return Trainable(
        model,
        classifier_training.loss_fn(model, recipe),
        sgd(plan),
        init=init_by_shape(classifiers.init, model, config.seed),
        evaluation=functools.partial(classifier_training.evaluation, model, recipe),
        words=(
            "loss {cross_entropy:.3f}",
            "{validation_accuracy:.1%} of validation images right",
            "{validation_accuracy_attacked:.1%} attacked",
        ),
        split=classifier_training.split,
        averaged=classifier_training.variables,
        told=told,
    )


def releasable(config: inputs.Config, card: dict) -> Releasable:
    """Accuracies of a classifier, on clean and on attacked images."""
    settings = config.release
    for eps in settings.eps_attack:
        attacks.check_eps(eps, "release.eps_attack", whole=True)
    model, variables, _ = inputs.classifier(config)

    def measure(split: str, given: data.Input) -> tuple[dict, None]:
        where = given.source
        command = (
            f"{inputs.program(config, 'classifier', card)}"
            f"{inputs.data_dir(config, given)}"
        )
        mapped = inputs.prediction_map(model, settings.batch)
        guesses, _ = report.run_batches(
            mapped, f"classifying {where}", variables, given.images
        )
        figures = {
            "clean": accuracy(guesses == given.labels)
            | {"command": f"{command} --mode=classify --config.classify.input={where}"}
        }
        for name, sizes in _released_attacks(card, settings.eps_attack).items():
            outcomes = attacking.Outcomes(model, name, "", config.seed, settings.batch)
            for eps in sizes:
                correct = outcomes(variables, given, eps)["correct"]
                figures[f"{name}{eps:g}"] = accuracy(correct) | {
                    "command": (
                        f"{command} --mode=attack --config.attack.input={where}"
                        f" --config.attack.count=0 --config.attack.name={name}"
                        f" --config.attack.eps={eps:g}"
                    )
                }
        return figures, None

    return Releasable(model, variables, measure)


def _released_attacks(card: dict, eps: tuple[float, ...]) -> dict[str, list[float]]:
    """Attacks for a card and their eps: FGSM, and what the training was against."""
    found = {"fgsm": list(eps)}
    told = card.get("training", {})
    training, delta = told.get("training", ""), told.get("delta")
    if training.startswith("adversarial_") and delta is not None:
        own = found.setdefault(training.removeprefix("adversarial_"), [])
        if delta not in own:
            own.append(delta)
    return {attack: sizes for attack, sizes in found.items() if sizes}


def classify(config: inputs.Config, workdir: Workdir) -> None:
    """Classifies images and measures the accuracy."""
    settings = config.classify
    weights = config.classifier.weights
    with user_errors():
        model, variables, card = loaded = inputs.classifier(config)
        parallel.check_batch(settings.batch, "classify.batch")
        given = inputs.chosen(config, "classify", card["image_shape"])
        if not given.own:
            inputs.check_dataset(config, weights, card)
        inputs.check_labels(given, weights, model.classes)
        mapped = inputs.prediction_map(model, settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, given)
    remove_results(
        folder, ["predictions.npz", f"correct/{given.source}.npz", "rows.jsonl"]
    )
    guesses, seconds = report.run_batches(
        mapped, "classifying", variables, given.images
    )
    labels: dict[str, Any] = {} if given.labels is None else {"labels": given.labels}
    files.write_arrays(
        folder / "predictions.npz", clean=guesses, names=np.array(given.names), **labels
    )
    print(
        f"{weights} on {len(given.images)} images ({given.source}), "
        f"{len(given.images) / seconds:.0f} images/s"
    )
    if given.labels is None:
        counts = np.bincount(guesses, minlength=model.classes)
        print(f"no labels, so no accuracy; images by predicted class: {list(counts)}")
        return
    correct = guesses == given.labels
    files.write_arrays(folder / "correct" / f"{given.source}.npz", clean=correct)
    row = (
        attacking.identity(config, loaded, None)
        | measure.images(given)
        | accuracy(correct)
        | measure.provenance(workdir.hash, seconds)
    )
    write_rows(folder / "rows.jsonl", [row])
    print(summaries.accuracy_table({"clean": accuracy(correct)}))
    print(f"results in {folder}")
