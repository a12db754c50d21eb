"""Figures of the thesis on PuVAE with a detector (2020), and ours beside them.

Each function takes arrays and returns a `matplotlib.figure.Figure`; none reads a file;
`schematics` has the figures that show no data. Strengths and distances are given in
levels and shown as the thesis has them, in the range 0..1.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pixeldefend import pixels
from reproduction.plots import COLOURS, put_name, show, title_of

WIDE = 8.2  # inches: 900 pixels as saved
WARM = COLOURS[3]  # for what is chosen, wrong or outside

# Colour and hatching.
_OUTCOMES = {
    "right": (COLOURS[4], ""),
    "rejected": ("#DDDDDD", "///"),
    "wrong": (WARM, ""),
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """Shares of images by eps.

    Attributes:
      group: what the legend calls it; curves of one group have one colour.
      eps: `[E]` levels, rising.
      shares: `[E]`, 0..1.
      band: `[2, E]`, the ends of 95 % intervals; None for none.
      worst: where in `[E]` the diamond is; None for no diamond.
      dashed: whether the attack looks through the purifier too.
      thin: whether it is drawn as something to compare with.
    """

    group: str
    eps: np.ndarray
    shares: np.ndarray
    band: np.ndarray | None = None
    worst: int | None = None
    dashed: bool = False
    thin: bool = False


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """Images and what a PuVAE makes of each of them for every label.

    Attributes:
      given: `[N, H, W, C]` levels, whole or not.
      images: `[N, K, H, W, C]` uint8.
      distances: `[N, K]` levels, RMSE to the given ones.
    """

    given: np.ndarray
    images: np.ndarray
    distances: np.ndarray

    def nearest(self) -> np.ndarray:
        """The label of the nearest reconstruction of each, `[N]`."""
        return self.distances.argmin(1)


def strengths(rows: dict[str, np.ndarray], eps: np.ndarray, name: str = "") -> Figure:
    """One image under attacks of rising eps (thesis, Figure 1).

    Args:
      rows: by attack, `[E, H, W, C]` levels, whole or not.
      eps: `[E]` levels.
      name: of the figure.
    """
    side = WIDE / (len(eps) + 0.5)
    size = (WIDE, (side + 0.2) * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(eps), squeeze=False)
    found = _fractions(eps)
    digits = 2 if np.allclose(found, found.round(2), rtol=0, atol=1e-4) else 3
    for own, (attack, images) in zip(axes, rows.items(), strict=True):
        own[0].set_ylabel(title_of(attack), fontsize=10)
        for axis, image, one in zip(own, images, found, strict=True):
            show(axis, _whole(image))
            axis.set_xlabel(f"{one:.{digits}f}", fontsize=9)
    figure.supxlabel("eps, of the range 0..1", fontsize=9)
    put_name(figure, name)
    return figure


def choices(
    sets: dict[str, Rebuilt], names: Sequence[str], i: int = 0, name: str = ""
) -> Figure:
    """An image, and what a PuVAE makes of it for every label (Figure 6).

    Args:
      sets: by title, for a row each; the image is the i-th of all of them.
      names: of the K classes.
      i: which image.
      name: of the figure.
    """
    side = WIDE / (len(names) + 1.8)
    size = (WIDE, (side + 0.27) * len(sets) + 0.45)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(sets), len(names) + 1, squeeze=False)
    for own, (title, found) in zip(axes, sets.items(), strict=True):
        show(own[0], _whole(found.given[i]))
        own[0].set_xlabel("RMSE", fontsize=8)
        own[0].set_ylabel(title, fontsize=9)
        nearest = found.nearest()[i]
        distances = _fractions(found.distances[i])
        for k, axis in enumerate(own[1:]):
            show(axis, found.images[i, k])
            axis.set_xlabel(f"{distances[k]:.3f}", fontsize=8)
            if k == nearest:
                _frame(axis)
    for axis, title in zip(axes[0], ("given", *names), strict=True):
        axis.set_title(title, fontsize=8)
    put_name(figure, name)
    return figure


def curves(
    panels: dict[str, Sequence[Curve]], share: str, name: str = "", worst: str = ""
) -> Figure:
    """Shares of images against eps (Figures 7 and 8).

    Args:
      panels: by title, the curves of each.
      share: what the shares are of.
      name: of the figure.
      worst: what diamonds mark.
    """
    figure = Figure(figsize=(WIDE, 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    every = [curve for own in panels.values() for curve in own]
    groups = list(dict.fromkeys(curve.group for curve in every))
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    for axis, (title, own) in zip(axes, panels.items(), strict=True):
        for curve in own:
            _draw(axis, curve, colours[curve.group])
        axis.set_title(title, fontsize=10)
        axis.set_ylim(-2, 102)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(color="#DDDDDD", linewidth=0.5)
        axis.set_xlabel("eps, of the range 0..1", fontsize=9)
    axes[0].set_ylabel(f"{share}, %", fontsize=9)
    marks = []
    for group in groups:
        width = _width(next(curve for curve in every if curve.group == group))
        line = Line2D([], [], color=colours[group], linewidth=width, label=group)
        marks.append(line)
    notes = []
    if any(curve.worst is not None for curve in every):
        notes.append(mark("D", worst, markersize=6))
    if any(curve.dashed for curve in every):
        text = "the attack looks through the PuVAE too"
        notes.append(Line2D([], [], color="#666666", linestyle="--", label=text))
    legend(figure, marks, notes)
    put_name(figure, name)
    return figure


def _draw(axis: Axes, curve: Curve, colour: str) -> None:
    eps = _fractions(curve.eps)
    if curve.band is not None:
        low, high = 100 * curve.band
        axis.fill_between(eps, low, high, color=colour, alpha=0.18, linewidth=0)
    # A single eps has no line.
    marker = "o" if len(eps) == 1 else None
    axis.plot(
        eps,
        100 * curve.shares,
        color=colour,
        linestyle="--" if curve.dashed else "-",
        linewidth=_width(curve),
        marker=marker,
        markersize=4,
    )
    if curve.worst is not None:
        at = eps[curve.worst], 100 * curve.shares[curve.worst]
        axis.plot(*at, "D", color=colour, markeredgecolor="white", zorder=5)


def _width(curve: Curve) -> float:
    return 0.9 if curve.thin else 1.7


def outcomes(
    panels: dict[str, dict[str, tuple[float, float, float]]], name: str = ""
) -> Figure:
    """What becomes of images behind detectors.

    Args:
      panels: by detector, by attack, the shares right, rejected and wrong, 0..1.
      name: of the figure.
    """
    figure = Figure(figsize=(WIDE, 3.5), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for at, shares in enumerate(bars.values()):
            _stack(axis, at, shares)
        axis.set_xticks(range(len(bars)), list(bars), fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.set_ylim(0, 100)
        axis.set_xlim(-0.5, len(bars) - 0.5)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("images, %", fontsize=9)
    marks = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="#888888", label=outcome)
        for outcome, (colour, hatch) in _OUTCOMES.items()
    ]
    legend(figure, marks)
    put_name(figure, name)
    return figure


def _stack(axis: Axes, at: int, shares: Sequence[float]) -> None:
    bottom = 0.0
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for share, (colour, hatch) in zip(shares, _OUTCOMES.values(), strict=True):
        high = 100 * share
        axis.bar(
            at,
            high,
            0.8,
            bottom,
            color=colour,
            hatch=hatch,
            edgecolor="#888888",
            lw=0.5,
        )
        if high >= 6:  # else the text is higher than its bar
            middle = bottom + high / 2
            text = axis.text(at, middle, f"{high:.0f}", ha="center", va="center")
            text.set(fontsize=8, path_effects=halo)
        bottom += high


def reconstructions(
    sets: dict[str, Rebuilt],
    labels: np.ndarray,
    names: Sequence[str],
    name: str = "",
    columns: int = 10,
) -> Figure:
    """Images and the nearest reconstructions of them (appendices B to D).

    Args:
      sets: by title, two rows each: the images given, and what a PuVAE makes of them;
        below that the label it was nearest for, framed where it is not the true one.
      labels: `[N]` true ones.
      names: of the K classes.
      name: of the figure.
      columns: images side by side.
    """
    count = min([len(labels), *(len(found.given) for found in sets.values())])
    blocks = -(-count // columns)
    across = min(columns, count)
    side = WIDE / (across + 1)
    high = blocks * (len(sets) * (2 * side + 0.25) + 0.2) + 0.3
    figure = Figure(figsize=(WIDE, high), layout="constrained")
    rows = 2 * len(sets)
    axes = figure.subplots(blocks * rows, across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        top, column = i // columns * rows, i % columns
        axes[top, column].set_title(names[labels[i]], fontsize=8)
        for s, found in enumerate(sets.values()):
            label = found.nearest()[i]
            pair = axes[top + 2 * s : top + 2 * s + 2, column]
            for axis, image in zip(
                pair, (found.given[i], found.images[i, label]), strict=True
            ):
                axis.axis("on")
                show(axis, _whole(image))
            pair[1].set_xlabel(names[label], fontsize=8)
            if label != labels[i]:
                _frame(pair[1])
    for block in range(blocks):
        for s, title in enumerate(sets):
            for below, text in enumerate((title, "rebuilt")):
                axis = axes[block * rows + 2 * s + below, 0]
                axis.set_ylabel(text, fontsize=8)
    put_name(figure, name)
    return figure


def _fractions(levels: np.ndarray) -> np.ndarray:
    return np.asarray(pixels.to_fractions(np.asarray(levels, np.float32)))


def _whole(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, pixels.LEVELS - 1).astype(np.uint8)


def _frame(axis: Axes) -> None:
    for spine in axis.spines.values():
        spine.set(color=WARM, linewidth=3)
    axis.xaxis.label.set_fontweight("bold")


def mark(marker: str, text: str, **look: object) -> Line2D:
    """A marker for a legend."""
    plain = {"color": COLOURS[0], "linestyle": "", "label": text}
    return Line2D([], [], marker=marker, **(plain | look))


def legend(
    figure: Figure, marks: Sequence[Artist], below: Sequence[Artist] = ()
) -> None:
    """A legend under a figure, in one line or in two."""
    handles = list(marks)
    if below:  # columns are filled one after the other
        blank = Patch(alpha=0, label=" ")
        pairs = itertools.zip_longest(marks, below, fillvalue=blank)
        handles = [one for pair in pairs for one in pair]
    figure.legend(
        handles=handles,
        fontsize=8,
        loc="outside lower center",
        ncols=max(len(marks), len(below)),
        frameon=False,
    )
