"""The mode `evaluate`: every defence under every attack, as rows and tables."""

from collections.abc import Iterator

import numpy as np

from pixeldefend import (
    attacks,
    checkpoint,
    classifiers,
    data,
    grid,
    parallel,
    purification,
    report,
    squeeze,
    tables,
)
from pixeldefend.evaluate import accuracy, write_rows
from pixeldefend.run import inputs
from pixeldefend.run.workbench import Loaded, Tools, Workbench
from pixeldefend.workdir import Workdir, user_errors


def evaluate(config: inputs.Config, workdir: Workdir) -> None:
    """Measures every defence under every attack: the papers' tables."""
    settings = config.evaluate
    with user_errors():
        layout = grid.read(
            settings.rows, settings.attacks, settings.eps_attack, settings.sources
        )
        tools = read_tools(config, layout, settings.threshold)
        given = read_images(config, tools, settings.input, settings.images)
        if given.own:
            workdir.check_outside(settings.input)
        for name in ("adversarial", "purified", "predictions"):
            workdir.check_own(name)
        check_networks(tools, given)
    folder = workdir.open()
    inputs.tell_source(config, given)
    bench = Workbench(folder, given, tools)
    make(bench, layout)
    rows = list(_rows(config, layout, bench, tools, given, workdir.hash))
    rows = [row | {"table_seconds": round(bench.seconds, 1)} for row in rows]
    write_rows(folder / "rows.jsonl", rows)
    bench.tidy()
    table = tables.Table(layout, rows, config.dataset)
    (folder / "table.md").write_text(table.show(report.markdown_table) + "\n")
    print(f"\n{table.show()}\n\n{_legend(given, rows)}")
    print(f"results in {folder}")


def read_tools(config: inputs.Config, layout: grid.Grid, threshold: float) -> Tools:
    """What a table needs, loaded and checked.

    Args:
      config: whose models and settings are taken.
      layout: of the table.
      threshold: of the adaptive defence, see `inputs.threshold`.

    Raises:
      ValueError, FileNotFoundError: a model that is missing, damaged, of another kind
        or data set, or a setting out of range.
    """
    pipelines = layout.pipelines()
    settings = config.evaluate
    parallel.check_batch(settings.batch, "evaluate.batch")
    names = dict.fromkeys([row.classifier for row in pipelines] + [*layout.sources])
    loaded = {name: _classifier(config, name) for name in names}
    model = None
    if any(row.purifies for row in pipelines):
        model = Loaded(*inputs.density_model(config))
        inputs.check_dataset(config, config.pixelcnn.weights, model.card)
        if any("purify_adaptive" in row.defences for row in pipelines):
            threshold = inputs.threshold(threshold, config.pixelcnn.weights, model.card)
        if config.purify.solver not in purification.SOLVERS:
            raise ValueError(
                f"unknown solver {config.purify.solver!r}: one of "
                f"{', '.join(purification.SOLVERS)}"
            )
        purification.width_for(config.purify.eps)
    if any("squeeze" in row.defences for row in pipelines):
        probe = np.zeros((1, 2, 2, 1), np.uint8)
        squeeze.squeeze_features(
            probe, colours=config.squeeze.colours, preset=config.squeeze.preset
        )
    shapes = {tuple(one.card["image_shape"]) for one in loaded.values()}
    if len(shapes) > 1:
        raise ValueError(f"the classifiers take images of different shapes: {shapes}")
    return Tools(
        classifiers=loaded,
        density_model=model,
        eps_defend=config.purify.eps,
        solver=config.purify.solver,
        threshold=threshold,
        colours=config.squeeze.colours,
        median=config.squeeze.preset,
        seed=config.seed,
        batch=settings.batch,
    )


def _classifier(config: inputs.Config, name: str) -> Loaded:
    model, variables, card = checkpoint.load_released(name)
    if card["kind"] != "classifier":
        raise ValueError(f"{name} is no classifier")
    inputs.check_dataset(config, name, card)
    return Loaded(model, variables, card)


def read_images(
    config: inputs.Config, tools: Tools, source: str, count: int
) -> data.Input:
    """The first `count` images of a source, with labels that all classifiers know.

    Raises:
      ValueError: no labels, or as for `data.read_input`.
    """
    if source == "auto":
        source = "test" if config.data_dir else "sample"
    name, first = next(iter(tools.classifiers.items()))
    shape = tuple(first.card["image_shape"])
    given = data.read_input(config.dataset, source, count, shape, config.data_dir)
    if given.labels is None:
        raise ValueError(
            f"{source} has no labels, so there is no accuracy: give an "
            ".npz with `images` and `labels`"
        )
    for name, one in tools.classifiers.items():
        inputs.check_labels(given, name, one.model.classes)
    return given


