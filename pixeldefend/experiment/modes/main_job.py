"""The main job: purify images and show what that did."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES, base, pipeline
from pixeldefend.experiment import (
    data,
    files,
    grid,
    measure,
    parallel,
    pictures,
    summaries,
    zoo,
)
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.store import Store
from pixeldefend.experiment.tools import Tools, check_defence, source_of
from pixeldefend.experiment.workdir import Workdir, remove_results, user_errors
from pixeldefend.models import classifiers

_SHOWN = 8  # images of the before/after picture


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the config names, read and checked."""

    tools: Tools
    row: grid.Pipeline
    defences: tuple[base.Defence, ...]
    defence_params: tuple[dict[str, Any], ...]
    given: data.Input
    attack: Callable | None
    adversary: grid.Adversary

    @property
    def density_model(self) -> zoo.Loaded:
        """Which scores all images."""
        return self.tools.models["density_model"]

    @property
    def classifier(self) -> zoo.Loaded | None:
        """Which is attacked and defended."""
        return self.tools.classifiers.get(self.row.classifier)


def purify(config: inputs.Config, workdir: Workdir) -> None:
    """Purifies images, attacked first if asked, and measures the effect."""
    settings = config.purify
    with user_errors():
        _check(settings)
        job = _read(config)
        reference = inputs.reference(config)
        defend = pipeline.perturb_and_defend(
            job.density_model.model,
            job.attack,
            classifiers.logits_fn(job.classifier.model) if job.classifier else None,
            job.defences,
        )
        mapped = parallel.BatchMap(defend, settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, job.given)
    own_pictures = job.given.own and settings.pictures
    remove_results(folder, _names(job.given, own_pictures))
    store = Store(folder)
    variables = {
        "params": job.density_model.params,
        "classifier": job.classifier.params if job.classifier else {},
        "defences": job.defence_params,
        "eps_attack": jnp.float32(settings.eps_attack),
        "key": jax.random.key(config.seed),
    }
    unfinished = inputs.unfinished(
        store,
        (workdir.hash, job.defences, source_of((*job.defences, config.purify.attack))),
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
    stages = summaries.stages(
        _titles(config, job),
        clean,
        result,
        reference=reference,
        labels=job.given.labels,
    )
    _write_outcomes(folder, job.given, result, stages)
    names = data.CLASS_NAMES.get(job.density_model.card["dataset"], ())
    _write_before_after(folder, job.given, result, stages, names)
    provenance = measure.provenance(workdir.hash, seconds)
    rows = [
        _identity(config, job, stage.name) | summaries.stage_figures(stage) | provenance
        for stage in stages
    ]
    write_rows(folder / "rows.jsonl", rows)
    store.tidy()  # only now is everything elsewhere
    figures = {stage.title: summaries.stage_figures(stage) for stage in stages}
    print(summaries.purification_table(figures))
    print(_who_saw_what(config, job))
    if grades := job.tools.facts(job.row).get("grades"):
        print(f"eps by bits/dim: {grades}")
    if "mirror" in job.row.defences:
        print("the classifier sees purified images mirrored; they are kept as they are")
    print(
        f"{len(clean)} images, {len(clean) / seconds:.1f} images/s (all of the above) "
        f"on {parallel.devices()}, compiled in {mapped.compile_seconds:.1f} s"
    )
    print(f"results in {folder}")


def _read(config: inputs.Config) -> _Job:
    """Reads what the config names; raises ValueError where it does not fit together."""
    row, tools = _defended(config)
    shape = tools.models["density_model"].card["image_shape"]
    given = inputs.chosen(config, "purify", shape)
    if given.own and config.purify.pictures:
        for name in given.names:
            files.check_name(pathlib.PurePath(_picture(name)).name)
    weights, classifier = row.classifier, None
    if weights:
        classifier = inputs.classifier(config)
        tools.classifiers[weights] = classifier
        if classifier.card["image_shape"] != shape:
            raise ValueError(
                f"{weights} takes images {classifier.card['image_shape']}, "
                f"{config.pixelcnn.weights} {shape}"
            )
        if not given.own:
            inputs.check_dataset(config, weights, classifier.card)
        inputs.check_labels(given, weights, classifier.model.classes)
    attack, adversary = _adversary(config, given, row)
    built = [tools.defence(name, weights) for name in row.defences]
    for defence, its in built:
        check_defence(defence, its, tuple(shape))
    defences, params = zip(*built, strict=True)
    return _Job(tools, row, defences, params, given, attack, adversary)


def _adversary(
    config: inputs.Config, given: data.Input, row: grid.Pipeline
) -> tuple[Callable | None, grid.Adversary]:
    """The attack, None for none, and who that is: one who sees the classifier alone."""
    settings = config.purify
    name = settings.attack
    if name == "auto":
        usual = "bim" if row.classifier else "rand"
        name = "none" if given.own else usual
    if name == "none":
        if settings.preset:
            raise ValueError(f"purify.preset {settings.preset!r} needs an attack")
        return None, grid.Adversary(grid.CLEAN)
    attack = inputs.attack(
        name, settings.preset, settings.eps_attack, "purify.eps_attack"
    )
    looks = attacks.ATTACKS[name].looks
    if looks and not row.classifier:
        raise ValueError(
            f"{name} attacks a classifier: give --config.classifier.weights"
        )
    preset = attacks.usual(name, settings.preset)
    source = row.classifier if looks else None
    return attack, grid.Adversary(name, preset, settings.eps_attack, source)


def _defended(config: inputs.Config) -> tuple[grid.Pipeline, Tools]:
    """The defences of `purify.defence`, and what they are built from."""
    chosen = config.purify.defence
    density_model = inputs.density_model(config)
    weights, card = config.pixelcnn.weights, density_model.card
    threshold = inputs.threshold(config.purify.threshold, weights, card)
    plain = "purify_graded" if config.purify.grades else "purify"
    auto = "purify_adaptive" if threshold else plain
    names = (auto if name == "auto" else name for name in chosen.split(" + "))
    chosen = " + ".join(names)
    try:
        row = grid.pipeline(f"- + {chosen}", 0.0)
    except ValueError as error:
        known = ", ".join(n for n, kind in DEFENCES.items() if not kind.detects)
        raise ValueError(
            f"purify.defence must be some of auto, {known}, joined by ' + ': {chosen!r}"
        ) from error
    row = dataclasses.replace(row, classifier=config.classifier.weights)
    if row.detectors:
        raise ValueError(
            f"purify.defence {chosen!r}: {row.detectors[0]} only detects; "
            "--mode=evaluate measures it"
        )
    if "purify_adaptive" in row.defences and not threshold:
        raise ValueError("purify_adaptive needs purify.threshold; -1 takes the card's")
    settings = config.to_dict() | {"dataset": card["dataset"]}
    settings["purify"]["threshold"] = threshold
    models = {"density_model": density_model}
    for kind in row.models - set(models):
        models[kind] = inputs.defence_model(config, kind)
        if models[kind].card["image_shape"] != card["image_shape"]:
            raise ValueError(
                f"the {kind} and {weights} take images of different shapes"
            )
    return row, Tools({}, models, settings, config.seed, config.purify.batch)


def _titles(config: inputs.Config, job: _Job) -> dict[str, str]:
    """Lines of the table, by stage."""
    settings, facts = config.purify, job.tools.facts(job.row)
    titles = {"clean": "as given" if job.given.own else "clean"}
    if job.attack is not None:
        name = job.adversary.attack.upper()
        titles["perturbed"] = f"{name}, eps {settings.eps_attack:g}"
    titles["purified"] = f"purified, eps {settings.eps}"
    if facts["threshold"]:
        titles["purified"] += f" from {facts['threshold']:g} bits/dim"
    others = {*job.row.defences} - {"mirror"}
    if others == {"purify_graded"}:
        titles["purified"] = f"purified, eps up to {facts['eps_defend']}"
    elif "auto" not in settings.defence.split(" + ") or len(others) > 1:
        titles["purified"] = f"behind {job.row.defence}"
    return titles


def _identity(config: inputs.Config, job: _Job, stage: str) -> dict:
    """The identity of a row; the density model scores whatever the defence is."""
    row = job.row if stage == "purified" else grid.Pipeline(job.row.classifier)
    clean = grid.Adversary(grid.CLEAN)
    who = clean if stage == "clean" else job.adversary
    return (
        measure.identity(job.tools, row, who)
        | {
            "density_model": config.pixelcnn.weights,
            "density_model_sha256": job.density_model.card["sha256"][:8],
        }
        | measure.images(job.given)
    )


def _who_saw_what(config: inputs.Config, job: _Job) -> str:
    """The threat model, in words."""
    who = config.classifier.weights or "no classifier"
    name = job.adversary.attack.upper()
    if job.attack is None:
        return f"classified by {who}; no attack"
    if job.adversary.source is None:
        return f"classified by {who}; {name} ignores the model"
    return (
        f"{name} sees all of {who} and nothing of {job.row.defence} (grey-box): "
        "attacks through the defence do more harm"
    )


def _check(settings: inputs.Config) -> None:
    """Raises ValueError for fields of `purify` that are out of range or unknown."""
    known = ("auto", "none", *attacks.ATTACKS)
    if settings.attack not in known:
        raise ValueError(
            f"unknown attack {settings.attack!r}: one of {', '.join(known)}"
        )
    attacks.check_eps(settings.eps_attack, "purify.eps_attack", whole=True)
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
    stages: list[summaries.Stage],
) -> None:
    """Predicted classes by stage, and which of them are right."""
    guesses: dict[str, Any] = {
        stage.name: result[f"{stage.name}_prediction"]
        for stage in stages
        if f"{stage.name}_prediction" in result
    }
    correct: dict[str, Any] = {
        s.name: s.correct for s in stages if s.correct is not None
    }
    if guesses:
        names = np.array(given.names)
        files.write_arrays(folder / "predictions.npz", **guesses, names=names)
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
    """All arrays."""
    perturbed, purified = result["perturbed"], result["purified"]
    labels: dict[str, Any] = {}
    if given.labels is not None:
        labels["labels"] = given.labels.astype(np.uint8)
    files.write_arrays(
        folder / "purified" / f"{given.source}.npz",
        clean=given.images,
        images=perturbed,
        purified=purified,
        **labels,
    )


def _write_before_after(
    folder: epath.Path,
    given: data.Input,
    result: dict[str, np.ndarray],
    stages: list[summaries.Stage],
    names: Sequence[str],
) -> None:
    """A picture of the first images at every stage, of what a classifier takes them
    for, and of how they differ from the clean ones."""
    first = slice(_SHOWN)
    clean = given.images[first]
    images = {
        stage.name: clean if stage.name == "clean" else result[stage.name][first]
        for stage in stages
    }
    rows = []
    for stage in stages:
        guesses: Any = result.get(f"{stage.name}_prediction", [])[first]
        rows.append(
            pictures.Row(
                images[stage.name],
                stage.title.replace(", ", ",\n"),
                [names[g] if g < len(names) else f"class {g}" for g in guesses],
                [] if stage.correct is None else stage.correct[first],
            )
        )
    for stage in stages[1:]:
        apart, times = pictures.difference(images[stage.name], clean)
        what = "attacked" if stage.name == "perturbed" else stage.name
        rows.append(pictures.Row(apart, f"{what}\nminus {stages[0].title},\nx {times}"))
    pictures.save(pictures.grid(rows), folder / "figures/before_after.png")
