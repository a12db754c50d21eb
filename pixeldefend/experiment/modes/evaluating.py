"""The mode `evaluate`: every defence under every attack, as rows and tables."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES, magnet, reject
from pixeldefend.experiment import (
    data,
    grid,
    measure,
    own_classifier,
    parallel,
    tables,
    zoo,
)
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.tools import SECTIONS, Tools, check_defence
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers


def evaluate(config: inputs.Config, workdir: Workdir) -> None:
    """Measures every defence under every attack: the papers' tables."""
    settings = config.evaluate
    with user_errors():
        layout = grid.read(
            settings.rows, settings.attacks, settings.eps_attack, settings.sources
        )
        source = inputs.source(config, settings.input)
        tools, given = prepared(
            config, layout, settings.threshold, source, settings.images
        )
    folder = workdir.open()
    inputs.tell_source(config, given)
    bench = Workbench(folder, given, tools)
    measure.make(bench, layout)
    rows = list(measure.rows(bench, layout, workdir.hash))
    rows = [row | {"table_seconds": round(bench.seconds, 1)} for row in rows]
    table = tables.Table(layout, rows, inputs.dataset(config))
    tables.write(folder, table.show)
    write_rows(folder / "rows.jsonl", rows)
    bench.tidy()
    legend = _legend(given, rows, table)
    print(f"\n{table.show()}\n\n{legend}\nresults in {folder}")


