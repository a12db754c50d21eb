"""The mode `sweep`: defences under attacks of many eps, the thesis's Tables 3 to 5."""

import numpy as np

from pixeldefend import attacks, checkpoint, data, grid, report, sweeps
from pixeldefend.evaluate import accuracy, write_rows
from pixeldefend.run import evaluating, inputs
from pixeldefend.run.programs import Tools
from pixeldefend.run.workbench import Workbench
from pixeldefend.workdir import Workdir, user_errors


def sweep(config: inputs.Config, workdir: Workdir) -> None:
    """Measures defences under attacks of many eps, and past their detectors."""
    settings = config.sweep
    with user_errors():
        layout = grid.read(settings.rows, settings.attacks, settings.eps)
        evading = _evading(config)
        source = inputs.source(config, settings.input)
        tools, given = evaluating.prepared(
            config, workdir, layout, config.evaluate.threshold, source, settings.images
        )
    folder = workdir.open()
    inputs.tell_source(config, given)
    bench = Workbench(folder, given, tools)
    evaluating.make(bench, layout)
    rows = list(evaluating.cells(config, layout, bench, tools, given, workdir.hash))
    for row, eps in evading:
        rows.append(_evaded(config, row, eps, bench, tools, given, workdir.hash))
    rows = [row | {"table_seconds": round(bench.seconds, 1)} for row in rows]
    write_rows(folder / "rows.jsonl", rows)
    with checkpoint.whole_file(folder / "table.md") as temporary:
        temporary.write_text(report.markdown_table(*sweeps.lines(rows)) + "\n")
    bench.tidy()
    print(f"\n{sweeps.show(rows)}\n\n{_legend(given)}\nresults in {folder}")


def _evading(config: inputs.Config) -> list[tuple[grid.Pipeline, float]]:
    """The rows with detectors, and the eps of attacks that have to get past them."""
    settings = config.sweep
    if settings.evading_images < 0:
        raise ValueError("sweep.evading_images must not be negative")
    if settings.evading_slope not in attacks.SLOPES:
        raise ValueError(
            f"sweep.evading_slope must be one of {', '.join(attacks.SLOPES)}: "
            f"{settings.evading_slope!r}"
        )
    for eps in settings.evading_eps:
        attacks.check_eps(eps, "sweep.evading_eps")
    if not settings.evading_images:
        return []
    return [
        (row, float(eps))
        for eps in settings.evading_eps
        for row in dict.fromkeys(grid.pipeline(text, eps) for text in settings.rows)
        if row.rejects
    ]


def _evaded(
    config: inputs.Config,
    row: grid.Pipeline,
    eps: float,
    bench: Workbench,
    tools: Tools,
    given: data.Input,
    mark: str,
) -> dict:
    """The row of a defence whose detectors the attack knows, too."""
    purifies = set(row.defences) & set(grid.PURIFIERS)
    made = grid.Made(
        grid.EVADE,
        None,
        eps,
        source=row.classifier,
        through=row.defences,
        slope=config.sweep.evading_slope if purifies else "",
        images=config.sweep.evading_images,
    )
    found = bench.evading_all(made)
    shown = bench.shown(made, row.defences, row.classifier)
    right, shares = evaluating.judged(bench, tools, row, made, shown, given)
    count = len(right)
    return (
        evaluating.identity(config, tools, row, made)
        | inputs.identity(given._replace(images=given.images[:count]))
        | accuracy(right)
        | shares
        | {"success": round(float(np.mean(found["success"])), 4)}
        | inputs.provenance(mark, shown.seconds)
        | {"device": shown.device}
    )


def _legend(given: data.Input) -> str:
    return (
        f"percent that count as right, on up to {len(given.images)} images "
        f"({given.source}), ± half the width of the 95 % interval; behind a detector "
        "an attacked image that is rejected counts as right, as in the thesis: "
        "rows.jsonl has the shares right, wrong and rejected apart. In brackets the "
        "thesis's. Attacks see the bare classifier (grey-box) but for those through "
        "the purifier; EVADE sees the detector as well (white-box)."
    )
