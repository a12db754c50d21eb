"""What the thesis's figures show: arrays and rows of a sweep, chosen and named."""

from collections.abc import Iterator
from functools import partial

from matplotlib.figure import Figure

from pixeldefend.experiment import data, grid, sweeps
from pixeldefend.experiment.published import THESIS_ATTACKS
from pixeldefend.experiment.sweeps import OURS
from reproduction import plots, thesis_plots
from reproduction.plots import Arrays, Picture
from reproduction.thesis_plots import Curve, fractions

# The defences compared, and the detectors, for people.
_DEFENCES = {
    "none": "no defence",
    "puvae": "PuVAE",
    OURS: "PuVAE with the detector",
}
_WORST = "the eps at which the detector's accuracy is least"
_DETECTORS = {
    OURS: "PuVAE, by RMSE",
    "reject_magnet+magnet": "MagNet",
    "reject_p_value+puvae": "PuVAE, by p-value",
}


def pictures(dataset: str, found: Arrays, rows: list[dict]) -> Iterator[Picture]:
    """The thesis's figures of one data set, and the one of all detectors."""
    images = {name: found.get(f"strengths/{name}") for name in ("fgsm", "pgd")}
    images = {name: array for name, array in images.items() if array is not None}
    if images and "strengths/eps" in found:
        yield "thesis_figure_01", partial(_strengths, dataset, found, images)
    sets = _rebuilt(found)
    if sets and "labels" in found:
        yield "thesis_figure_06", partial(_choices, dataset, found, sets)
        yield "thesis_appendix", partial(_reconstructions, dataset, found, sets)
    swept = _swept(rows)
    for name, panels, draw in (
        ("thesis_figure_07", _accuracies(swept), _robustness),
        ("thesis_figure_08", _rejections(swept), _rejected),
        ("rejection", _outcomes(swept), _stacked),
    ):
        if panels:
            yield name, partial(draw, dataset, panels)


def _rebuilt(found: Arrays) -> dict[str, thesis_plots.Rebuilt]:
    """By title, the sets of which everything is there."""
    attack = f"PGD\neps {fractions(found['eps']):.2f}" if "eps" in found else "PGD"
    sets = {}
    for name, title in (("clean", "clean"), ("pgd", attack)):
        parts = [found.get(f"{of}/{name}") for of in ("given", "rebuilt", "distances")]
        if all(part is not None for part in parts):
            sets[title] = thesis_plots.Rebuilt(*parts)
    return sets


def _strengths(dataset: str, found: Arrays, images: Arrays) -> Figure:
    figure = thesis_plots.strengths(images, found["strengths/eps"])
    return plots.named(dataset, "one image under attacks of rising eps", figure)


def _choices(
    dataset: str, found: Arrays, sets: dict[str, thesis_plots.Rebuilt]
) -> Figure:
    classes = data.CLASS_NAMES[dataset]
    text = f"the first image ({classes[found['labels'][0]]}), rebuilt for each label"
    return plots.named(dataset, text, thesis_plots.choices(sets, classes))


def _reconstructions(
    dataset: str, found: Arrays, sets: dict[str, thesis_plots.Rebuilt]
) -> Figure:
    classes = data.CLASS_NAMES[dataset]
    figure = thesis_plots.reconstructions(sets, found["labels"], classes)
    text = "images and their nearest reconstructions (framed: of another label)"
    return plots.named(dataset, text, figure)


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


def _drawn(swept: dict, field: str, which: dict[str, tuple[str, str]]) -> list[Curve]:
    """By title, a defence and an attack: without and with a look at purifiers."""
    return [
        Curve(
            title,
            swept[defence, attack, looks],
            field,
            marked=defence == OURS and not looks,
            dashed=looks,
            thin=defence == "none",
        )
        for title, (defence, attack) in which.items()
        for looks in (False, True)
        if (defence, attack, looks) in swept
    ]


def _accuracies(swept: dict) -> dict[str, list[Curve]]:
    """By attack, how often defences are right: as the thesis counts."""
    panels = {}
    for attack in THESIS_ATTACKS:
        which = {title: (defence, attack) for defence, title in _DEFENCES.items()}
        drawn = _drawn(swept, "accuracy", which)
        if any(not curve.thin for curve in drawn):
            panels[plots.title_of(attack)] = drawn
    return panels


def _robustness(dataset: str, panels: dict[str, list[Curve]]) -> Figure:
    text = "accuracy under attack; what is rejected counts as right"
    return plots.named(dataset, text, thesis_plots.curves(panels, "accuracy", _WORST))


def _rejections(swept: dict) -> dict[str, list[Curve]]:
    """How much the detector by RMSE rejects, all attacks in one panel."""
    which = {plots.title_of(attack): (OURS, attack) for attack in THESIS_ATTACKS}
    drawn = _drawn(swept, "rejected", which)
    return {"": drawn} if drawn else {}


def _rejected(dataset: str, panels: dict[str, list[Curve]]) -> Figure:
    text = "attacked images that the detector rejects"
    return plots.named(dataset, text, thesis_plots.curves(panels, "rejected", _WORST))


def _outcomes(swept: dict) -> dict[str, dict[str, dict]]:
    """By detector, by attack, the row of the largest eps."""
    sizes = [
        curve[-1]["eps_attack"]
        for (defence, attack, _), curve in swept.items()
        if defence in _DETECTORS and attack in THESIS_ATTACKS
    ]
    if not sizes:
        return {}
    panels = {}
    for defence, title in _DETECTORS.items():
        bars = {}
        for attack in (grid.CLEAN, *THESIS_ATTACKS, grid.EVADE):
            # Who looks through the purifier is there only if evading.
            curve = swept.get((defence, attack, False)) or []
            if attack == grid.EVADE:
                curve = swept.get((defence, attack, True), curve)
            wanted = 0 if attack == grid.CLEAN else max(sizes)
            for row in curve:
                if row["eps_attack"] == wanted:
                    bars[plots.title_of(attack)] = row
        if bars:
            panels[title] = bars
    return panels


def _stacked(dataset: str, panels: dict[str, dict[str, dict]]) -> Figure:
    rows = [row for bars in panels.values() for row in bars.values()]
    eps = fractions(max(row["eps_attack"] for row in rows))
    text = f"what becomes of images, attacks of eps {eps:.2f}"
    if any(row["attack"] == grid.EVADE for row in rows):
        text += " (EVADE: knows the detector)"
    return plots.named(dataset, text, thesis_plots.outcomes(panels))
