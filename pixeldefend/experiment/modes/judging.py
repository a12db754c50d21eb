"""The mode `judge`: a defence under a protocol of attacks that a reviewer accepts."""

import dataclasses
import time

import numpy as np
from etils import epath

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES
from pixeldefend.experiment import (
    files,
    grid,
    judging,
    measure,
    parallel,
    report,
    verdict,
)
from pixeldefend.experiment.modes import evaluating, inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.verdict import Line, Outcome, Verdict
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, user_errors
from pixeldefend.models import classifiers


def judge(config: inputs.Config, workdir: Workdir) -> None:
    """Judges a defence by attacks through it, beside the bare classifier."""
    settings = config.judge
    with user_errors():
        row, lines = _read(config)
        parallel.check_batch(settings.batch, "judge.batch")
        layout = grid.Grid((row.classifier, str(row)), (), (float(settings.eps),))
        source = inputs.source(config, settings.input)
        tools, given = evaluating.prepared(
            config, layout, settings.threshold, source, settings.images
        )
        tools = dataclasses.replace(tools, batch=settings.batch)
    folder = workdir.open()
    inputs.tell_source(config, given)
    print(f"{len(lines)} lines: {len(given.images)} images, {row}", flush=True)
    begun = time.monotonic()
    bench = Workbench(folder, given, tools)
    rows, outcomes = [], []
    for number, line in enumerate(lines, 1):
        its, outcome = _measured(bench, row, line, settings, workdir.hash)
        rows.append(its)
        outcomes.append(outcome)
        print(outcome.told(number, len(lines)), flush=True)
    found = Verdict(
        tuple(outcomes),
        float(settings.eps),
        row.classifier,
        " + ".join(row.defences),
        _loops(bench, row),
        config.reject.false_positive_rate if row.detectors else None,
        verdict.left_out([DEFENCES[n] for n in row.defences], lines),
    )
    threats = {its["threat"] for its in rows}
    rows.append(
        measure.worst(bench, row, found.eps, [found.correct], threats, workdir.hash)
    )
    rows = [its | {"table_seconds": round(bench.seconds, 1)} for its in rows]
    _write(folder, found)
    write_rows(folder / "rows.jsonl", rows)
    bench.tidy()
    print(f"\n{found.table()}\n")
    for note in found.notes():
        print(f"note: {note}")
    took = report.clock(time.monotonic() - begun)
    print(
        f"\n{found.paragraph()}\non {parallel.devices()}, in {took} with compilation; "
        f"results in {folder}"
    )


def _read(config: inputs.Config) -> tuple[grid.Pipeline, list[Line]]:
    """What is judged and how, checked."""
    settings = config.judge
    attacks.check_eps(settings.eps, "judge.eps", whole=True)
    if not 0 < settings.eps <= verdict.NO_BOUND:
        raise ValueError(f"judge.eps must be above 0 and at most 255: {settings.eps}")
    if settings.draws < 1:
        raise ValueError(f"judge.draws must be at least 1: {settings.draws}")
    if not config.classifier.weights:
        raise ValueError("the judge needs a classifier: give classifier.weights")
    text = " + ".join(filter(None, (config.classifier.weights, settings.defence)))
    row = grid.pipeline(text, settings.eps)
    kinds = [DEFENCES[name] for name in row.defences]
    try:
        return row, verdict.protocol(kinds, _budget(config), settings.gradients)
    except ValueError as error:
        raise ValueError(f"judge.defence, judge.gradients: {error}") from error


def _budget(config: inputs.Config) -> str:
    """Of the protocol: a glance on the bundled sample where nothing else is said."""
    budget = config.judge.budget
    if budget == "auto":
        source = inputs.source(config, config.judge.input)
        return "glance" if source == "sample" else "whole"
    if budget not in verdict.BUDGETS:
        known = ", ".join(("auto", *verdict.BUDGETS))
        raise ValueError(f"judge.budget must be one of {known}: {budget!r}")
    return budget


def adversary(row: grid.Pipeline, line: Line, eps: float) -> grid.Adversary:
    """Who attacks in a line of the protocol; `eps` is the protocol's."""
    eps = line.eps(eps)
    if line.kind == verdict.CLEAN:
        return grid.Adversary(grid.CLEAN)
    if line.kind == verdict.JOINT:
        return grid.Adversary(
            grid.EVADE,
            None,
            eps,
            source=row.classifier,
            through=row.defences,
            gradient=line.gradient,
        )
    column = grid.Column(line.attack, line.preset, gradient=line.gradient)
    alone = line.kind in (verdict.BARE, verdict.TRANSFER)
    seen = grid.Pipeline(row.classifier) if alone else row
    return grid.adversary_for(seen, column, eps)


def _measured(
    bench: Workbench, row: grid.Pipeline, line: Line, settings: inputs.Config, mark: str
) -> tuple[dict, Outcome]:
    """A line's row and outcome."""
    attacker = adversary(row, line, settings.eps)
    kept = verdict.standing(line, [DEFENCES[name] for name in row.defences])
    names = tuple(
        name for name, stands in zip(row.defences, kept, strict=True) if stands
    )
    judged = grid.Pipeline(row.classifier, names)
    its, _ = measure.cell(bench, judged, attacker, mark)
    random = any(DEFENCES[name].random for name in judged.defences)
    found = []
    for draw in range(settings.draws if random else 1):
        shown = bench.shown(attacker, judged.defences, judged.classifier, draw)
        found.append(measure.labelled(bench, judged, attacker, shown, draw))
    last = bench.tools.classifiers[row.classifier].model.classes
    labels = bench.labels[: len(found[0])]
    doubts = its.get("doubts", {})
    outcome = verdict.outcome(line, found, labels, last, its["seconds"], doubts)
    if outcome.draws is not None:
        its["draws"] = len(outcome.draws)
        its["accuracy_of_draws"] = round(float(outcome.draws.mean()), 4)
        its["accuracy_of_votes"] = round(float(outcome.correct.mean()), 4)
    return its, outcome


def _loops(bench: Workbench, row: grid.Pipeline) -> bool:
    """Whether the defended classifier has a loop in its forward pass."""
    model, variables, _ = bench.tools.classifiers[row.classifier]
    built = [bench.tools.defence(name, row.classifier) for name in row.defences]
    defences, params = zip(*built, strict=True) if built else ((), ())
    logits_fn = classifiers.logits_fn(model)
    return judging.loops(logits_fn, variables, defences, params, bench.given.images)


def _write(folder: epath.Path, found: Verdict) -> None:
    """The verdict as Markdown, as a table for LaTeX, and image by image."""
    notes = "".join(f"- {note}\n" for note in found.notes())
    page = f"{found.table(report.markdown_table)}\n\n{notes}\n{found.paragraph()}\n"
    for name, text in (
        ("verdict.md", page),
        ("verdict.tex", found.table(report.latex_table) + "\n"),
    ):
        with files.whole_file(folder / name) as temporary:
            temporary.write_text(text)
    files.write_arrays(
        folder / "verdict.npz",
        worst=found.correct,
        lines=np.stack([one.correct for one in found.outcomes]),
    )