def check_networks(tools: Tools, given: data.Input) -> None:
    """Raises ValueError where a classifier's logits are no finite numbers."""
    for name, (model, variables, _) in tools.classifiers.items():
        try:
            attacks.check_logits(
                classifiers.logits_fn(model), variables, given.images[:2]
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def make(bench: Workbench, layout: grid.Grid) -> None:
    """Makes all images that a table needs: attacked ones first, then purified ones."""
    cells = list(layout.cells())
    attacked = list(dict.fromkeys(made for _, made in cells))
    purified = list(
        dict.fromkeys((made, row.defences) for row, made in cells if row.purifies)
    )
    print(
        f"{len(layout.pipelines())} pipelines, {len(cells)} cells: "
        f"{len(attacked)} sets of images, {len(purified)} of them to be purified",
        flush=True,
    )
    for made in attacked:
        bench.attacked(made)
    for made, defences in purified:
        bench.shown(made, defences)


def _rows(
    config: inputs.Config,
    layout: grid.Grid,
    bench: Workbench,
    tools: Tools,
    given: data.Input,
    mark: str,
) -> Iterator[dict]:
    """A row for every cell, and one for every row's images under all its attacks."""
    right = {}
    for row, made in layout.cells():
        right[row, made] = bench.correct(row, made)
        shown = bench.shown(made, row.defences)
        count = len(shown.images)
        cell = {"distance": float(_distance(shown.images, given.images))}
        if shown.log_probs is not None:
            bits = bench.bits_per_dim(shown.log_probs)
            cell["bits_per_dim"] = float(np.mean(bits))
        yield (
            _identity(config, tools, row, made)
            | inputs.identity(given._replace(images=given.images[:count]))
            | accuracy(right[row, made])
            | cell
            | inputs.provenance(mark, shown.seconds)
        )
    for text in layout.rows:
        for eps in layout.eps:
            row = grid.pipeline(text, eps)
            found = [right[row, made] for made in layout.attacks_on(row, eps)]
            if not found:
                continue
            count = min(map(len, found))
            every = np.all([correct[:count] for correct in found], 0)
            yield (
                _identity(config, tools, row, grid.Made(tables.WORST, eps=eps))
                | {"threat": "grey-box" if row.defences else "white-box"}
                | inputs.identity(given._replace(images=given.images[:count]))
                | accuracy(every)
                | inputs.provenance(mark, 0.0)
            )


def _distance(images: np.ndarray, clean: np.ndarray) -> float:
    """Mean L-infinity distance to the clean images, levels."""
    moved = np.abs(images.astype(int) - clean[: len(images)])
    return moved.max((1, 2, 3)).mean()


def _identity(
    config: inputs.Config, tools: Tools, row: grid.Pipeline, made: grid.Made
) -> dict:
    """The identity of a row."""
    model, _, card = tools.classifiers[row.classifier]
    adaptive = "purify_adaptive" in row.defences
    return {
        "dataset": config.dataset,
        "classifier": row.classifier,
        "network": classifiers.describe(model)["architecture"],
        "training": card["training"]["training"],
        "density_model": config.pixelcnn.weights if row.purifies else None,
        "defence": row.defence,
        "attack": made.attack,
        "preset": made.preset,
        "eps_attack": inputs.in_row(made.eps),
        "eps_defend": tools.eps_defend if row.purifies else 0,
        "threshold": tools.threshold if adaptive else 0.0,
        "threat": grid.threat(row, made),
        "source": made.source,
        "through": made.seen,
    }


def _legend(given: data.Input, rows: list[dict]) -> str:
    """What the tables show, and what they do not."""
    counts = sorted({row["n"] for row in rows})
    images = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"accuracy in percent with half of its 95 % interval on {images} images "
        f"({given.source}); in brackets the paper's and the difference. strongest: the "
        "least of the attacks; every attack: images that survive all of them.\n"
        "The attacks see the bare classifier, or it behind a median filter, and no "
        "purifier (grey-box): an attacker who looks through the purifier does more "
        f"harm.\non {parallel.devices()}"
    )
