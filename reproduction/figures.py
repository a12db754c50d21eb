"""The mode `figures`: every picture of the papers, from arrays and rows kept."""

import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from pixeldefend import detection, pixels
from pixeldefend.density import likelihood
from pixeldefend.experiment import data, grid, sweeps
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.rows import read_rows
from pixeldefend.experiment.workdir import Workdir, user_errors
from reproduction import plots, schematics, thesis_plots

Arrays = dict[str, np.ndarray]
Picture = tuple[str, Callable[[], Figure]]

# Figures 10 and 11: the paper's eps, by data set.
_GRIDS = {"fashion_mnist": ("figure_10", "25"), "cifar10": ("figure_11", "8")}
_SAMPLES = {"fashion_mnist": "figure_08", "cifar10": "figure_09"}
_EPS = "8"
_TRUE = 48  # images shown beside samples

# Of a sweep: the attacks; the defences compared, and the detectors, for people.
_ATTACKS = ("fgsm", "bim", "pgd")
_DETECTED = "reject_rmse+puvae"
_DEFENCES = {
    "none": "no defence",
    "puvae": "PuVAE",
    _DETECTED: "PuVAE with the detector",
}
_WORST = "the eps at which the detector's accuracy is least"
_DETECTORS = {
    _DETECTED: "PuVAE, by RMSE",
    "reject_magnet+magnet": "MagNet",
    "reject_p_value+puvae": "PuVAE, by p-value",
}


def figures(config: inputs.Config, workdir: Workdir) -> None:
    """Draws every figure that there are arrays for, of all data sets."""
    settings = config.figures
    with user_errors():
        source = epath.Path(settings.results)
        pictures = list(_pictures(source))
        if not pictures:
            raise ValueError(
                f"no arrays under {source / 'arrays'}: --mode=detect makes them as "
                "detection.npz, and --mode=sweep as sweep.npz; copy that there as "
                "detection_DATASET.npz or sweep_DATASET.npz, or give "
                "--config.figures.results"
            )
        folder = epath.Path(settings.to) if settings.to else None
        if folder is not None and folder.is_file():
            raise ValueError(f"figures.to {folder} is a file; name a folder")
    folder = folder or workdir.open()
    for name, draw in pictures:
        plots.save(draw(), folder / f"{name}.png")
    print(f"{len(pictures)} figures: {', '.join(name for name, _ in pictures)}")
    print(f"results in {folder}")


def _pictures(results: epath.Path) -> Iterator[Picture]:
    """What can be drawn: names and how."""
    swept = False
    for dataset in plots.DATASETS:
        found = _arrays(results, f"detection_{dataset}")
        if found is not None:
            yield from _of_detection(dataset, found)
        found = _arrays(results, f"purifiers_{dataset}")
        if found is not None:
            yield f"figure_05_{dataset}", _drawing(_purifiers, dataset, found)
        found = _arrays(results, f"samples_{dataset}")
        if found is not None and dataset in _SAMPLES:
            name = f"{_SAMPLES[dataset]}_{dataset}"
            yield name, _drawing(_samples, dataset, found)
        found = _arrays(results, f"detection_report_{dataset}")
        if found is not None:
            yield f"report_1_{dataset}", _drawing(_ranks, dataset, found, "none", True)
            name = f"report_3_{dataset}"
            yield name, _drawing(_probabilities, dataset, found)
        rows = _rows(results, f"white_box_{dataset}")
        if rows is not None:
            yield f"white_box_{dataset}", _drawing(_white_box, dataset, rows)
        for kind in ("sizes", "conditionals"):
            rows = _rows(results, f"{kind}_{dataset}")
            if rows is not None:
                yield f"{kind}_{dataset}", _drawing(_training, dataset, rows)
        for picture in _of_sweep(dataset, results):
            swept = True
            yield picture
    if swept:  # what explains the others
        yield "thesis_figure_02", schematics.climbs
        yield "thesis_figure_03", schematics.margins
        yield "thesis_figure_04", lambda: schematics.puvae(detector=False)
        yield "thesis_figure_05", lambda: schematics.puvae(detector=True)


def _drawing(draw: Callable[..., Figure], *of: object) -> Callable[[], Figure]:
    return lambda: draw(*of)


def _of_detection(dataset: str, found: Arrays) -> Iterator[Picture]:
    sets = _sets(found, _EPS, "none", "log_probs")
    examples = _sets(found, _EPS, "none", "images")
    for number, draw, wanted, more in (
        ("01", _attacked, examples, ()),
        ("02a", _densities, sets, ()),
        ("02b", _errors, sets, ()),
        ("03", _ranks, sets, ("none",)),
        ("04", _before_and_after, examples, ()),
        ("06", _curves, sets, ()),
        ("07", _ranks, sets, ("purify",)),
    ):
        if wanted:
            yield f"figure_{number}_{dataset}", _drawing(draw, dataset, found, *more)
    if dataset in _GRIDS:
        name, eps = _GRIDS[dataset]
        if f"{eps}/fgsm/none/images" in found:
            yield f"{name}_{dataset}", _drawing(_grid, dataset, found, eps)


