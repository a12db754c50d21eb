"""The main job: purify images and show what that did."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.defences import base, pipeline
from pixeldefend.density import pixelcnn
from pixeldefend.experiment import (
    data,
    evaluate,
    files,
    grid,
    parallel,
    pictures,
    zoo,
)
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.store import Store
from pixeldefend.experiment.workbench import Tools
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the config names, read and checked."""

    density_model: pixelcnn.PixelCNN
    params: Any
    classifier: classifiers.Classifier | None
    classifier_variables: Any
    training: str | None
    cards: list[dict]
    given: data.Input
    attack: Callable | None
    attack_name: str
    preset: str | None
    row: grid.Pipeline
    defences: tuple[base.Defence, ...]
    defence_params: tuple[dict[str, Any], ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What rows tell of the defences."""
        found: dict[str, Any] = {"eps_defend": 0, "threshold": 0.0}
        for defence, params in zip(self.defences, self.defence_params, strict=True):
            found |= defence.facts(params)
        return found


def purify(config: inputs.Config, workdir: Workdir) -> None:
    """Attacks images if asked, purifies them, and shows what that did."""
    settings = config.purify
    with user_errors():
        _check(settings)
        job = _read(config)
        reference = zoo.load_reference(config.pixelcnn.weights)
        defend = pipeline.perturb_and_defend(
            job.density_model,
            job.attack,
            classifiers.logits_fn(job.classifier) if job.classifier else None,
            job.defences,
        )
        mapped = parallel.BatchMap(defend, settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, job.given)
    own_pictures = job.given.own and settings.pictures
    inputs.remove_results(folder, _names(job.given, own_pictures))
    store = Store(folder)
    variables = {
        "params": job.params,
        "classifier": job.classifier_variables,
        "defences": job.defence_params,
        "eps_attack": jnp.float32(settings.eps_attack),
        "key": jax.random.key(config.seed),
    }
    unfinished = inputs.unfinished(
        store,
        (workdir.hash, job.defences),
        job.given,
        variables,
        settings.save_seconds,
    )
    clean = job.given.images
    result, seconds = unfinished.run(
        mapped,
        "purifying",
        variables,
        clean,
        inputs.labels_or_unknown(job.given),
        np.arange(len(clean), dtype=np.uint32),
        each=functools.partial(_write_pictures, folder, job.given)
        if own_pictures
        else None,
    )
    _write_purified(folder, job.given, result)
    stages = evaluate.stages(
        _titles(config, job),
        clean,
        result,
        reference=reference,
        labels=job.given.labels,
    )
    _write_outcomes(folder, job.given, result, stages)
    provenance = inputs.provenance(workdir.hash, seconds)
    rows = [
        _identity(config, job, stage.name) | evaluate.stage_figures(stage) | provenance
        for stage in stages
    ]
    write_rows(folder / "rows.jsonl", rows)
    store.tidy()  # only now is everything elsewhere
    figures = {stage.title: evaluate.stage_figures(stage) for stage in stages}
    print(evaluate.purification_table(figures))
    print(_who_saw_what(config, job))
    print(
        f"{len(clean)} images, {len(clean) / seconds:.1f} images/s (all of the above) "
        f"on {parallel.devices()}, compiled in {mapped.compile_seconds:.1f} s"
    )
    print(f"results in {folder}")


def _read(config: inputs.Config) -> _Job:
    """Reads what the config names; raises ValueError where it does not fit together."""
    settings = config.purify
    model, params, card = inputs.density_model(config)
    cards = [card]
    given = inputs.chosen(config, "purify", card["image_shape"])
    classifier, variables, training = None, {}, None
    if config.classifier.weights:
        classifier, variables, other = inputs.classifier(config)
        if other["image_shape"] != card["image_shape"]:
            raise ValueError(
                f"{config.classifier.weights} takes images {other['image_shape']}, "
                f"{config.pixelcnn.weights} {card['image_shape']}"
            )
        if not given.own:
            inputs.check_dataset(config, config.classifier.weights, other)
        inputs.check_labels(given, config.classifier.weights, classifier.classes)
        training = other["training"]["training"]
        cards.append(other)
    name = settings.attack
    if name == "auto":
        usual = "bim" if classifier else "rand"
        name = "none" if given.own else usual
    attack, preset = None, None
    if name == "none" and settings.preset:
        raise ValueError(f"purify.preset {settings.preset!r} without an attack")
    if name != "none":
        attack = inputs.attack(name, settings.preset, settings.eps_attack)
        preset = attacks.usual(name, settings.preset)
        if attacks.ATTACKS[name].looks and classifier is None:
            raise ValueError(
                f"{name} attacks a classifier: give --config.classifier.weights"
            )
    row, tools = _defended(config, zoo.Loaded(model, params, card))
    if classifier:
        tools.classifiers[row.classifier] = zoo.Loaded(classifier, variables, other)
    built = [tools.defence(name, row.classifier) for name in row.defences]
    defences, defence_params = zip(*built, strict=True)
    cards += [tools.models[kind].card for kind in sorted(row.models)]
    return _Job(
        model,
        params,
        classifier,
        variables,
        training,
        cards,
        given,
        attack,
        name,
        preset,
        row,
        defences,
        defence_params,
    )


def _defended(
    config: inputs.Config, density_model: zoo.Loaded
) -> tuple[grid.Pipeline, Tools]:
    """The defences of `purify.defence`, and what they are built from."""
    chosen = config.purify.defence
    weights, card = config.pixelcnn.weights, density_model.card
    threshold = inputs.threshold(config.purify.threshold, weights, card)
    if chosen == "auto":
        chosen = "purify_adaptive" if threshold else "purify"
    row = grid.pipeline(f"{config.classifier.weights or '-'} + {chosen}", 0.0)
    row = dataclasses.replace(row, classifier=config.classifier.weights)
    if row.detectors:
        raise ValueError(
            f"purify.defence {chosen!r}: {row.detectors[0]} only detects; "
            "--mode=evaluate measures it"
        )
    if "purify_adaptive" in row.defences and not threshold:
        raise ValueError("purify_adaptive needs a purify.threshold, or -1: the card's")
    settings = config.to_dict()
    settings["purify"]["threshold"] = threshold
    models = {"density_model": density_model}
    for kind in row.models - set(models):
        models[kind] = inputs.defence_model(config, kind)
        if models[kind].card["image_shape"] != card["image_shape"]:
            raise ValueError(f"the {kind} takes images of another shape than {weights}")
    return row, Tools({}, models, settings, config.seed, config.purify.batch)


def _titles(config: inputs.Config, job: _Job) -> dict[str, str]:
    """Lines of the table, by stage."""
    settings = config.purify
    titles = {"clean": "as given" if job.given.own else "clean"}
    if job.attack is not None:
        titles["perturbed"] = f"{job.attack_name.upper()}, eps {settings.eps_attack:g}"
    titles["purified"] = f"purified, eps {settings.eps}"
    if job.facts["threshold"]:
        titles["purified"] += f" from {job.facts['threshold']:g} bits/dim"
    if settings.defence != "auto":
        titles["purified"] = f"behind {job.row.defence}"
    return titles


def _identity(config: inputs.Config, job: _Job, stage: str) -> dict:
    """The identity of a row."""
    settings = config.purify
    attacked = job.attack is not None and stage != "clean"
    purified = stage == "purified"
    looks = attacked and attacks.ATTACKS[job.attack_name].looks
    source = config.classifier.weights if looks else None
    row = job.row if purified else dataclasses.replace(job.row, defences=())
    facts = job.facts if purified else {"eps_defend": 0, "threshold": 0.0}
    others = {
        kind: config[inputs.SECTIONS[kind]].weights
        for kind in sorted(row.models - {"density_model"})
    }
    return {
        "dataset": job.cards[0]["dataset"],
        "classifier": config.classifier.weights or None,
        "training": job.training,
        "density_model": config.pixelcnn.weights,
        "defence": row.defence,
        "attack": job.attack_name if attacked else "none",
        "preset": job.preset if attacked else None,
        "eps_attack": inputs.in_row(settings.eps_attack) if attacked else 0.0,
        **facts,
        "threat": grid.threat(row, grid.Adversary(job.attack_name, source=source)),
        "source": source,
        "through": "classifier" if looks else None,
        "density_model_sha256": job.cards[0]["sha256"][:8],
        "classifier_sha256": job.cards[1]["sha256"][:8] if job.classifier else None,
        **others,
    } | inputs.identity(job.given)


def _who_saw_what(config: inputs.Config, job: _Job) -> str:
    """The threat model, in words."""
    who = config.classifier.weights or "no classifier"
    if job.attack is None:
        return f"classified by {who}; no attack"
    if not attacks.ATTACKS[job.attack_name].looks:
        return f"classified by {who}; {job.attack_name.upper()} looks at nothing"
    return (
        f"{job.attack_name.upper()} sees all of {who} and nothing of the purifier "
        "(grey-box): an attacker who looks through the purifier does more harm"
    )


def _check(settings: inputs.Config) -> None:
    """Raises ValueError for fields of `purify` that are out of range or unknown."""
    known = ("auto", "none", *attacks.ATTACKS)
    if settings.attack not in known:
        raise ValueError(
            f"unknown attack {settings.attack!r}: one of {', '.join(known)}"
        )
    attacks.check_eps(settings.eps_attack, "purify.eps_attack")
    inputs.check_save_seconds(settings.save_seconds)
    parallel.check_batch(settings.batch, "purify.batch")


def _names(given: data.Input, pictures: bool) -> list[str]:
    """Of the files with results, those that every run writes anew left out."""
    arrays = [f"purified/{given.source}.npz", f"correct/{given.source}.npz"]
    names = given.names if pictures else []
    own = [_picture(name) for name in names]
    return ["predictions.npz", "rows.jsonl", *arrays, *own]


def _picture(name: str) -> str:
    """Of one of the user's images, purified."""
    return f"purified/{name}.png"


def _write_outcomes(
    folder: epath.Path,
    given: data.Input,
    result: dict[str, np.ndarray],
    stages: list[evaluate.Stage],
) -> None:
    """Predicted classes by stage, and which of them are right."""
    guesses = {
        stage.name: result[f"{stage.name}_prediction"]
        for stage in stages
        if f"{stage.name}_prediction" in result
    }
    correct = {s.name: s.correct for s in stages if s.correct is not None}
    if guesses:
        names = {"names": np.array(given.names)}
        files.write_arrays(folder / "predictions.npz", **guesses, **names)
    if correct:
        files.write_arrays(folder / "correct" / f"{given.source}.npz", **correct)


def _write_pictures(
    folder: epath.Path, given: data.Input, rows: np.ndarray, result: dict
) -> None:
    """A PNG for each of the user's own images, of which the batch has these rows.

    Written before the batch counts as done.
    """
    for row, image in zip(rows, result["purified"], strict=True):
        path = folder / _picture(given.names[row])
        pictures.save(pictures.picture(image), path, every_process=True)


def _write_purified(folder: epath.Path, given: data.Input, result: dict) -> None:
    """All arrays and a before/after picture."""
    perturbed, purified = result["perturbed"], result["purified"]
    labels = {} if given.labels is None else {"labels": given.labels.astype(np.uint8)}
    files.write_arrays(
        folder / "purified" / f"{given.source}.npz",
        clean=given.images,
        images=perturbed,
        purified=purified,
        **labels,
    )
    shown = {"clean": given.images, "perturbed": perturbed, "purified": purified}
    if np.array_equal(given.images, perturbed):
        del shown["perturbed"]
    first = [images[:12] for images in shown.values()]
    grid_of_all = pictures.grid(first, list(shown))
    pictures.save(grid_of_all, folder / "figures/before_after.png")
