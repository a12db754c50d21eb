"""Modes around the classifiers: training, classifying, releasing."""

import functools
import json
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

import pixeldefend
from pixeldefend import (
    attacks,
    checkpoint,
    classifier_training,
    classifiers,
    data,
    evaluate,
    parallel,
    report,
    train,
)
from pixeldefend.run import inputs
from pixeldefend.workdir import UserError, Workdir, command_line, user_errors

ATTACKS: dict[str, Callable | None] = {
    "none": None,
    "fgsm": attacks.fgsm,
    "bim": attacks.bim,
}


def train_classifier(config: inputs.Config, workdir: Workdir) -> None:
    """Trains a classifier on the training split; continues where it was stopped."""
    settings = config.classifier.train
    with user_errors():
        model = classifiers.make(**config.classifier.model)
        recipe = classifier_training.Recipe(
            training=config.classifier.training,
            delta=config.classifier.delta,
            preset=config.classifier.preset,
            flip=settings.flip,
            weight_decay=settings.weight_decay,
        )
        plan = inputs.plan(config, settings, polyak=0.0)
        if recipe.adversarial and parallel.check_batch(plan.batch) % 2:
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
    step = train.make_step(
        classifier_training.loss_fn(model, recipe), optimizer, plan.polyak
    )
    scores = classifier_training.evaluation(model, recipe, validation, plan.batch)
    progress = report.Progress("training")

    def show(line: dict) -> None:
        progress.update(line["progress"], _told(line))

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
            **_trained_with(recipe),
            "config": json.loads(settings.to_json_best_effort()),
            "device": parallel.devices(),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(last.params)),
            **line,
        },
    }
    trained = {"params": last.params, **last.model_state}
    checkpoint.save_released(folder / "model", model, trained, card)
    print(f"model written to {folder / 'model'}")


def _told(line: dict) -> str:
    """A line of metrics in words."""
    found = f"loss {line['cross_entropy']:.3f}"
    if "validation_accuracy" in line:
        found += f", {line['validation_accuracy']:.1%} of validation images right"
    if "validation_accuracy_attacked" in line:
        found += f", {line['validation_accuracy_attacked']:.1%} attacked"
    return f"{found}, {line['images_per_second']:.1f} images/s"


def _trained_with(recipe: classifier_training.Recipe) -> dict:
    """What a card tells of the recipe."""
    attack = {"delta": recipe.delta, "preset": recipe.preset}
    return {"training": recipe.training, **(attack if recipe.adversarial else {})}


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


def classify(config: inputs.Config, workdir: Workdir) -> None:
    """Accuracy of a classifier on images, clean and attacked."""
    settings = config.classify
    weights = config.classifier.weights
    with user_errors():
        model, variables, card = inputs.classifier(config)
        _check_attack(settings)
        parallel.check_batch(settings.batch, "classify.batch")
        given = inputs.chosen(config, "classify", card["image_shape"])
        if not given.own:
            inputs.check_dataset(config, weights, card)
        if given.labels is not None and given.labels.max() >= model.classes:
            raise ValueError(
                f"{weights} knows {model.classes} classes, but there are labels up to "
                f"{given.labels.max()}"
            )
    mapped = _predictions(model, settings.attack, settings.preset, settings.batch)
    folder = workdir.open()
    found, seconds = _predict(mapped, variables, settings.eps_attack, given)
    known = {} if given.labels is None else {"labels": given.labels}
    names = {"names": np.array(given.names)}
    checkpoint.write_arrays(folder / "predictions.npz", **found, **known, **names)
    print(
        f"{weights} on {len(given.images)} images ({given.source}), "
        f"{len(given.images) / seconds:.0f} images/s"
    )
    if given.labels is None:
        counts = np.bincount(found["clean"], minlength=model.classes)
        print(f"no labels, so no accuracy; images by predicted class: {list(counts)}")
        return
    correct = {name: guesses == given.labels for name, guesses in found.items()}
    checkpoint.write_arrays(folder / "correct" / f"{given.source}.npz", **correct)
    figures = {name: evaluate.accuracy(right) for name, right in correct.items()}
    provenance = {
        "seconds": round(seconds, 3),
        "device": parallel.devices(),
        "config": workdir.hash,
        "version": pixeldefend.__version__,
    }
    rows = [
        _identity(config, card, name) | {"input": given.source} | cell | provenance
        for name, cell in figures.items()
    ]
    evaluate.write_rows(folder / "rows.jsonl", rows)
    print(evaluate.accuracy_table({_title(settings, n): f for n, f in figures.items()}))
    print(f"results in {folder}")


def _check_attack(settings: inputs.Config) -> None:
    if settings.attack not in ATTACKS:
        raise ValueError(
            f"unknown attack {settings.attack!r}: one of {', '.join(ATTACKS)}"
        )
    if settings.preset not in classifier_training.PRESETS:
        known = ", ".join(classifier_training.PRESETS)
        raise ValueError(f"classify.preset must be one of {known}: {settings.preset!r}")
    _check_eps(settings.eps_attack)


