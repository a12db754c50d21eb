"""Modes around the classifiers: training, classifying, releasing."""

import json
import time

import chex
import jax
import numpy as np

from pixeldefend import attacks
from pixeldefend.experiment import (
    classifier_training,
    data,
    evaluate,
    files,
    parallel,
    report,
    train,
    zoo,
)
from pixeldefend.experiment.modes import attacking, inputs
from pixeldefend.experiment.modes import training as training_
from pixeldefend.experiment.rows import accuracy, write_rows
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers


def train_classifier(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a classifier on the training split; continues where it was stopped."""
    begun = time.monotonic()
    settings = config.classifier.train
    with user_errors():
        model = classifiers.make(**config.classifier.model)
        recipe = classifier_training.Recipe(
            training=config.classifier.training,
            delta=config.classifier.delta,
            preset=config.classifier.preset,
            flip=settings.flip,
            crop=settings.crop,
            weight_decay=settings.weight_decay,
        )
        plan = inputs.plan(config, settings)
        if recipe.adversarial and parallel.per_device(plan.batch) % 2:
            raise ValueError(
                f"train.batch must be even on every device for {recipe.training}: "
                f"{plan.batch}"
            )
        training, validation = inputs.training_splits(config, settings, plan)
        shape = training["images"].shape[1:]
        variables = _first_variables(config, model, shape)
    folder = workdir.open()
    state = {name: tree for name, tree in variables.items() if name != "params"}
    optimizer = train.sgd(plan)
    loss = classifier_training.loss_fn(model, recipe)
    averaged = classifier_training.variables
    step = train.make_step(loss, optimizer, plan.polyak, averaged)
    scores = classifier_training.evaluation(model, recipe, validation, plan.batch)
    first = train.start(variables["params"], state, optimizer, averaged)
    last, line = training_.fitted(
        first, step, training, plan, folder, scores, _told, begun
    )
    training_.save(
        folder,
        model,
        last.average,
        kind="classifier",
        dataset=config.dataset,
        shape=shape,
        training=training_.told_on_card(
            settings, last.params, line, **_trained_with(recipe)
        ),
    )


def _told(line: dict) -> str:
    """A line of metrics in words."""
    found = f"loss {line['cross_entropy']:.3f}"
    if "validation_accuracy" in line:
        found += f", {line['validation_accuracy']:.1%} of validation images right"
    if "validation_accuracy_attacked" in line:
        found += f", {line['validation_accuracy_attacked']:.1%} attacked"
    return found


def _trained_with(recipe: classifier_training.Recipe) -> dict:
    """What a card tells of the recipe."""
    attack = {"delta": recipe.delta, "preset": recipe.preset}
    return {"training": recipe.training, **(attack if recipe.adversarial else {})}


def _first_variables(
    config: inputs.Config, model: classifiers.Classifier, shape: tuple[int, int, int]
) -> dict:
    """Drawn afresh, or those of another run."""
    abstract = zoo.abstract_params("classifier", model, shape)
    start = config.classifier.train.start
    if start:
        weights = zoo.find_released(start) / "weights"
        return zoo.load_weights(weights, abstract)
    _, key = jax.random.split(jax.random.key(config.seed))
    images, _ = data.sample(config.dataset)
    init = jax.jit(classifiers.init, static_argnums=0)
    with parallel.on_host():
        return init(model, key, images[:2])


def classify(config: inputs.Config, workdir: Workdir) -> None:
    """Classifies images, and says how many of them rightly."""
    settings = config.classify
    weights = config.classifier.weights
    with user_errors():
        model, variables, card = inputs.classifier(config)
        parallel.check_batch(settings.batch, "classify.batch")
        given = inputs.chosen(config, "classify", card["image_shape"])
        if not given.own:
            inputs.check_dataset(config, weights, card)
        inputs.check_labels(given, weights, model.classes)
        mapped = _predictions(model, settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, given)
    inputs.remove_results(
        folder, ["predictions.npz", f"correct/{given.source}.npz", "rows.jsonl"]
    )
    guesses, seconds = report.run_batches(
        mapped, "classifying", variables, given.images
    )
    labels = {} if given.labels is None else {"labels": given.labels}
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
        attacking.identity(config, card, None)
        | inputs.identity(given)
        | accuracy(correct)
        | inputs.provenance(workdir.hash, seconds)
    )
    write_rows(folder / "rows.jsonl", [row])
    print(evaluate.accuracy_table({"clean": accuracy(correct)}))
    print(f"results in {folder}")


def _predictions(model: classifiers.Classifier, batch: int) -> parallel.BatchMap:
    """Maps images to predicted classes."""
    logits_fn = classifiers.logits_fn(model)

    def predict(variables: dict, images: chex.Array) -> chex.Array:
        return attacks.predicted(logits_fn, variables, images)

    return parallel.BatchMap(predict, batch)


def release_classifier(config: inputs.Config, workdir: Workdir) -> None:
    """Makes a released classifier of a training run: test figures, card."""
    settings = config.release
    with user_errors():
        model, variables, card = inputs.classifier(config)
        folder = inputs.release_folder(config, config.classifier.weights, card)
        for eps in settings.eps_attack:
            attacks.check_eps(eps, "release.eps_attack")
        splits = _splits(config, tuple(card["image_shape"]))
    del workdir  # all that is written goes to release.to
    card["note"] = settings.note
    card["name"] = f"{folder.parent.name}/{folder.name}"
    card["figures"] = {
        split: _figures(config, model, variables, card, given)
        for split, given in splits.items()
    }
    del card["model"]
    zoo.save_released(folder, model, variables, card)
    print(json.dumps(card["figures"], indent=1))


def _splits(
    config: inputs.Config, shape: tuple[int, int, int]
) -> dict[str, data.Input]:
    """The images of which a card tells."""
    bundled = data.read_input(config.dataset, "sample", 0, shape, None)
    if config.release.on_sample:
        return {"test": bundled, "sample": bundled}
    test = data.read_input(config.dataset, "test", 0, shape, config.data_dir)
    return {"test": test, "sample": bundled}


def _figures(
    config: inputs.Config,
    model: classifiers.Classifier,
    variables: dict,
    card: dict,
    given: data.Input,
) -> dict[str, dict]:
    """Accuracies of one split, each with the command that gives it again."""
    settings, where = config.release, given.source
    command = (
        f"python main.py --config=configs/{config.dataset}.py"
        f" --config.classifier.weights={card['name']}"
    )
    if where != "sample":
        command += " --config.data_dir=DATA_DIR"
    mapped = _predictions(model, settings.batch)
    guesses, _ = report.run_batches(
        mapped, f"classifying {where}", variables, given.images
    )
    found = {"clean": accuracy(guesses == given.labels)}
    found["clean"]["command"] = (
        f"{command} --mode=classify --config.classify.input={where}"
    )
    for name, sizes in _released_attacks(card, settings.eps_attack).items():
        outcomes = attacking.Outcomes(model, name, "", config.seed, settings.batch)
        for eps in sizes:
            correct = outcomes(variables, given, eps)["correct"]
            figures = accuracy(correct)
            figures["command"] = (
                f"{command} --mode=attack --config.attack.input={where}"
                f" --config.attack.count=0 --config.attack.name={name}"
                f" --config.attack.eps={eps:g}"
            )
            found[f"{name}{eps:g}"] = figures
    return found


def _released_attacks(card: dict, eps: tuple[float, ...]) -> dict[str, list[float]]:
    """Attacks for a card and their eps: FGSM, and what the training was against."""
    found = {"fgsm": list(eps)}
    training = card["training"]["training"]
    if training.startswith("adversarial_"):
        own = found.setdefault(training.removeprefix("adversarial_"), [])
        if card["training"]["delta"] not in own:
            own.append(card["training"]["delta"])
    return {attack: sizes for attack, sizes in found.items() if sizes}
