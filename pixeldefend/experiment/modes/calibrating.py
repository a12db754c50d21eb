"""The mode `calibrate`: the thresholds of detectors; others have files of their own."""

import dataclasses
import os
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from pixeldefend.defences import DEFENCES, reject
from pixeldefend.experiment import data, grid, measure, parallel, report, zoo
from pixeldefend.experiment.modes import evaluating, grades, inputs, thresholds
from pixeldefend.experiment.rows import accuracy, write_rows
from pixeldefend.experiment.tools import SECTIONS, Tools
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, command_line, user_errors


def calibrate(config: inputs.Config, workdir: Workdir) -> None:
    """Chooses thresholds or grades of defences on validation images."""
    settings = config.calibrate
    if "purify_adaptive" in settings.defences:
        return thresholds.choose(config, workdir)
    if "purify_graded" in settings.defences:
        return grades.choose(config, workdir)
    with user_errors():
        _check(settings)
        tools, given = _prepared(config)
        folders = {
            name: zoo.find_released(_weights(config, name))
            for name in settings.defences
        }
        for name, place in folders.items() if settings.keep else ():
            zoo.check_writable(place)
            told = zoo.load_card(place).get("validation", {})
            if told.get("detector", name) != name:
                raise ValueError(
                    f"{place} already stores the scores of {told['detector']}: "
                    f"calibrate {name} on a copy of the model, or without keep"
                )
    folder = workdir.open()
    rows = []
    for name in settings.defences:
        found = {
            part: _scores(folder / part, images, tools, name, config)
            for part, images in given.items()
        }
        scores, others = found["calibration"], found["test"]
        one = list(_rows(config, tools, name, scores, others, given["test"]))
        rows += [row | measure.provenance(workdir.hash, 0.0) for row in one]
        if settings.keep:
            told = {
                "detector": name,
                "input": given["calibration"].source,
                "n": len(given["calibration"].images),
                "classifier": config.classifier.weights,
                "draws": [config.puvae.samples, config.puvae.noise],
                "device": parallel.devices(),
                "command": command_line(),
            }
            zoo.save_validation(folders[name], scores, told)
    write_rows(folder / "rows.jsonl", rows)
    print(report.table(*table(rows)))
    print(f"results in {folder}")


def table(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table, from rows of this mode."""
    header = ["detector", "asked for", "clean images rejected (95 %)", "n"]
    header += ["thresholds"]
    lines = [
        [
            row["detector"],
            f"{100 * row['false_positive_rate']:g} %",
            f"{100 * row['rejected']:.2f} % ({100 * row['low']:.2f} to "
            f"{100 * row['high']:.2f})",
            str(row["n"]),
            ", ".join(f"{bar:.4g}" for bar in row["thresholds"]),
        ]
        for row in rows
    ]
    return header, lines


def _weights(config: inputs.Config, detector: str) -> str:
    return config[SECTIONS[DEFENCES[detector].model]].weights


def _check(settings: inputs.Config) -> None:
    """Raises ValueError for what the section cannot mean."""
    if not settings.defences:
        raise ValueError("calibrate.defences is empty: nothing to calibrate")
    for name in settings.defences:
        known = [one for one, kind in DEFENCES.items() if kind.detects]
        if name not in known:
            raise ValueError(f"unknown detector {name!r}: one of {', '.join(known)}")
        if not DEFENCES[name].model:
            raise ValueError(f"{name} takes no model: its build sets the threshold")
        if settings.defences.count(name) > 1:
            raise ValueError(f"calibrate.defences has {name} twice")
    for rate in settings.rates:
        if not 0 < rate < 1:
            raise ValueError(f"calibrate.rates must be between 0 and 1: {rate}")
    if settings.images < 0:
        raise ValueError(f"calibrate.images must not be negative: {settings.images}")


def _prepared(config: inputs.Config) -> tuple[Tools, dict[str, data.Input]]:
    """Models, and the images to score: for thresholds, and to check them on."""
    settings = config.calibrate
    row = grid.Pipeline(config.classifier.weights, tuple(settings.defences))
    tools = evaluating.tools_for(config, [row])
    _, _, card = tools.classifiers[config.classifier.weights]
    given = {
        part: inputs.read(
            config,
            inputs.source(config, settings[field], f"calibrate.{field}"),
            settings.images,
            card["image_shape"],
        )
        for part, field in (("calibration", "input"), ("test", "test"))
    }
    return tools, given


def _scores(
    folder: os.PathLike,
    given: data.Input,
    tools: Tools,
    detector: str,
    config: inputs.Config,
) -> np.ndarray:
    """`[D, N]`, kept in `folder`."""
    tools = dataclasses.replace(
        tools, batch=parallel.batch_for(tools.batch, len(given.images))
    )
    bench = Workbench(folder, given, tools)
    classifier = config.classifier.weights
    return bench.suspicion(grid.Adversary(grid.CLEAN), detector, classifier).T


def _rows(
    config: inputs.Config,
    tools: Tools,
    detector: str,
    scores: np.ndarray,
    others: np.ndarray,
    given: data.Input,
) -> Iterator[dict]:
    """For each rate how many of the other images are rejected."""
    model = tools.models[DEFENCES[detector].model]
    for rate in config.calibrate.rates:
        bars = reject.thresholds(jnp.asarray(scores), false_positive_rate=rate)
        out = np.asarray(reject.rejected(others, bars))
        figures = accuracy(out)
        yield (
            {
                "dataset": inputs.dataset(config),
                "detector": detector,
                "weights": _weights(config, detector),
                "sha256": model.card["sha256"][:8],
                "classifier": config.classifier.weights,
                "false_positive_rate": rate,
                "thresholds": [float(f"{bar:.6g}") for bar in bars],
                "calibrated_on": config.calibrate.input,
                "n_calibration": scores.shape[1],
            }
            | measure.images(given)
            | {"n": figures["n"], "rejected": figures["accuracy"]}
            | {"low": figures["low"], "high": figures["high"]}
        )
