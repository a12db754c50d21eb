"""Rows, measured: who attacked what behind which defences, and how many images came out
right."""

from collections.abc import Iterator

import numpy as np

from pixeldefend import __version__
from pixeldefend.defences import DEFENCES, reject
from pixeldefend.defences.pipeline import upright
from pixeldefend.experiment import adversaries, data, parallel, tables, zoo
from pixeldefend.experiment.grid import (
    CLEAN,
    Adversary,
    Grid,
    Pipeline,
    pipeline,
    threat,
)
from pixeldefend.experiment.rows import accuracy
from pixeldefend.experiment.summaries import summary
from pixeldefend.experiment.tools import SECTIONS, Tools
from pixeldefend.experiment.workbench import Shown, Workbench
from pixeldefend.models import classifiers


def make(bench: Workbench, layout: Grid) -> None:
    """Makes all images that a table needs: attacked ones first, then purified ones."""
    cells = list(layout.cells())
    attacked = list(dict.fromkeys(adversary for _, adversary in cells))
    counts = [(len(layout.pipelines()), "pipeline"), (len(cells), "cell")]
    counts.append((len(attacked), "set"))
    *parts, sets = [f"{count} {what}{'s' * (count != 1)}" for count, what in counts]
    print(f"{', '.join(parts)}: {sets} of images", flush=True)
    for adversary in attacked:
        bench.attacked(adversary)
    for row, adversary in cells:
        if row.defences:
            bench.shown(adversary, row.defences, row.classifier)


def rows(bench: Workbench, layout: Grid, mark: str) -> Iterator[dict]:
    """A row for every cell, and one for every row's images under all its attacks.

    Args:
      bench: that has the images.
      layout: of the table.
      mark: of the run.
    """
    right = {}
    for row, adversary in layout.cells():
        line, right[row, adversary] = cell(bench, row, adversary, mark)
        yield line
    for text in layout.rows:
        for eps in layout.eps:
            row = pipeline(text, eps)
            own = layout.attacks_on(row, eps)
            if not own:
                continue
            found = [right[row, adversary] for adversary in own]
            threats = {threat(row, adversary) for adversary in own}
            yield worst(bench, row, eps, found, threats, mark)


def cell(
    bench: Workbench, row: Pipeline, adversary: Adversary, mark: str
) -> tuple[dict, np.ndarray]:
    """The row of a cell, and which images count as right, `[N]` bool."""
    shown = bench.shown(adversary, row.defences, row.classifier)
    right, shares = judge(bench, row, adversary, shown)
    passed, clean = shown.passed, bench.given.images
    moved = upright([DEFENCES[name] for name in row.defences], passed.images)
    figures: dict = {"distance": round(float(_distance(moved, clean)), 4)}
    figures |= adversaries.doubts(bench.attacked(adversary))
    if passed.log_prob is not None:
        figures |= summary(bench.bits_per_dim(passed.log_prob))
    if passed.rmse is not None:
        figures["rmse"] = round(float(np.mean(passed.rmse)), 3)
    line = (
        identity(bench.tools, row, adversary)
        | images(bench.given, len(right))
        | accuracy(right)
        | figures
        | shares
        | provenance(mark, shown.seconds)
        | {"device": shown.device}
    )
    return line, right


def judge(
    bench: Workbench, row: Pipeline, adversary: Adversary, shown: Shown
) -> tuple[np.ndarray, dict]:
    """Which images count as right `[N]`; where some are rejected, also the shares."""
    found = labelled(bench, row, adversary, shown)
    labels = bench.labels[: len(found)]
    if shown.passed.rejected is None:
        return found == labels, {}
    last = bench.tools.classifiers[row.classifier].model.classes
    attacked = adversary.attack != CLEAN
    right = reject.correct(found, labels, label=last, attacked=attacked)
    shares = reject.shares(found, labels, label=last)
    told = {name: round(float(share), 4) for name, share in shares.items()}
    return np.asarray(right), told


