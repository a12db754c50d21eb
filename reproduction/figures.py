"""The mode `figures`: every picture of the papers, from arrays and rows kept."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from pixeldefend import detection
from pixeldefend.density import likelihood
from pixeldefend.experiment import data, files, foreign
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import WORST, read_rows
from pixeldefend.experiment.workdir import Workdir, user_errors
from reproduction import plots, schematics, thesis_figures
from reproduction.plots import Arrays, Picture

# Figures 10 and 11: the paper's eps, by data set.
_GRIDS = {"fashion_mnist": ("figure_10", "25"), "cifar10": ("figure_11", "8")}
_SAMPLES = {"fashion_mnist": "figure_08", "cifar10": "figure_09"}
_EPS = "8"
_SIDES = (
    "grey-box: sees the classifier, the strongest attack",
    "white-box: sees the purifier too, all attacks, image by image",
)
_TRUE = 48  # images shown beside samples


def figures(config: inputs.Config, workdir: Workdir) -> None:
    """Draws the papers' figures, for all data sets with stored arrays."""
    settings = config.figures
    with user_errors():
        source = files.expanded(settings.results)
        pictures = list(_pictures(source))
        if not pictures:
            raise ValueError(
                f"no arrays under {source / 'arrays'}: --mode=detect makes them as "
                "detection.npz, and --mode=sweep as sweep.npz; copy that there as "
                "detection_DATASET.npz or sweep_DATASET.npz, or give "
                "--config.figures.results"
            )
        to = settings.to
        folder = files.output_folder(to, "figures.to") if to else None
    folder = folder or workdir.open()
    for name, draw in pictures:
        figure = draw()
        for ending in ("png", "pdf"):
            plots.save(figure, folder / f"{name}.{ending}")
    print(f"{len(pictures)} figures: {', '.join(name for name, _ in pictures)}")
    print(f"results in {folder}")


def _pictures(results: epath.Path) -> Iterator[Picture]:
    """What can be drawn: names and how."""
    swept = False
    for dataset in plots.DATASETS:
        for read, file, name, draw in (
            (_arrays, "purifiers", "figure_05", _purifiers),
            (_arrays, "samples", _SAMPLES.get(dataset), _samples),
            (_arrays, "detection_report", "report_1", _reported_ranks),
            (_arrays, "detection_report", "report_3", _probabilities),
            (_rows, "drift", "drift", _drift),
            (_rows, "sizes", "sizes", _training),
            (_rows, "conditionals", "conditionals", _training),
        ):
            found = read(results, f"{file}_{dataset}")
            if found and name:
                yield f"{name}_{dataset}", partial(draw, dataset, found)
        if seen := _rows(results, f"white_box_{dataset}"):
            blind = _rows(results, f"evaluate_{dataset}")
            blind = [row for row in blind if row["threat"] == "grey-box"]
            yield f"white_box_{dataset}", partial(_white_box, dataset, seen + blind)
        yield from _of_detection(dataset, _arrays(results, f"detection_{dataset}"))
        swept_arrays = _arrays(results, f"sweep_{dataset}")
        swept_rows = _rows(results, f"sweep_{dataset}")
        for name, draw in thesis_figures.pictures(dataset, swept_arrays, swept_rows):
            swept = True
            yield f"{name}_{dataset}", draw
    if swept:  # what explains the others
        yield "thesis_figure_02", schematics.climbs
        yield "thesis_figure_03", schematics.margins
        yield "thesis_figure_04", partial(schematics.puvae, detector=False)
        yield "thesis_figure_05", partial(schematics.puvae, detector=True)


def _of_detection(dataset: str, found: Arrays) -> Iterator[Picture]:
    for number, draw, wanted in (
        ("01", _attacked, "images"),
        ("02a", _densities, "log_probs"),
        ("02b", _errors, "log_probs"),
        ("03", partial(_ranks, stage="none"), "log_probs"),
        ("04", _before_and_after, "images"),
        ("06", _curves, "log_probs"),
        ("07", partial(_ranks, stage="purify"), "log_probs"),
    ):
        if _sets(found, _EPS, "none", wanted):
            yield f"figure_{number}_{dataset}", partial(draw, dataset, found)
    name, eps = _GRIDS.get(dataset, ("", ""))
    if f"{eps}/fgsm/none/images" in found:
        yield f"{name}_{dataset}", partial(_grid, dataset, found, eps)


