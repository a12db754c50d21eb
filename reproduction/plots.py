"""Figures of the papers, drawn from arrays.

Each function takes arrays and returns a `matplotlib.figure.Figure`; none reads a file.
Colours are those of Okabe and Ito, which colour-blind people can tell apart, and lines
differ in their dashes too.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from pixeldefend import detection
from pixeldefend.experiment import files

CLASSES = {
    "cifar10": ("airplane automobile bird cat deer dog frog horse ship truck".split()),
    "fashion_mnist": (
        "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
    ),
    "mnist": tuple("0123456789"),
}
DATASETS = {
    "cifar10": "CIFAR-10",
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
}
COLOURS = (
    "#000000",
    "#E69F00",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#B8A800",
)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), "-")


def title_of(attack: str) -> str:
    """An attack's name for a person."""
    plain = {"none": "clean", "deepfool": "DeepFool", "cw": "CW"}
    return plain.get(attack, attack.replace("_", " ").upper())


def images(
    rows: Sequence[np.ndarray],
    titles: Sequence[str],
    texts: Sequence[Sequence[str]],
    name: str = "",
) -> Figure:
    """Images in rows with a text below each (Figures 1 and 4).

    Args:
      rows: `[N, H, W, C]` uint8 each.
      titles: of the N columns.
      texts: below the images, N for each row.
      name: of the figure, above all.
    """
    wide, high = 1.25 * len(titles), 1.75 * len(rows) + 0.3
    figure = Figure(figsize=(max(wide, 4), high), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for r, of_row in enumerate(rows):
        for c, image in enumerate(of_row):
            show(axes[r, c], image)
            axes[r, c].set_xlabel(texts[r][c], fontsize=8)
            if not r:
                axes[r, c].set_title(titles[c], fontsize=9)
    put_name(figure, name)
    return figure


def grids(parts: dict[str, np.ndarray], columns: int, name: str = "") -> Figure:
    """Sets of images, one below the other (Figures 8 to 11).

    Args:
      parts: by title, `[N, H, W, C]` uint8.
      columns: images side by side.
      name: of the figure.
    """
    heights = [-(-len(part) // columns) for part in parts.values()]
    figure = Figure(
        figsize=(0.7 * columns, 0.72 * sum(heights) + 0.4 * len(parts)),
        layout="constrained",
    )
    axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, part) in zip(axes, parts.items(), strict=True):
        show(axis, _tiled(part, columns))
        axis.set_title(title, fontsize=9)
    put_name(figure, name)
    return figure


def densities(scores: dict[str, np.ndarray], name: str = "") -> Figure:
    """Bits/dim of sets of images, as shares (Figures 2a and 5).

    Args:
      scores: by title, `[N]` bits/dim.
      name: of the figure.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    every = np.concatenate(list(scores.values()))
    edges = np.linspace(every.min(), every.max(), 41)
    for i, (title, found) in enumerate(scores.items()):
        share = np.full(len(found), 1 / len(found))
        axis.hist(
            found,
            edges,
            weights=share,
            histtype="step",
            color=COLOURS[i % len(COLOURS)],
            linestyle=_DASHES[i % len(_DASHES)],
            linewidth=1.6,
            label=f"{title} (n {len(found)})",
        )
    axis.set_xlabel("bits per dimension")
    axis.set_ylabel("share of images")
    axis.legend(fontsize=8, frameon=False)
    put_name(figure, name)
    return figure


def errors(correct: dict[str, np.ndarray], name: str = "") -> Figure:
    """Test errors with 95 % intervals (Figure 2b).

    Args:
      correct: by title, `[N]` bool.
      name: of the figure.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, right in enumerate(correct.values()):
        wrong = int(np.sum(~right))
        ends = stats.binomtest(wrong, len(right)).proportion_ci(method="wilson")
        low, high = (100 * bound for bound in ends)
        share = 100 * wrong / len(right)
        spread = [[max(share - low, 0)], [max(high - share, 0)]]
        axis.bar(i, share, color=COLOURS[i % len(COLOURS)], yerr=spread, capsize=3)
        axis.text(i, high + 1.5, f"{share:.1f}", ha="center", fontsize=8)
    axis.set_xticks(range(len(correct)), list(correct), fontsize=8)
    axis.set_ylabel("misclassified, %")
    axis.set_ylim(0, 112)
    put_name(figure, name)
    return figure


def p_values(found: dict[str, np.ndarray], name: str = "") -> Figure:
    """Histograms of p-values, and where they would be if uniform (Figures 3 and 7).

    Args:
      found: by title, `[N]`.
      name: of the figure.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.0 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, (title, ranks) in zip(axes, found.items(), strict=False):
        share = np.full(len(ranks), 1 / len(ranks))
        axis.hist(ranks, np.linspace(0, 1, 21), weights=share, color=COLOURS[2])
        axis.axhline(1 / 20, color=COLOURS[3], linestyle="--", linewidth=1)
        axis.set_title(f"{title} (n {len(ranks)})", fontsize=9)
        axis.tick_params(labelsize=7, labelbottom=True)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    figure.supxlabel("p-value (dashed: uniform)", fontsize=9)
    figure.supylabel("share of images", fontsize=9)
    put_name(figure, name)
    return figure


def curves(
    negatives: np.ndarray, panels: dict[str, dict[str, np.ndarray]], name: str = ""
) -> Figure:
    """ROC curves of "unlikely is an attack", with their areas (Figure 6).

    Args:
      negatives: scores of training images, `[M]`.
      panels: by title, by attack, scores `[N]`.
      name: of the figure.
    """
    wide = 3.9 * len(panels)
    figure = Figure(figsize=(wide, 5.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, positives) in zip(axes, panels.items(), strict=True):
        for i, (attack, scores) in enumerate(positives.items()):
            false, true, _ = detection.roc(negatives, scores)
            area = float(detection.auc(negatives, scores))
            axis.plot(
                false,
                true,
                color=COLOURS[i % len(COLOURS)],
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=1.5,
                label=f"{attack}: {area:.3f}",
            )
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("false positive rate (training images)")
        axis.legend(
            title="area",
            fontsize=8,
            title_fontsize=8,
            ncols=2,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
        )
        axis.set_aspect("equal")
    axes[0].set_ylabel("true positive rate")
    put_name(figure, name)
    return figure


def probabilities(
    rows: dict[str, tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    label: int,
    name: str = "",
) -> Figure:
    """A classifier's probabilities for one image, attacked and then purified.

    As in the reproducibility report, Figure 3.

    Args:
      rows: by attack, the probabilities `[K]` before and after purification.
      names: of the classes.
      label: the true one.
      name: of the figure.
    """
    high = 0.5 * len(names) ** 0.5 + 1.35 * len(rows)
    figure = Figure(figsize=(7, high), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    place = np.arange(len(names))
    for axis, (attack, pair) in zip(axes, rows.items(), strict=True):
        for side, (title, found) in enumerate(
            zip(("attacked", "purified"), pair, strict=True)
        ):
            colour = COLOURS[(3, 2)[side]]
            axis.bar(place + 0.4 * side - 0.2, found, 0.4, color=colour, label=title)
        axis.axvspan(label - 0.45, label + 0.45, color="#DDDDDD", zorder=0)
        axis.set_ylim(0, 1.05)
        axis.set_ylabel(attack, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xticks(place, names, fontsize=8, rotation=30)
    figure.legend(
        *axes[0].get_legend_handles_labels(), fontsize=8, loc="outside upper right"
    )
    put_name(figure, name)
    return figure


def accuracies(
    groups: dict[str, dict[str, tuple[float, float, float]]], name: str = ""
) -> Figure:
    """Accuracies by defence under several attackers, with 95 % intervals.

    Args:
      groups: by defence, by attacker, accuracy and the ends of its interval, in
        percent.
      name: of the figure.
    """
    attackers = list(dict.fromkeys(a for group in groups.values() for a in group))
    figure = Figure(figsize=(1.0 + 0.95 * len(groups), 3.8), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(attackers)
    for i, attacker in enumerate(attackers):
        for g, group in enumerate(groups.values()):
            if attacker not in group:
                continue
            middle, low, high = group[attacker]
            at = g + (i + 0.5) * width - 0.4
            spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
            axis.bar(
                at,
                middle,
                width,
                color=COLOURS[(1 + i) % len(COLOURS)],
                yerr=spread,
                capsize=2,
                label=attacker if g == 0 else None,
            )
            axis.text(at, high + 1.5, f"{middle:.0f}", ha="center", fontsize=7)
    axis.set_xticks(range(len(groups)), list(groups), fontsize=7)
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 110)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(attackers))
    put_name(figure, name)
    return figure


def training(
    runs: dict[str, tuple[np.ndarray, np.ndarray]], label: str, name: str = ""
) -> Figure:
    """What density models score on validation images while they are trained.

    Args:
      runs: by network, `[N]` hours and `[N]` bits/dim.
      label: below the hours.
      name: of the figure.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for i, (title, (hours, bits)) in enumerate(runs.items()):
        axis.plot(
            hours,
            bits,
            color=COLOURS[i % len(COLOURS)],
            linestyle=_DASHES[i % len(_DASHES)],
            marker=".",
            linewidth=1.5,
            label=f"{title}: {bits[-1]:.3f}",
        )
    axis.set_xlabel(label)
    axis.set_ylabel("bits per dimension")
    axis.legend(title="at the end", fontsize=8, title_fontsize=8, frameon=False)
    put_name(figure, name)
    return figure


def save(figure: Figure, path: epath.PathLike) -> None:
    """Writes a PNG whole; the same figure gives the same bytes."""
    with files.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def show(axis: Axes, image: np.ndarray) -> None:
    """An image `[H, W, C]` uint8 by itself, without ticks."""
    grey = image.shape[-1] == 1
    axis.imshow(
        image[..., 0] if grey else image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
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


def put_name(figure: Figure, name: str) -> None:
    """A name above a figure, unless it is empty."""
    if name:
        figure.suptitle(name, fontsize=10)