def _check_eps(eps: float) -> None:
    if not 0 <= eps <= 255:
        raise ValueError(f"eps_attack must be between 0 and 255 levels: {eps}")


def _title(settings: inputs.Config, name: str) -> str:
    if name == "clean":
        return name
    return f"{name.upper()}, eps {settings.eps_attack:g} (white-box)"


def _identity(config: inputs.Config, card: dict, name: str) -> dict:
    """The identity of a row; nothing stands between attacker and classifier."""
    settings, attacked = config.classify, name != "clean"
    return {
        "dataset": config.dataset,
        "classifier": config.classifier.weights,
        "training": card["training"]["training"],
        "defence": "none",
        "attack": name if attacked else "none",
        "preset": settings.preset if attacked else None,
        "eps_attack": settings.eps_attack if attacked else 0.0,
        "eps_defend": 0,
        "threat": "white-box" if attacked else None,
        "source": config.classifier.weights if attacked else None,
        "through": "classifier" if attacked else None,
    }


def _predictions(
    model: classifiers.Classifier, attack: str, preset: str, batch: int
) -> parallel.BatchMap:
    """Maps images and labels to predicted classes, `clean` and by the attack's name."""
    logits_fn = functools.partial(classifiers.logits, model)
    move = ATTACKS[attack]

    def predict(variables: dict, images: chex.Array, labels: chex.Array) -> dict:
        shown = {"clean": images}
        if move is not None:
            # Negative labels stand for unknown ones.
            guesses = jnp.argmax(logits_fn(variables["model"], images), -1)
            hidden = labels < 0
            if preset == "code" and attack == "fgsm":
                hidden = jnp.ones_like(hidden)
            raised = jnp.where(hidden, guesses.astype(labels.dtype), labels)
            shown[attack] = move(
                logits_fn, variables["model"], images, raised, eps=variables["eps"]
            )
        return {
            name: jnp.argmax(logits_fn(variables["model"], x), -1)
            for name, x in shown.items()
        }

    return parallel.BatchMap(predict, batch)


def _predict(
    mapped: parallel.BatchMap, variables: dict, eps: float, given: data.Input
) -> tuple[dict[str, np.ndarray], float]:
    labels = given.labels
    if labels is None:
        labels = np.full(len(given.images), -1, np.int32)
    both = {"model": variables, "eps": jnp.float32(eps)}
    found, seconds = report.run_batches(
        mapped, "classifying", both, given.images, labels
    )
    # Devices give dicts back in the order of their keys.
    return {"clean": found.pop("clean"), **found}, seconds


def release_classifier(config: inputs.Config, workdir: Workdir) -> None:
    """Makes a released classifier of a training run: test figures, card."""
    settings = config.release
    with user_errors():
        model, variables, card = inputs.classifier(config)
        folder = inputs.release_folder(config, config.classifier.weights, card)
        for eps in settings.eps_attack:
            _check_eps(eps)
        bundled = data.read_input(
            config.dataset, "sample", 0, tuple(card["image_shape"]), None
        )
        splits = {"test": bundled, "sample": bundled}
        if not settings.on_sample:
            splits["test"] = data.read_input(
                config.dataset,
                "test",
                0,
                tuple(card["image_shape"]),
                config.data_dir,
            )
    del workdir  # all that is written goes to release.to
    card["note"] = settings.note
    card["name"] = f"{folder.parent.name}/{folder.name}"
    card["figures"] = {split: {} for split in splits}
    command = (
        f"python main.py --config=configs/{config.dataset}.py --mode=classify "
        f"--config.classifier.weights={card['name']} --config.classify.input="
    )
    options = {"test": "test --config.data_dir=DATA_DIR", "sample": "sample"}
    for attack, sizes in _released_attacks(card, settings.eps_attack).items():
        mapped = _predictions(model, attack, "paper", settings.batch)
        for split, given in splits.items():
            for eps in sizes:
                found, _ = _predict(mapped, variables, eps, given)
                right = found["clean" if attack == "none" else attack] == given.labels
                figures = evaluate.accuracy(right)
                figures["command"] = command + options[split]
                name = "clean"
                if attack != "none":
                    name = f"{attack}{eps:g}"
                    figures["command"] += (
                        f" --config.classify.attack={attack}"
                        f" --config.classify.eps_attack={eps:g}"
                    )
                card["figures"][split][name] = figures
    del card["model"]
    checkpoint.save_released(folder, model, variables, card)
    print(json.dumps(card["figures"], indent=1))


def _released_attacks(card: dict, eps: tuple[float, ...]) -> dict[str, list[float]]:
    """Attacks for a card and their eps: FGSM, and what the training was against."""
    found = {"none": [0.0], "fgsm": list(eps)}
    training = card["training"]["training"]
    if training.startswith("adversarial_"):
        own = found.setdefault(training.removeprefix("adversarial_"), [])
        if card["training"]["delta"] not in own:
            own.append(card["training"]["delta"])
    return {attack: sizes for attack, sizes in found.items() if sizes}
