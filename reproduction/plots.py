"""Figures of the papers, drawn from arrays.

Each function takes arrays and returns a `matplotlib.figure.Figure`; none reads a file,
and what stands above all is added with `named`. Colours are those of Okabe and Ito,
which colour-blind people can tell apart, and lines differ in their dashes too.
"""

from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import stats

from pixeldefend import detection
from pixeldefend.experiment import files

Arrays = dict[str, np.ndarray]
Picture = tuple[str, Callable[[], Figure]]  # a name, and what draws it

DATASETS = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
COLOURS = (
    *("#000000", "#E69F00", "#0072B2", "#D55E00"),
    *("#009E73", "#CC79A7", "#56B4E9", "#B8A800"),
)
_ENOUGH = 100  # images of each set for a histogram
_WIDTH = 0.38  # of a bar beside another
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-")


def title_of(attack: str) -> str:
    """An attack's name for a person."""
    plain = {"none": "clean", "deepfool": "DeepFool", "cw": "CW"}
    return plain.get(attack, attack.replace("_", " ").upper())


def start(
    wide: float, high: float, rows: int = 1, columns: int = 1, **more: object
) -> tuple[Figure, np.ndarray]:
    """An empty figure of that many inches, and its axes `[rows, columns]`."""
    figure = Figure(figsize=(wide, high), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def named(dataset: str, text: str, figure: Figure) -> Figure:
    """The figure with the data set and a text above all."""
    name = DATASETS[dataset] + (f": {text}" if text else "")
    figure.suptitle(name, fontsize=10)
    return figure


def _look(i: int) -> dict:
    """Of the i-th line."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": _DASHES[i % len(_DASHES)],
        "linewidth": 1.5,
    }


def _bar(
    axis: Axes, at: float, shares: Sequence[float], text: str, size: int, **look: object
) -> None:
    """A bar with its interval and a text above; shares are middle, low and high, %."""
    middle, low, high = shares
    spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
    axis.bar(at, middle, yerr=spread, **look)
    axis.text(at, high + 1.5, text, ha="center", fontsize=size)


def images(
    rows: Sequence[np.ndarray], titles: Sequence[str], texts: Sequence[Sequence[str]]
) -> Figure:
    """Images in rows with a text below each (Figures 1 and 4).

    Args:
      rows: `[N, H, W, C]` uint8 each.
      titles: of the N columns.
      texts: below the images, N for each row.
    """
    wide, high = max(1.25 * len(titles), 4), 1.36 * len(rows) + 0.55
    figure, axes = start(wide, high, len(rows), len(titles))
    for own, of_row, below in zip(axes, rows, texts, strict=True):
        for axis, image, text in zip(own, of_row, below, strict=True):
            show(axis, image)
            axis.set_xlabel(text, fontsize=8)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def grids(parts: dict[str, np.ndarray], columns: int) -> Figure:
    """Sets of images, one below the other (Figures 8 to 11).

    Args:
      parts: by title, `[N, H, W, C]` uint8.
      columns: images side by side.
    """
    heights = [-(-len(part) // columns) for part in parts.values()]
    size = 0.7 * columns, 0.72 * sum(heights) + 0.4 * len(parts)
    figure, axes = start(*size, len(parts), height_ratios=heights)
    for axis, (title, part) in zip(axes[:, 0], parts.items(), strict=True):
        show(axis, _tiled(part, columns))
        axis.set_title(title, fontsize=9)
    return figure


def densities(scores: dict[str, np.ndarray]) -> Figure:
    """Bits/dim of sets of images (Figures 2a and 5).

    As shares in bins; of few images as the share that has at most so many bits.

    Args:
      scores: by title, `[N]` bits/dim.
    """
    figure, ((axis,),) = start(6, 3.6)
    every = np.concatenate(list(scores.values()))
    few = _few(scores)
    for i, (title, found) in enumerate(scores.items()):
        label = f"{title} (n {len(found)})"
        if few:
            axis.ecdf(found, label=label, **_look(i))
            continue
        look = _look(i) | {"histtype": "step", "linewidth": 1.6}
        share = np.full(len(found), 1 / len(found))
        edges = np.linspace(every.min(), every.max(), 41)
        axis.hist(found, edges, weights=share, label=label, **look)
    axis.set_xlabel("bits per dimension")
    axis.set_ylabel("share of images with at most these" if few else "share of images")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _few(sets: dict[str, np.ndarray]) -> bool:
    """Whether the bins of a histogram would hold chance, of any of the sets."""
    return min(map(len, sets.values())) < _ENOUGH


def errors(correct: dict[str, np.ndarray]) -> Figure:
    """Test errors with 95 % intervals (Figure 2b).

    Args:
      correct: by title, `[N]` bool.
    """
    figure, ((axis,),) = start(6, 3.2)
    for i, right in enumerate(correct.values()):
        wrong = int(np.sum(~right))
        ends = stats.binomtest(wrong, len(right)).proportion_ci(method="wilson")
        shares = 100 * wrong / len(right), *(100 * bound for bound in ends)
        colour = COLOURS[i % len(COLOURS)]
        _bar(axis, i, shares, f"{shares[0]:.1f}", 8, color=colour, capsize=3)
    axis.set_xticks(range(len(correct)), list(correct), fontsize=8)
    axis.set_ylabel("misclassified, %")
    axis.set_ylim(0, 112)
    return figure


def p_values(found: dict[str, np.ndarray]) -> Figure:
    """p-values, and where they would be if uniform (Figures 3 and 7).

    All panels of all such figures have the same axes. Shares are in bins, on a scale of
    square roots, since they go from a uniform 5 % to all of the images; of few images
    it is the share of p-values that are at most so large.

    Args:
      found: by title, `[N]`.
    """
    few = _few(found)
    columns = 3 if len(found) % 3 == 0 else min(4, len(found))
    rows = -(-len(found) // columns)
    size = 7.8 if columns == 3 else 2.2 * columns, 1.9 * rows + 0.6
    figure, axes = start(*size, rows, columns, sharex=True, sharey=True)
    shown = zip(axes.flat, found.items(), strict=False)
    for i, (axis, (title, ranks)) in enumerate(shown):
        if few:
            at = np.concatenate([[0], np.sort(ranks), [1]])
            shares = np.linspace(0, 1, len(ranks) + 1)
            shares = np.append(shares, 1)
            axis.step(at, shares, where="post", color=COLOURS[2], linewidth=1.6)
            axis.plot([0, 1], [0, 1], color=COLOURS[3], linestyle="--", linewidth=1)
        else:
            share = np.full(len(ranks), 1 / len(ranks))
            axis.hist(ranks, np.linspace(0, 1, 21), weights=share, color=COLOURS[2])
            axis.axhline(1 / 20, color=COLOURS[3], linestyle="--", linewidth=1)
        axis.set_title(f"{title} (n {len(ranks)})", fontsize=9)
        # Also where the panel below is missing.
        axis.tick_params(labelsize=7, labelbottom=i + columns >= len(found))
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    axis = axes[0, 0]
    axis.set_xlim(0, 1)
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    if not few:
        axis.set_yscale("function", functions=(np.sqrt, np.square))
        axis.set_yticks([0, 0.05, 0.2, 0.5, 1], ["0", "0.05", "0.2", "0.5", "1"])
    axis.set_ylim(0, 1.02)
    what = "with at most this p-value" if few else "of images (square root)"
    figure.supxlabel("p-value (dashed: uniform)", fontsize=9)
    figure.supylabel(f"share {what}", fontsize=9)
    return figure


def curves(negatives: np.ndarray, panels: dict[str, dict[str, np.ndarray]]) -> Figure:
    """ROC curves of "unlikely is an attack", with their areas (Figure 6).

    Args:
      negatives: scores of training images, `[M]`.
      panels: by title, by attack, scores `[N]`.
    """
    figure, (axes,) = start(3.9 * len(panels), 4.6, columns=len(panels), sharey=True)
    for axis, (title, positives) in zip(axes, panels.items(), strict=True):
        areas = []
        for i, (attack, scores) in enumerate(positives.items()):
            false, true, _ = detection.roc(negatives, scores)
            areas.append(float(detection.auc(negatives, scores)))
            axis.plot(false, true, label=f"{attack}: {areas[-1]:.3f}", **_look(i))
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("false positive rate (training images)", fontsize=9)
        # On the side of the diagonal where there are no curves.
        side = "lower right" if np.mean(areas) > 0.5 else "upper left"
        look = {"fontsize": 8, "title_fontsize": 8, "frameon": False, "loc": side}
        axis.legend(title="area", **look)
        axis.set_aspect("equal")
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("true positive rate", fontsize=9)
    return figure


def probabilities(
    rows: dict[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str], label: int
) -> Figure:
    """A classifier's probabilities for one image, attacked and then purified.

    As in the reproducibility report, Figure 3.

    Args:
      rows: by attack, the probabilities `[K]` before and after purification.
      names: of the classes.
      label: the true one.
    """
    high = 0.5 * len(names) ** 0.5 + 1.35 * len(rows)
    figure, axes = start(7, high, len(rows), sharex=True)
    place = np.arange(len(names))
    looks = ((-0.2, COLOURS[3], "attacked"), (0.2, COLOURS[2], "purified"))
    for axis, (attack, pair) in zip(axes[:, 0], rows.items(), strict=True):
        for found, (side, colour, title) in zip(pair, looks, strict=True):
            axis.bar(place + side, found, 0.4, color=colour, label=title)
        axis.axvspan(label - 0.45, label + 0.45, color="#DDDDDD", zorder=0)
        axis.set_ylim(0, 1.05)
        axis.set_ylabel(attack, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xticks(place, names, fontsize=8, rotation=30)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, fontsize=8, loc="outside upper right")
    return figure


def accuracies(groups: dict[str, dict[str, tuple[float, float, float]]]) -> Figure:
    """Accuracies by defence under several attackers, with 95 % intervals.

    Args:
      groups: by defence, by attacker, accuracy and the ends of its interval, in
        percent.
    """
    attackers = list(dict.fromkeys(a for group in groups.values() for a in group))
    figure, ((axis,),) = start(1.0 + 0.95 * len(groups), 3.8)
    width = 0.8 / len(attackers)
    for i, attacker in enumerate(attackers):
        look = {"color": COLOURS[(1 + i) % len(COLOURS)], "width": width, "capsize": 2}
        for g, group in enumerate(groups.values()):
            if attacker in group:
                at = g + (i + 0.5) * width - 0.4
                look["label"] = attacker if g == 0 else None
                text = f"{group[attacker][0]:.0f}"
                _bar(axis, at, group[attacker], text, 7, **look)
    axis.set_xticks(range(len(groups)), list(groups), fontsize=7)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 110)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(attackers))
    return figure


def attackers(
    panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]],
    sides: Sequence[str],
) -> Figure:
    """Accuracies by defence under several attackers, one panel below the other.

    Args:
      panels: by title, by defence, by attacker, accuracy and the ends of its 95 %
        interval, in percent; an attacker with None was not measured, one that is not
        there has nothing to be measured.
      sides: the attackers, side by side.
    """
    groups = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    size = 1.2 + 1.05 * len(groups), 1.75 * len(panels) + 1.2
    figure, axes = start(*size, len(panels), sharex=True, sharey=True)
    for axis, (title, panel) in zip(axes[:, 0], panels.items(), strict=True):
        for g, name in enumerate(groups):
            own = [side for side in sides if side in panel.get(name, {})]
            for i, side in enumerate(own):
                at = g + _WIDTH * (i - (len(own) - 1) / 2)
                _bar_or_gap(axis, at, panel[name][side], sides.index(side))
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[0, 0].set_ylim(0, 112)
    axes[0, 0].set_yticks(range(0, 101, 25))
    axes[0, 0].set_xlim(-0.6, len(groups) - 0.4)
    axes[-1, 0].set_xticks(range(len(groups)), groups, fontsize=8)
    figure.supylabel("accuracy, %", fontsize=9)
    marks = [Patch(label=side, **_side(i)) for i, side in enumerate(sides)]
    look = {"fontsize": 8, "loc": "outside lower center", "frameon": False}
    figure.legend(handles=marks, ncols=len(marks), **look)
    return figure


def _side(i: int) -> dict:
    """Of an attacker's bars; hatched too, for who sees no colours."""
    hatch = ("", "///", "...")[i % 3]
    return {"facecolor": COLOURS[1 + i], "hatch": hatch, "edgecolor": "white"}


def _bar_or_gap(axis: Axes, at: float, shares: Sequence[float] | None, i: int) -> None:
    """An attacker's bar, or words where it is not known how high that is."""
    if shares is not None:
        look = _side(i) | {"width": _WIDTH, "capsize": 2, "linewidth": 0}
        _bar(axis, at, shares, f"{shares[0]:.0f}", 8, **look)
        return
    look = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7}
    axis.text(at, 3, "not measured", color="#555555", **look)