def _arrays(results: epath.Path, name: str) -> Arrays | None:
    """The arrays of a file, or None if there is no such file.

    Raises:
      ValueError: it cannot be read.
    """
    path = results / "arrays" / f"{name}.npz"
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _rows(results: epath.Path, name: str) -> list[dict] | None:
    """The rows of a file, or None if there is no such file."""
    path = results / f"{name}.jsonl"
    return read_rows(path) if path.exists() else None


def _sets(found: Arrays, eps: str, stage: str, what: str) -> dict[str, np.ndarray]:
    """By title: clean images first, then the attacks in the order of the run."""
    sets = {}
    for key, array in found.items():
        parts = key.split("/")
        if len(parts) == 4 and (parts[0], parts[2], parts[3]) == (eps, stage, what):
            sets[plots.title_of(parts[1])] = array
    return sets


def _name(dataset: str, text: str) -> str:
    return f"{plots.DATASETS[dataset]}: {text}"


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


def _guesses(dataset: str, probabilities: dict[str, np.ndarray], i: int) -> list[str]:
    names = plots.CLASSES[dataset]
    return [names[int(found[i].argmax())] for found in probabilities.values()]


def _attacked(dataset: str, found: Arrays) -> Figure:
    i = _example(found, _EPS)
    shown = _sets(found, _EPS, "none", "images")
    texts = _guesses(dataset, _sets(found, _EPS, "none", "probabilities"), i)
    row = np.stack([images[i] for images in shown.values()])
    name = f"attacks of eps {_EPS}; below, what the ResNet takes it for"
    return plots.images([row], list(shown), [texts], _name(dataset, name))


def _before_and_after(dataset: str, found: Arrays) -> Figure:
    i = _example(found, _EPS)
    rows, texts = [], []
    for stage in ("none", "purify"):
        shown = _sets(found, _EPS, stage, "images")
        rows.append(np.stack([images[i] for images in shown.values()]))
        texts.append(_guesses(dataset, _sets(found, _EPS, stage, "probabilities"), i))
    name = f"attacks of eps {_EPS} (above) and purified (below)"
    return plots.images(rows, list(shown), texts, _name(dataset, name))


def _densities(dataset: str, found: Arrays) -> Figure:
    shape = found["examples/clean"].shape[1:]
    scores = {
        title: np.asarray(likelihood.to_bits_per_dim(log_probs, shape))
        for title, log_probs in _sets(found, _EPS, "none", "log_probs").items()
    }
    return plots.densities(scores, _name(dataset, f"likelihood, attacks of eps {_EPS}"))


def _errors(dataset: str, found: Arrays) -> Figure:
    correct = _sets(found, _EPS, "none", "correct")
    name = f"test error of the ResNet, attacks of eps {_EPS}"
    return plots.errors(correct, _name(dataset, name))


def _ranks(dataset: str, found: Arrays, stage: str, report: bool = False) -> Figure:
    reference = found["reference"]
    eps = next(key.split("/")[0] for key in found if key.endswith("none/log_probs"))
    ranks = {
        title: np.asarray(detection.p_values(log_probs, reference))
        for title, log_probs in _sets(found, eps, stage, "log_probs").items()
    }
    what = "the report's attacks" if report else f"attacks of eps {eps}"
    after = ", purified" if stage == "purify" else ""
    return plots.p_values(ranks, _name(dataset, f"p-values, {what}{after}"))


def _curves(dataset: str, found: Arrays) -> Figure:
    panels = {
        title: _sets(found, _EPS, stage, "log_probs")
        for title, stage in (("(a) as attacked", "none"), ("(b) purified", "purify"))
    }
    name = f"detection of attacks of eps {_EPS}"
    return plots.curves(found["reference"], panels, _name(dataset, name))


def _grid(dataset: str, found: Arrays, eps: str) -> Figure:
    parts = {
        f"FGSM, eps {eps}": found[f"{eps}/fgsm/none/images"],
        f"purified, eps {int(found['eps_defend'])}": found[f"{eps}/fgsm/purify/images"],
    }
    return plots.grids(parts, 12, plots.DATASETS[dataset])


def _samples(dataset: str, found: Arrays) -> Figure:
    parts = {
        "test images": data.sample(dataset)[0][:_TRUE],
        "samples of the density model": found["images"][:_TRUE],
    }
    return plots.grids(parts, 12, plots.DATASETS[dataset])