def _arrays(results: epath.Path, name: str) -> Arrays:
    """The arrays of a file; none if there is no such file.

    Raises:
      ValueError: it cannot be read.
    """
    path = results / "arrays" / f"{name}.npz"
    if not path.exists():
        return {}
    foreign.check_regular(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except Exception as error:  # of which there are a dozen kinds
        raise ValueError(f"{path} cannot be read: {error}") from error


def _rows(results: epath.Path, name: str) -> list[dict]:
    """The rows of a file; none if there is no such file."""
    path = results / f"{name}.jsonl"
    return read_rows(path) if path.exists() else []


def _sets(found: Arrays, eps: str, stage: str, what: str) -> dict[str, np.ndarray]:
    """By title: clean images first, then the attacks in the order of the run."""
    sets = {}
    for key, array in found.items():
        parts = key.split("/")
        if len(parts) == 4 and (parts[0], parts[2], parts[3]) == (eps, stage, what):
            sets[plots.title_of(parts[1])] = array
    return sets


def _example(found: Arrays, eps: str) -> int:
    """The first image that every attack fools (but noise) and purification mends most
    often among those kept."""
    before = _sets(found, eps, "none", "probabilities")
    after = _sets(found, eps, "purify", "probabilities")
    count = min(map(len, before.values()))  # an attack may have had fewer
    label = found["examples/labels"][:count]
    before, after = (
        {title: rows[:count] for title, rows in sets.items()}
        for sets in (before, after)
    )
    right = {k: p.argmax(-1) == label for k, p in before.items()}
    mended = np.sum([p.argmax(-1) == label for p in after.values()], 0)
    fooled = np.sum([~r for k, r in right.items() if k not in ("clean", "RAND")], 0)
    clean = right["clean"].astype(int)
    return int(np.argmax(clean * (100 * fooled + mended)))


def _images(dataset: str, found: Arrays, text: str, *stages: str) -> Figure:
    """One image at these stages, a row each, and what the classifier takes it for."""
    i = _example(found, _EPS)
    rows, texts = [], []
    for stage in stages:
        shown = _sets(found, _EPS, stage, "images")
        rows.append([images[i] for images in shown.values()])
        guesses = _sets(found, _EPS, stage, "probabilities").values()
        names = data.CLASS_NAMES[dataset]
        texts.append([names[int(guess[i].argmax())] for guess in guesses])
    return plots.named(dataset, text, plots.images(rows, list(shown), texts))


def _attacked(dataset: str, found: Arrays) -> Figure:
    text = f"attacks of eps {_EPS}; below, what the ResNet takes it for"
    return _images(dataset, found, text, "none")


def _before_and_after(dataset: str, found: Arrays) -> Figure:
    text = f"attacks of eps {_EPS} (above) and purified (below)"
    return _images(dataset, found, text, "none", "purify")


def _densities(dataset: str, found: Arrays) -> Figure:
    shape = found["examples/clean"].shape[1:]
    scores = {
        title: np.asarray(likelihood.to_bits_per_dim(log_probs, shape))
        for title, log_probs in _sets(found, _EPS, "none", "log_probs").items()
    }
    text = f"likelihood, attacks of eps {_EPS}"
    return plots.named(dataset, text, plots.densities(scores))


def _errors(dataset: str, found: Arrays) -> Figure:
    correct = _sets(found, _EPS, "none", "correct")
    text = f"test error of the ResNet, attacks of eps {_EPS}"
    return plots.named(dataset, text, plots.errors(correct))


def _only_eps(found: Arrays) -> str:
    """The first eps that there is."""
    return next(key.split("/")[0] for key in found if key.endswith("none/log_probs"))


def _ranks(dataset: str, found: Arrays, stage: str, what: str = "") -> Figure:
    reference, eps = found["reference"], _only_eps(found)
    ranks = {
        title: np.asarray(detection.p_values(log_probs, reference))
        for title, log_probs in _sets(found, eps, stage, "log_probs").items()
    }
    text = f"p-values, {what or f'attacks of eps {eps}'}"
    text += ", purified" if stage == "purify" else ""
    return plots.named(dataset, text, plots.p_values(ranks))


def _reported_ranks(dataset: str, found: Arrays) -> Figure:
    return _ranks(dataset, found, "none", "the report's attacks")


def _curves(dataset: str, found: Arrays) -> Figure:
    panels = {
        title: _sets(found, _EPS, stage, "log_probs")
        for title, stage in (("(a) as attacked", "none"), ("(b) purified", "purify"))
    }
    text = f"detection of attacks of eps {_EPS}"
    return plots.named(dataset, text, plots.curves(found["reference"], panels))


def _grid(dataset: str, found: Arrays, eps: str) -> Figure:
    parts = {
        f"FGSM, eps {eps}": found[f"{eps}/fgsm/none/images"],
        f"purified, eps {int(found['eps_defend'])}": found[f"{eps}/fgsm/purify/images"],
    }
    return plots.named(dataset, "", plots.grids(parts, 12))


def _samples(dataset: str, found: Arrays) -> Figure:
    parts = {
        "test images": data.sample(dataset)[0][:_TRUE],
        "samples of the density model": found["images"][:_TRUE],
    }
    return plots.named(dataset, "", plots.grids(parts, 12))


def _purifiers(dataset: str, found: Arrays) -> Figure:
    scores = {
        "clean": found["clean"],
        "FGSM": found["perturbed"],
        "L-BFGS-B": found["lbfgs_b"].ravel(),
        "PixelDefend": found["purified"],
    }
    return plots.named(dataset, "two ways of purifying", plots.densities(scores))


def _probabilities(dataset: str, found: Arrays) -> Figure:
    eps = _only_eps(found)
    before = _sets(found, eps, "none", "probabilities")
    after = _sets(found, eps, "purify", "probabilities")
    # The first of those that the classifier gets right as they are.
    labels = found["examples/labels"]
    i = int(np.argmax(before["clean"].argmax(-1) == labels))
    shown = {
        title: (before[title][i], after[title][i])
        for title in before
        if len(before[title]) > i
    }
    figure = plots.probabilities(shown, data.CLASS_NAMES[dataset], int(labels[i]))
    text = "what the ResNet makes of one image (shaded: its class)"
    return plots.named(dataset, text, figure)


def _white_box(dataset: str, rows: list[dict]) -> Figure:
    """Accuracies under the strongest attacks by eps, by who attacks.

    Of every purifier, and of the classifiers that an attacker who sees everything was
    measured on; on these every attack sees everything.
    """
    panels: dict[str, dict[str, dict]] = {}
    for row in sorted(rows, key=lambda row: row["eps_attack"] or 0):
        purifies, sees = "purify" in row["defence"], row["threat"] == "white-box"
        if not sees and not (purifies and row["threat"] == "grey-box"):
            continue
        # An attacker who sees everything has all attacks, and keeps what worked.
        if (row["attack"] == WORST) != sees:
            continue
        panel = panels.setdefault(f"eps {row['eps_attack']:g}", {})
        group = panel.setdefault(_name(row), dict.fromkeys(_SIDES if purifies else ()))
        cell = tuple(100 * row[name] for name in ("accuracy", "low", "high"))
        group[_SIDES[sees]] = min(group.get(_SIDES[sees]) or cell, cell)
    names = dict.fromkeys(name for panel in panels.values() for name in panel)
    kinds = ("PixelDefend", "adversarial")
    order = sorted(names, key=lambda name: (*(kind in name for kind in kinds), name))
    panels = {
        title: {name: panel[name] for name in order if name in panel}
        for title, panel in panels.items()
    }
    return plots.named(dataset, "accuracy by attacker", plots.attackers(panels, _SIDES))


def _name(row: dict) -> str:
    """Of a classifier and its defence, for a person; in lines."""
    network = {"resnet": "ResNet", "vgg": "VGG"}.get(row["network"], row["network"])
    kind = row["training"].removeprefix("adversarial_")
    lines = [network]
    if kind != row["training"]:
        lines.append(f"adversarial {kind.upper()}")
    elif kind != "normal":
        lines.append(kind.replace("_", " "))
    defence = row["defence"].replace("purify", "PixelDefend")
    defence = defence.replace("_", ",\n").replace("+", "\n+ ")
    return "\n".join([*lines, f"+ {defence}" if defence != "none" else "alone"])


def _drift(dataset: str, rows: list[dict]) -> Figure:
    """What one step of decoding mends, by density model and context."""
    groups = {}
    for row in rows:
        model = row["density_model"].partition("/")[2]
        title = f"{model}\n{row['context']} context\n{row['bits_per_dim']:.1f} bits"
        cell = tuple(100 * row[name] for name in ("mended", "low", "high"))
        groups[title] = {"likeliest levels in the ball, one step": cell}
    text = f"BIM, eps {rows[0]['eps_attack']:g}: bits of the clean level, images mended"
    return plots.named(dataset, text, plots.accuracies(groups))


def _training(dataset: str, rows: list[dict]) -> Figure:
    """Bits/dim against hours, of `benchmarks/networks.py`."""
    runs = {
        row["network"]: (
            np.array([line["seconds"] / 3600 for line in row["curve"]]),
            np.array([line["validation_bits_per_dim"] for line in row["curve"]]),
        )
        for row in rows
    }
    figure = plots.training(runs, f"hours of training ({rows[0]['device']})")
    text = "density models on validation images, equal training"
    return plots.named(dataset, text, figure)