def training(runs: dict[str, tuple[np.ndarray, np.ndarray]], label: str) -> Figure:
    """What density models score on validation images while they are trained.

    Args:
      runs: by network, `[N]` hours and `[N]` bits/dim.
      label: below the hours.
    """
    figure, ((axis,),) = start(6, 3.6)
    for i, (title, (hours, bits)) in enumerate(runs.items()):
        end = f"{title}: {bits[-1]:.3f}"
        axis.plot(hours, bits, marker=".", label=end, **_look(i))
    axis.set_xlabel(label)
    axis.set_ylabel("bits per dimension")
    axis.legend(title="at the end", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a PNG or a PDF whole; the same figure gives the same bytes."""
    ending = epath.Path(path).suffix.removeprefix(".")
    without = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    metadata = dict.fromkeys(without[ending])
    with files.whole_file(path) as temporary:
        figure.savefig(temporary, format=ending, dpi=110, metadata=metadata)


def show(axis: Axes, image: np.ndarray) -> None:
    """An image `[H, W, C]` uint8 by itself, without ticks."""
    grey = {"cmap": "gray"} if image.shape[-1] == 1 else {}
    shown = image[..., 0] if grey else image
    axis.imshow(shown, vmin=0, vmax=255, interpolation="nearest", **grey)
    axis.set_xticks([])
    axis.set_yticks([])


def _tiled(part: np.ndarray, columns: int) -> np.ndarray:
    """`[N, H, W, C]` as one image, with light lines between."""
    count, height, width, channels = part.shape
    rows = -(-count // columns)
    shape = (rows * (height + 1) + 1, columns * (width + 1) + 1, channels)
    whole = np.full(shape, 230, np.uint8)
    for i, image in enumerate(part):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        whole[top : top + height, left : left + width] = image
    return whole