def _purifiers(dataset: str, found: Arrays) -> Figure:
    scores = {
        "clean": found["clean"],
        "FGSM": found["perturbed"],
        "L-BFGS-B": found["lbfgs_b"].ravel(),
        "PixelDefend": found["purified"],
    }
    return plots.densities(scores, _name(dataset, "two ways of purifying"))


def _probabilities(dataset: str, found: Arrays) -> Figure:
    eps = next(key.split("/")[0] for key in found if key.endswith("none/log_probs"))
    before = _sets(found, eps, "none", "probabilities")
    after = _sets(found, eps, "purify", "probabilities")
    # The first of those that the classifier gets right as they are.
    labels = found["examples/labels"]
    right = before["clean"].argmax(-1) == labels
    i = int(np.argmax(right))
    shown = {
        title: (before[title][i], after[title][i])
        for title in before
        if len(before[title]) > i
    }
    names = plots.CLASSES[dataset]
    title = _name(dataset, "what the ResNet makes of one image (shaded: its class)")
    return plots.probabilities(shown, names, int(labels[i]), title)


def _white_box(dataset: str, rows: list[dict]) -> Figure:
    """Accuracies under the strongest attacks, by who attacks."""
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        if row["threat"] is None or not row["eps_attack"]:
            continue
        # An attacker who sees everything has all attacks, and keeps what worked.
        if (row["attack"] == "worst_per_image") != (row["threat"] == "white-box"):
            continue
        defence = row["defence"].replace("purify", "PixelDefend")
        lines = (row["training"], *defence.split("_"), f"eps {row['eps_attack']:g}")
        title = "\n".join(lines).replace("_", "\n")
        who = row["threat"]
        cell = tuple(100 * row[name] for name in ("accuracy", "low", "high"))
        known = groups.setdefault(title, {}).get(who)
        if known is None or cell[0] < known[0]:
            groups[title][who] = cell
    name = "grey-box: the strongest attack; white-box: all attacks"
    return plots.accuracies(groups, _name(dataset, name))


def _training(dataset: str, rows: list[dict]) -> Figure:
    """Bits/dim against hours, of `benchmarks/networks.py`."""
    runs = {}
    for row in rows:
        points = [
            (line["seconds"] / 3600, line["validation_bits_per_dim"])
            for line in row["curve"]
        ]
        hours, bits = np.array(points).T
        runs[row["network"]] = hours, bits
    label = f"hours of training ({rows[0]['device']})"
    name = "density models on validation images, equal training"
    return plots.training(runs, label, _name(dataset, name))


def _of_sweep(dataset: str, results: epath.Path) -> Iterator[Picture]:
    """The thesis's figures of one data set, and the one of all detectors."""
    found = _arrays(results, f"sweep_{dataset}") or {}
    images = {name: found.get(f"strengths/{name}") for name in ("fgsm", "pgd")}
    images = {name: array for name, array in images.items() if array is not None}
    if images and "strengths/eps" in found:
        name = _name(dataset, "one image under attacks of rising eps")
        of = images, found["strengths/eps"], name
        yield f"thesis_figure_01_{dataset}", _drawing(thesis_plots.strengths, *of)
    sets = _rebuilt(found)
    if sets and "labels" in found:
        of = dataset, sets, found["labels"]
        yield f"thesis_figure_06_{dataset}", _drawing(_choices, *of)
        yield f"thesis_appendix_{dataset}", _drawing(_reconstructions, *of)
    swept = _swept(_rows(results, f"sweep_{dataset}") or [])
    for name, panels, draw in (
        ("thesis_figure_07", _accuracies(swept), _robustness),
        ("thesis_figure_08", _rejections(swept), _rejected),
        ("rejection", _outcomes(swept), _stacked),
    ):
        if panels:
            yield f"{name}_{dataset}", _drawing(draw, dataset, panels)


def _rebuilt(found: Arrays) -> dict[str, thesis_plots.Rebuilt]:
    """By title, the sets of which everything is there."""
    attack = "PGD"
    if "eps" in found:
        attack += f"\neps {_fraction(found['eps']):.2f}"
    sets = {}
    for name, title in (("clean", "clean"), ("pgd", attack)):
        parts = [found.get(f"{of}/{name}") for of in ("given", "rebuilt", "distances")]
        if all(part is not None for part in parts):
            sets[title] = thesis_plots.Rebuilt(*parts)
    return sets


def _fraction(levels: np.ndarray | float) -> float:
    return float(pixels.to_fractions(np.float32(levels)))


def _choices(
    dataset: str, sets: dict[str, thesis_plots.Rebuilt], labels: np.ndarray
) -> Figure:
    classes = plots.CLASSES[dataset]
    text = f"the first image ({classes[labels[0]]}), rebuilt for each label"
    return thesis_plots.choices(sets, classes, name=_name(dataset, text))


