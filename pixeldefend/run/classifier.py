"""Modes around the classifiers: training."""

import json

import jax

from pixeldefend import (
    checkpoint,
    classifier_training,
    classifiers,
    data,
    parallel,
    report,
    train,
)
from pixeldefend.run import inputs
from pixeldefend.workdir import UserError, Workdir, command_line, user_errors


def train_classifier(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a classifier on the training split; continues where it was stopped."""
    settings = config.classifier.train
    with user_errors():
        model = classifiers.make(**config.classifier.model)
        recipe = classifier_training.Recipe(
            training=config.classifier.training,
            flip=settings.flip,
            weight_decay=settings.weight_decay,
        )
        plan = inputs.plan(config, settings, polyak=0.0)
        training, validation = inputs.training_splits(config, settings, plan)
        if training["labels"].max() >= model.classes:
            raise ValueError(
                f"classes is {model.classes}, but there are labels up to "
                f"{training['labels'].max()}"
            )
        shape = training["images"].shape[1:]
        variables = _first_variables(config, model, shape)
    folder = workdir.open()
    state = {name: tree for name, tree in variables.items() if name != "params"}
    optimizer = train.sgd(plan)
    step = train.make_step(
        classifier_training.loss_fn(model, recipe), optimizer, plan.polyak
    )
    scores = classifier_training.evaluation(model, validation, plan.batch)
    progress = report.Progress("training")

    def show(line: dict) -> None:
        found = line.get("validation_accuracy")
        text = "" if found is None else f", {found:.1%} of validation images right"
        rate = line["images_per_second"]
        progress.update(
            line["progress"],
            f"loss {line['cross_entropy']:.3f}{text}, {rate:.1f} images/s",
        )

    first = train.start(variables["params"], state, optimizer)
    try:
        last, line = train.fit(first, step, training, plan, folder, scores, show)
    except (train.NonFiniteLossError, checkpoint.UnreadableError) as error:
        raise UserError(str(error)) from error
    progress.close()
    card = {
        "kind": "classifier",
        "dataset": config.dataset,
        "image_shape": list(shape),
        "training": {
            "command": command_line(),
            "training": config.classifier.training,
            "config": json.loads(settings.to_json_best_effort()),
            "device": parallel.devices(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(last.params)),
            **line,
        },
    }
    trained = {"params": last.params, **last.model_state}
    checkpoint.save_released(folder / "model", model, trained, card)
    print(f"model written to {folder / 'model'}")


def _first_variables(
    config: inputs.Config, model: classifiers.Classifier, shape: tuple[int, int, int]
) -> dict:
    """Drawn afresh, or those of another run."""
    abstract = checkpoint.abstract_params("classifier", model, shape)
    start = config.classifier.train.start
    if start:
        weights = checkpoint.find_released(start) / "weights"
        return checkpoint.load_weights(weights, abstract)
    _, key = jax.random.split(jax.random.key(config.seed))
    images, _ = data.sample(config.dataset)
    init = jax.jit(classifiers.init, static_argnums=0)
    return init(model, key, images[:2])
