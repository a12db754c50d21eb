"""The mode `sweep`: defences under attacks of many eps, the thesis's Tables 3 to 5."""

from typing import Any

import jax
import numpy as np

from pixeldefend import attacks, keys
from pixeldefend.defences import DEFENCES, puvae
from pixeldefend.defences.base import GRADIENTS
from pixeldefend.experiment import (
    data,
    files,
    grid,
    measure,
    parallel,
    published,
    sweeps,
    tables,
)
from pixeldefend.experiment.modes import evaluating, inputs
from pixeldefend.experiment.rows import write_rows
from pixeldefend.experiment.tools import Tools
from pixeldefend.experiment.workbench import Workbench
from pixeldefend.experiment.workdir import Workdir, user_errors


def sweep(config: inputs.Config, workdir: Workdir) -> None:
    """Measures defences under attacks at many eps, and attacks evading detectors."""
    settings = config.sweep
    with user_errors():
        layout = grid.read(settings.rows, settings.attacks, settings.eps)
        evading = _evading(config, layout)
        source = inputs.source(config, settings.input)
        tools, given = evaluating.prepared(
            config, layout, config.evaluate.threshold, source, settings.images
        )
    folder = workdir.open()
    inputs.tell_source(config, given)
    bench = Workbench(folder, given, tools)
    measure.make(bench, layout)
    rows = [measure.cell(bench, *one, workdir.hash)[0] for one in layout.cells()]
    rows += [_evaded(config, row, eps, bench, workdir.hash) for row, eps in evading]
    rows = [row | {"table_seconds": round(bench.seconds, 1)} for row in rows]
    write_rows(folder / "rows.jsonl", rows)
    tables.write(folder, lambda form: form(*sweeps.lines(rows)))
    arrays = _examples(config, layout, bench, tools, given)
    files.write_arrays(folder / "sweep.npz", **arrays)
    bench.tidy()
    legend = _legend(given, inputs.dataset(config))
    print(f"\n{sweeps.show(rows)}\n\n{legend}\nresults in {folder}")


def _evading(
    config: inputs.Config, layout: grid.Grid
) -> list[tuple[grid.Pipeline, float]]:
    """The rows with detectors, and the eps of attacks that have to get past them."""
    settings = config.sweep
    if settings.evading_images < 0:
        raise ValueError("sweep.evading_images must not be negative")
    if settings.examples < 0:
        raise ValueError("sweep.examples must not be negative")
    if settings.evading_slope not in GRADIENTS:
        raise ValueError(
            f"sweep.evading_slope must be one of {', '.join(GRADIENTS)}: "
            f"{settings.evading_slope!r}"
        )
    for eps in settings.evading_eps:
        attacks.check_eps(eps, "sweep.evading_eps")
    if not settings.evading_images:
        return []
    for text in settings.evading_rows:
        if text not in settings.rows:
            raise ValueError(f"sweep.evading_rows: {text!r} is not in sweep.rows")
        for eps in settings.evading_eps:
            _check_evaded(grid.pipeline(text, eps), layout)
    return [
        (grid.pipeline(text, eps), float(eps))
        for text in settings.evading_rows
        for eps in settings.evading_eps
    ]


def _check_evaded(row: grid.Pipeline, layout: grid.Grid) -> None:
    """Raises ValueError for a row that EVADE cannot attack."""
    detectors = row.detectors
    if not detectors or row.defences[: len(detectors)] != detectors:
        raise ValueError(f"evading {row}: detectors must come first")
    for name in row.defences[len(detectors) :]:
        if DEFENCES[name].always_seen:
            raise ValueError(
                f"evading {row}: attacks see only part of {name}, so it cannot stand "
                "behind detectors"
            )
    if row not in layout.pipelines():
        raise ValueError(f"evading {row}: its eps is not in sweep.eps")


def _evaded(
    config: inputs.Config, row: grid.Pipeline, eps: float, bench: Workbench, mark: str
) -> dict:
    """The row of a defence whose detectors the attack knows, too."""
    purifies = row.defences != row.detectors
    adversary = grid.Adversary(
        grid.EVADE,
        None,
        eps,
        source=row.classifier,
        through=row.defences,
        gradient=config.sweep.evading_slope if purifies else "",
        images=config.sweep.evading_images,
    )
    line, _ = measure.cell(bench, row, adversary, mark)
    success = np.mean(bench.attacked(adversary)["success"])
    return line | {"success": round(float(success), 4)}


def _examples(
    config: inputs.Config,
    layout: grid.Grid,
    bench: Workbench,
    tools: Tools,
    given: data.Input,
) -> dict[str, Any]:
    """Images for figures: one under rising eps, and what a PuVAE makes of a few."""
    count = min(config.sweep.examples, len(given.images))
    shown = {}
    for row in layout.pipelines():
        for column in layout.columns:
            plain = not column.gradient and column.attack in ("fgsm", "pgd")
            if row.defences or not plain or column.attack in shown:
                continue
            shown[column.attack] = [
                layout.adversary(row, column, eps) for eps in sorted(layout.eps)
            ]
    if not count or not shown:
        return {}
    # Seven of them, as many as fit across a page.
    some = np.unique(np.linspace(0, len(layout.eps) - 1, 7).round().astype(int))
    eps = np.asarray(sorted(layout.eps), np.float32)
    arrays: dict[str, Any] = {"strengths/eps": eps[some]}
    for name, sets in shown.items():
        images = [bench.attacked(sets[i])["images"][0] for i in some]
        arrays[f"strengths/{name}"] = np.stack(images)
    if "puvae" not in tools.models or "pgd" not in shown:
        return arrays
    strongest = shown["pgd"][-1]
    arrays |= {"eps": np.float32(strongest.eps), "labels": bench.labels[:count]}
    for name, adversary in (("clean", grid.Adversary(grid.CLEAN)), ("pgd", strongest)):
        few = bench.attacked(adversary)["images"][:count]
        rebuilt, distances = _every_label(tools, few)
        arrays[f"given/{name}"] = few
        arrays[f"rebuilt/{name}"] = np.round(rebuilt).astype(np.uint8)
        arrays[f"distances/{name}"] = distances
    return arrays


def _every_label(tools: Tools, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A PuVAE's reconstructions `[N, K, H, W, C]` and their distances `[N, K]`."""
    defence, its = tools.defence("puvae")
    assert isinstance(defence, puvae.Reconstruct)

    def run(params: Any, images: jax.Array, indices: jax.Array) -> Any:
        return puvae.reconstructions(
            defence.puvae,
            params["params"],
            images,
            keys.for_images(jax.random.key(tools.seed), indices),
            noise=defence.noise,
        )

    mapped = parallel.BatchMap(run, parallel.batch_for(tools.batch, len(images)))
    indices = np.arange(len(images), dtype=np.uint32)
    rebuilt, distances = mapped(its, images, indices)
    return rebuilt[:, 0], distances[:, 0]


def _legend(given: data.Input, dataset: str) -> str:
    theirs = ""
    if published.thesis(dataset, grid.CLEAN, "none") is not None:
        theirs = "In brackets the thesis's. "
    return (
        f"percent that count as right, on up to {len(given.images)} images "
        f"({given.source}); below it the 95 % interval (Wilson). Behind a detector, a "
        "rejected attacked image counts as right, as in the thesis; rows.jsonl has the "
        f"shares right, wrong and rejected separately. {theirs}Attacks see the bare "
        "classifier (grey-box), except those through the purifier; EVADE sees the "
        "detector as well (white-box)."
    )