def _reconstructions(
    dataset: str, sets: dict[str, thesis_plots.Rebuilt], labels: np.ndarray
) -> Figure:
    text = "images and their nearest reconstructions (framed: of another label)"
    return thesis_plots.reconstructions(
        sets, labels, plots.CLASSES[dataset], _name(dataset, text)
    )


def _swept(rows: list[dict]) -> dict[tuple[str, str, bool], list[dict]]:
    """The curves of the first classifier, attacks with levels left fractional.

    By defence, attack and whether that looks through purifiers.
    """
    found = {}
    for key, curve in sweeps.curves(rows).items():
        fractional = key.levels != "whole" or key.attack == grid.EVADE
        if key.classifier == rows[0]["classifier"] and fractional:
            found.setdefault((key.defence, key.attack, bool(key.slope)), curve)
    return found


def _column(curve: list[dict], field: str) -> np.ndarray:
    return np.array([row[field] for row in curve])


def _worst(curve: list[dict]) -> int:
    return curve.index(sweeps.worst(curve))


def _accuracies(swept: dict) -> dict[str, list[thesis_plots.Curve]]:
    """By attack, how often defences are right: as the thesis counts."""
    panels = {}
    for attack in _ATTACKS:
        drawn = []
        for defence, title in _DEFENCES.items():
            for looks in (False, True):
                curve = swept.get((defence, attack, looks))
                if curve is None:
                    continue
                marked = defence == _DETECTED and not looks
                drawn.append(
                    thesis_plots.Curve(
                        title,
                        _column(curve, "eps_attack"),
                        _column(curve, "accuracy"),
                        np.stack([_column(curve, end) for end in ("low", "high")]),
                        _worst(curve) if marked else None,
                        dashed=looks,
                        thin=defence == "none",
                    )
                )
        if any(not curve.thin for curve in drawn):
            panels[plots.title_of(attack)] = drawn
    return panels


def _robustness(dataset: str, panels: dict[str, list[thesis_plots.Curve]]) -> Figure:
    name = _name(dataset, "accuracy under attack; what is rejected counts as right")
    return thesis_plots.curves(panels, "accuracy", name, _WORST)


def _rejections(swept: dict) -> dict[str, list[thesis_plots.Curve]]:
    """How much the detector by RMSE rejects, all attacks in one panel."""
    drawn = []
    for attack in _ATTACKS:
        for looks in (False, True):
            curve = swept.get((_DETECTED, attack, looks))
            if curve is not None:
                drawn.append(
                    thesis_plots.Curve(
                        plots.title_of(attack),
                        _column(curve, "eps_attack"),
                        _column(curve, "rejected"),
                        worst=None if looks else _worst(curve),
                        dashed=looks,
                    )
                )
    return {"": drawn} if drawn else {}


def _rejected(dataset: str, panels: dict[str, list[thesis_plots.Curve]]) -> Figure:
    name = _name(dataset, "attacked images that the detector rejects")
    return thesis_plots.curves(panels, "rejected", name, _WORST)


def _outcomes(swept: dict) -> dict[str, dict[str, dict]]:
    """By detector, by attack, the row of the largest eps."""
    sizes = [
        curve[-1]["eps_attack"]
        for (defence, attack, _), curve in swept.items()
        if defence in _DETECTORS and attack in _ATTACKS
    ]
    if not sizes:
        return {}
    most = max(sizes)
    panels = {}
    for defence, title in _DETECTORS.items():
        bars = {}
        for attack in (grid.CLEAN, *_ATTACKS, grid.EVADE):
            # Who looks through the purifier is there only if evading.
            curve = swept.get((defence, attack, False)) or []
            if attack == grid.EVADE:
                curve = swept.get((defence, attack, True), curve)
            wanted = 0 if attack == grid.CLEAN else most
            for row in curve:
                if row["eps_attack"] == wanted:
                    bars[plots.title_of(attack)] = row
        if bars:
            panels[title] = bars
    return panels


def _stacked(dataset: str, panels: dict[str, dict[str, dict]]) -> Figure:
    rows = [row for bars in panels.values() for row in bars.values()]
    eps = _fraction(max(row["eps_attack"] for row in rows))
    text = f"what becomes of images, attacks of eps {eps:.2f}"
    if any(row["attack"] == grid.EVADE for row in rows):
        text += " (EVADE: knows the detector)"
    shares = {
        title: {
            attack: tuple(row[of] for of in ("right", "rejected", "wrong"))
            for attack, row in bars.items()
        }
        for title, bars in panels.items()
    }
    return thesis_plots.outcomes(shares, _name(dataset, text))