def labelled(
    bench: Workbench, row: Pipeline, adversary: Adversary, shown: Shown, draw: int = 0
) -> np.ndarray:
    """What images are taken for, `[N]`: a class, or K where they were rejected.

    Args:
      bench: that has the images.
      row: the classifier and its defences.
      adversary: the set.
      shown: it behind the defences.
      draw: as for `Workbench.shown`.
    """
    classes = bench.classes(row, adversary, shown.passed.images, draw)
    if shown.passed.rejected is None:
        return classes
    last = bench.tools.classifiers[row.classifier].model.classes
    return np.asarray(reject.with_rejection(classes, shown.passed.rejected, label=last))


def worst(
    bench: Workbench, row: Pipeline, eps: float, found: list, threats: set, mark: str
) -> dict:
    """The row of images that survive several attacks.

    Args:
      bench: that has the images.
      row: the classifier and its defences.
      eps: of the attacks.
      found: of each, which images were right, `[N]` bool; the first of all count.
      threats: who attacked.
      mark: of the run.
    """
    count = min(map(len, found))
    every = np.all([correct[:count] for correct in found], 0)
    known = threats - {None}
    # One who sees everything is among the attackers, or none is.
    least = "white-box" if "white-box" in known else "grey-box"
    return (
        identity(bench.tools, row, Adversary(tables.WORST, eps=eps))
        | {"threat": least if known else None}
        | images(bench.given, count)
        | accuracy(every)
        | provenance(mark, 0.0)
    )


def _distance(images: np.ndarray, clean: np.ndarray) -> float:
    """Mean L-infinity distance to the clean images, levels."""
    moved = np.abs(images.astype(np.float32) - clean[: len(images)])
    return moved.max((1, 2, 3)).mean()


def identity(tools: Tools, row: Pipeline, adversary: Adversary) -> dict:
    """The identity of a row: what was attacked by what, behind which defences.

    Args:
      tools: with the models of the row.
      row: "" for its classifier where there is none.
      adversary: who attacks.
    """
    model, card = None, None
    if row.classifier:
        model, _, card = tools.classifiers[row.classifier]
    weights = dict.fromkeys(SECTIONS)
    hashes = dict.fromkeys(SECTIONS)
    for kind in row.models:
        weights[kind] = tools.settings[SECTIONS[kind]]["weights"]
        hashes[kind] = tools.models[kind].card["sha256"][:8]
    found = {
        "dataset": tools.settings["dataset"],
        "classifier": row.classifier or None,
        "network": classifiers.describe(model)["architecture"] if model else None,
        "training": card.get("training", {}).get("training") if card else None,
        "density_model": weights["density_model"],
        "defence": row.defence,
        "attack": adversary.attack,
        "preset": adversary.preset,
        "eps_attack": in_row(adversary.eps),
        **tools.facts(row),
        "threat": threat(row, adversary),
        "source": adversary.source,
        "through": adversary.seen,
        "slope": adversary.gradient or None,
        "classifier_sha256": card["sha256"][:8] if card else None,
        "density_model_sha256": hashes["density_model"],
    }
    if adversary.fractional:
        found["levels"] = "fractional"
    for kind in row.models - {"density_model"}:
        found |= {kind: weights[kind], f"{kind}_sha256": hashes[kind]}
    if row.detectors:
        found["false_positive_rate"] = tools.settings["reject"]["false_positive_rate"]
        found["thresholds"] = {
            name: [float(f"{bar:.6g}") for bar in tools.thresholds[name]]
            for name in row.detectors
        }
    return found


def images(given: data.Input, count: int | None = None) -> dict:
    """What a row says of its clean images, the first `count`; None for all."""
    return {
        "input": given.source,
        "own": given.own,
        "images": zoo.fingerprint(given.images[:count])[:8],
    }


def in_row(eps: float) -> float | None:
    """eps for a row; None where it is infinite, which JSON does not know."""
    return eps if np.isfinite(eps) else None


def provenance(config: str, seconds: float) -> dict:
    """What a row says of its making; not compared."""
    return {
        "seconds": round(seconds, 3),
        "device": parallel.devices(),
        "config": config,
        "version": __version__,
    }