def prepared(
    config: inputs.Config,
    layout: grid.Grid,
    threshold: float,
    source: str,
    count: int,
) -> tuple[Tools, data.Input]:
    """All that a table needs, read and checked before anything is written.

    Args:
      config: whose models and settings are taken.
      layout: of the table.
      threshold: of the adaptive defence, see `inputs.threshold`.
      source: of the images, as for `data.read_input`.
      count: images at most; 0 for all.

    Raises:
      ValueError, TypeError, OSError: what does not fit, or is not there.
    """
    sources = [name for eps in layout.eps for name in layout.sources_at(eps)]
    pipelines = layout.pipelines()
    tools = tools_for(config, pipelines, sources, threshold)
    bars = thresholds(config, tools, pipelines)
    tools = dataclasses.replace(tools, thresholds=bars)
    shape = tuple(next(iter(tools.classifiers.values())).card["image_shape"])
    for row in pipelines:
        for name in row.defences:
            check_defence(*tools.defence(name, row.classifier), shape)
    given = _images(config, tools, source, count)
    for name, (model, variables, _) in tools.classifiers.items():
        try:
            attacks.check_logits(
                classifiers.logits_fn(model), variables, given.images[:2]
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return tools, given


def tools_for(
    config: inputs.Config,
    pipelines: list[grid.Pipeline],
    sources: list[str] | tuple[str, ...] = (),
    threshold: float = 0.0,
) -> Tools:
    """Models and settings, loaded and checked; what costs nothing to check first.

    Args:
      config: whose models and settings are taken.
      pipelines: the classifiers and what stands in front of them.
      sources: other classifiers.
      threshold: as for `prepared`.
    """
    parallel.check_batch(config.evaluate.batch, "evaluate.batch")
    kinds = sorted(set().union(*(row.models for row in pipelines)))
    models = {kind: inputs.defence_model(config, kind) for kind in kinds}
    if any("purify_adaptive" in row.defences for row in pipelines):
        card = models["density_model"].card
        threshold = inputs.threshold(threshold, config.pixelcnn.weights, card)
    settings = config.to_dict() | {"dataset": inputs.dataset(config)}
    settings["purify"]["threshold"] = threshold
    names = dict.fromkeys([*(row.classifier for row in pipelines), *sources])
    for name in names:  # before the long reading of those that are there
        if not own_classifier.is_named(name):
            zoo.find_released(name)
    loaded = {name: _classifier(config, name) for name in names}
    every = [*loaded.values(), *models.values()]
    shapes = {tuple(one.card["image_shape"]) for one in every}
    if len(shapes) > 1:
        raise ValueError(f"the models take images of different shapes: {shapes}")
    tools = Tools(loaded, models, settings, config.seed, config.evaluate.batch)
    for row in pipelines:
        for name in row.defences:
            tools.defence(name, row.classifier)
    return tools


def thresholds(
    config: inputs.Config, tools: Tools, pipelines: list[grid.Pipeline]
) -> dict[str, Any]:
    """Of the detectors in a table: their own, or for the rate of false positives that
    is wanted, from the scores of validation images beside their model."""
    found: dict[str, Any] = {}
    rate = config.reject.false_positive_rate
    for row in pipelines:
        for name in row.detectors:
            if name in found:
                continue
            _, params = tools.defence(name, row.classifier)
            if "threshold" in params:
                found[name] = np.asarray(params["threshold"])
                continue
            scores = _validation_scores(config, name, row.classifier)
            bars = reject.thresholds(jnp.asarray(scores), false_positive_rate=rate)
            found[name] = np.asarray(bars)
    return found


def _validation_scores(
    config: inputs.Config, detector: str, classifier: str
) -> np.ndarray:
    """Those beside a detector's model; ValueError where they are none of its own."""
    kind = DEFENCES[detector].model
    if not kind:
        raise ValueError(
            f"{detector} takes no model to store scores with: its build must set a "
            "threshold"
        )
    weights = config[SECTIONS[kind]].weights
    scores = zoo.load_validation(weights)
    again = "--mode=calibrate --config.calibrate.keep=True and a --config.data_dir"
    if scores is None:
        raise ValueError(
            f"{weights} has no scores of validation images, so {detector} has no "
            f"threshold: make them with {again}"
        )
    card = zoo.load_card(zoo.find_released(weights))
    told = card.get("validation", {})
    if told.get("detector", detector) != detector:
        raise ValueError(
            f"the scores stored with {weights} are {told['detector']}'s, not "
            f"{detector}'s: copy the model, and make them there with {again}"
        )
    draws = [config.puvae.samples, config.puvae.noise]
    known = told.get("draws", "that were not recorded")
    if detector == "reject_rmse" and known != draws:
        raise ValueError(
            f"the thresholds of {weights} are for puvae.samples and puvae.noise "
            f"{known}, not {draws}: choose new ones with --mode=calibrate"
        )
    known = told.get("classifier", "a classifier that was not recorded")
    if detector == "reject_magnet" and known != classifier:
        if not any(one.temperature for one in magnet.detectors_of(zoo.make(card))):
            return scores  # which do not ask a classifier
        raise ValueError(
            f"the thresholds of {weights} are for {known}, not "
            f"{classifier}: choose new ones with --mode=calibrate"
        )
    return scores


def _classifier(config: inputs.Config, name: str) -> zoo.Loaded:
    found = inputs.classifier_named(config, name)
    inputs.check_dataset(config, name, found.card)
    if "training" not in found.card.get("training", {}):
        raise ValueError(f"the card of {name} does not say how it was trained")
    return found


def _images(config: inputs.Config, tools: Tools, source: str, count: int) -> data.Input:
    """The first images of a source, with labels that all classifiers know."""
    first = next(iter(tools.classifiers.values()))
    given = inputs.read(config, source, count, first.card["image_shape"])
    if given.labels is None:
        raise ValueError(
            f"{source} has no labels, so there is no accuracy: give an "
            ".npz with `images` and `labels`"
        )
    for name, one in tools.classifiers.items():
        inputs.check_labels(given, name, one.model.classes)
    return given


def _legend(given: data.Input, rows: list[dict], table: tables.Table) -> str:
    """What the tables show, and what they do not."""
    counts = sorted({row["n"] for row in rows})
    images = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    few = ", n where there are fewer" if len(counts) > 1 else ""
    theirs = "; in brackets the paper's" if table.published else ""
    five = " in the paper" if table.five else ""
    squeezed = any("squeeze" in row["defence"].split("+") for row in rows)
    median = ", or the classifier behind a median filter" * squeezed
    rejecting = ""
    if any("rejected" in row for row in rows):
        rejecting = (
            " Behind a detector, a rejected image counts as right if attacked and as "
            "wrong if clean; rows.jsonl has each share separately."
        )
    return (
        f"accuracy in percent on {images} images ({given.source}){few}{theirs}; below "
        "it the 95 % interval (Wilson). strongest: the lowest accuracy under any of "
        f"the attacks{five}; every attack: share of the first images, as many as the "
        "smallest column has, that withstand all attacks.\n"
        f"Attacks see the bare classifier{median}. Only those marked (bpda) or the "
        "like see the purifier (white-box); under the others (grey-box) it looks safer "
        f"than it is.{rejecting}\n"
        f"on {parallel.devices()}"
    )
