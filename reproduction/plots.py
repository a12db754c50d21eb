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
from scipy import stats

from pixeldefend import detection
from pixeldefend.experiment import files

Arrays = dict[str, np.ndarray]
Picture = tuple[str, Callable[[], Figure]]  # a name, and what draws it

CLASSES = {
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
    "fashion_mnist": (
        "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()
    ),
    "mnist": tuple("0123456789"),
}
DATASETS = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "mnist": "MNIST"}
COLOURS = (
    *("#000000", "#E69F00", "#0072B2", "#D55E00"),
    *("#009E73", "#CC79A7", "#56B4E9", "#B8A800"),
)
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
    wide, high = max(1.25 * len(titles), 4), 1.75 * len(rows) + 0.3
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
    """Bits/dim of sets of images, as shares (Figures 2a and 5).

    Args:
      scores: by title, `[N]` bits/dim.
    """
    figure, ((axis,),) = start(6, 3.6)
    every = np.concatenate(list(scores.values()))
    edges = np.linspace(every.min(), every.max(), 41)
    for i, (title, found) in enumerate(scores.items()):
        look = _look(i) | {"histtype": "step", "linewidth": 1.6}
        share = np.full(len(found), 1 / len(found))
        label = f"{title} (n {len(found)})"
        axis.hist(found, edges, weights=share, label=label, **look)
    axis.set_xlabel("bits per dimension")
    axis.set_ylabel("share of images")
    axis.legend(fontsize=8, frameon=False)
    return figure


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
    """Histograms of p-values, and where they would be if uniform (Figures 3 and 7).

    Args:
      found: by title, `[N]`.
    """
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    size = 2.6 * columns, 2.0 * rows + 0.3
    figure, axes = start(*size, rows, columns, sharex=True)
    for axis, (title, ranks) in zip(axes.flat, found.items(), strict=False):
        share = np.full(len(ranks), 1 / len(ranks))
        axis.hist(ranks, np.linspace(0, 1, 21), weights=share, color=COLOURS[2])
        axis.axhline(1 / 20, color=COLOURS[3], linestyle="--", linewidth=1)
        axis.set_title(f"{title} (n {len(ranks)})", fontsize=9)
        axis.tick_params(labelsize=7, labelbottom=True)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.supxlabel("p-value (dashed: uniform)", fontsize=9)
    figure.supylabel("share of images", fontsize=9)
    return figure


def curves(negatives: np.ndarray, panels: dict[str, dict[str, np.ndarray]]) -> Figure:
    """ROC curves of "unlikely is an attack", with their areas (Figure 6).

    Args:
      negatives: scores of training images, `[M]`.
      panels: by title, by attack, scores `[N]`.
    """
    figure, (axes,) = start(3.9 * len(panels), 5.6, columns=len(panels))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 2}
    for axis, (title, positives) in zip(axes, panels.items(), strict=True):
        for i, (attack, scores) in enumerate(positives.items()):
            false, true, _ = detection.roc(negatives, scores)
            area = float(detection.auc(negatives, scores))
            axis.plot(false, true, label=f"{attack}: {area:.3f}", **_look(i))
        axis.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("false positive rate (training images)")
        axis.legend(title="area", fontsize=8, title_fontsize=8, frameon=False, **below)
        axis.set_aspect("equal")
    axes[0].set_ylabel("true positive rate")
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
    """Writes a PNG whole; the same figure gives the same bytes."""
    with files.whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


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
