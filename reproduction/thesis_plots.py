"""Figures of the thesis on PuVAE with a detector (2020), and ours beside them.

Each function takes arrays or rows and returns a `matplotlib.figure.Figure`; none reads
a file; `schematics` has the figures that show no data. Strengths and distances are
given in levels and shown as the thesis has them, in the range 0..1.
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
from pixeldefend.experiment import sweeps
from reproduction.plots import COLOURS, show, start, title_of

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
      rows: by rising eps, as `sweeps.curves` has them.
      field: the share that is drawn, "accuracy" with its 95 % interval.
      marked: whether a diamond is where accuracy is least.
      dashed: whether the attack looks through the purifier too.
      thin: whether it is drawn as something to compare with.
    """

    group: str
    rows: list[dict]
    field: str
    marked: bool = False
    dashed: bool = False
    thin: bool = False

    @property
    def width(self) -> float:
        """Of its line."""
        return 0.9 if self.thin else 1.7

    def values(self, field: str) -> np.ndarray:
        """In percent, `[E]`."""
        return 100 * np.array([row[field] for row in self.rows])

    def draw(self, axis: Axes, colour: str) -> None:
        """Adds it to an axis."""
        eps = fractions([row["eps_attack"] for row in self.rows])
        if self.field == "accuracy":
            low, high = self.values("low"), self.values("high")
            axis.fill_between(eps, low, high, color=colour, alpha=0.18, linewidth=0)
        look = {"linestyle": "--" if self.dashed else "-", "linewidth": self.width}
        look["marker"] = "o" if len(eps) == 1 else None  # a single eps has no line
        values = self.values(self.field)
        axis.plot(eps, values, color=colour, markersize=4, **look)
        if self.marked:
            least = self.rows.index(sweeps.worst(self.rows))
            look = {"color": colour, "markeredgecolor": "white", "zorder": 5}
            axis.plot(eps[least], values[least], "D", **look)


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


def strengths(rows: dict[str, np.ndarray], eps: np.ndarray) -> Figure:
    """One image under attacks of rising eps (thesis, Figure 1).

    Args:
      rows: by attack, `[E, H, W, C]` levels, whole or not.
      eps: `[E]` levels.
    """
    side = WIDE / (len(eps) + 0.5)
    size = WIDE, (side + 0.2) * len(rows) + 0.3
    figure, axes = start(*size, len(rows), len(eps))
    found = fractions(eps)
    digits = 2 if np.allclose(found, found.round(2), rtol=0, atol=1e-4) else 3
    for own, (attack, images) in zip(axes, rows.items(), strict=True):
        own[0].set_ylabel(title_of(attack), fontsize=10)
        for axis, image, one in zip(own, images, found, strict=True):
            show(axis, _whole(image))
            axis.set_xlabel(f"{one:.{digits}f}", fontsize=9)
    figure.supxlabel("eps, of the range 0..1", fontsize=9)
    return figure


def choices(sets: dict[str, Rebuilt], names: Sequence[str]) -> Figure:
    """The first image, and what a PuVAE makes of it for every label (Figure 6).

    Args:
      sets: by title, for a row each.
      names: of the K classes.
    """
    side = WIDE / (len(names) + 1.8)
    size = WIDE, (side + 0.27) * len(sets) + 0.45
    figure, axes = start(*size, len(sets), len(names) + 1)
    for own, (title, found) in zip(axes, sets.items(), strict=True):
        show(own[0], _whole(found.given[0]))
        own[0].set_xlabel("RMSE", fontsize=8)
        own[0].set_ylabel(title, fontsize=9)
        distances = fractions(found.distances[0])
        for axis, image, one in zip(own[1:], found.images[0], distances, strict=True):
            show(axis, image)
            axis.set_xlabel(f"{one:.3f}", fontsize=8)
        _frame(own[1 + found.nearest()[0]])
    for axis, title in zip(axes[0], ("given", *names), strict=True):
        axis.set_title(title, fontsize=8)
    return figure


def curves(panels: dict[str, Sequence[Curve]], share: str, worst: str = "") -> Figure:
    """Shares of images against eps (Figures 7 and 8).

    Args:
      panels: by title, the curves of each.
      share: what the shares are of.
      worst: what diamonds mark.
    """
    figure, (axes,) = start(WIDE, 3.5, columns=len(panels), sharey=True)
    every = [curve for own in panels.values() for curve in own]
    groups: dict[str, Curve] = {}
    for curve in every:
        groups.setdefault(curve.group, curve)
    colours = dict(zip(groups, itertools.cycle(COLOURS), strict=False))
    for axis, (title, own) in zip(axes, panels.items(), strict=True):
        for curve in own:
            curve.draw(axis, colours[curve.group])
        axis.set_title(title, fontsize=10)
        axis.set_ylim(-2, 102)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(color="#DDDDDD", linewidth=0.5)
        axis.set_xlabel("eps, of the range 0..1", fontsize=9)
    axes[0].set_ylabel(f"{share}, %", fontsize=9)
    marks = [
        Line2D([], [], color=colours[group], linewidth=curve.width, label=group)
        for group, curve in groups.items()
    ]
    notes = []
    if any(curve.marked for curve in every):
        notes.append(mark("D", worst, markersize=6))
    if any(curve.dashed for curve in every):
        text = "the attack looks through the PuVAE too"
        notes.append(Line2D([], [], color="#666666", linestyle="--", label=text))
    legend(figure, marks, notes)
    return figure


def outcomes(panels: dict[str, dict[str, dict]]) -> Figure:
    """What becomes of images behind detectors.

    Args:
      panels: by detector, by attack, a row with the shares right, rejected and wrong.
    """
    figure, (axes,) = start(WIDE, 3.5, columns=len(panels), sharey=True)
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        for at, row in enumerate(bars.values()):
            _stack(axis, at, row)
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
    return figure


def _stack(axis: Axes, at: int, row: dict) -> None:
    bottom = 0.0
    halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
    for outcome, (colour, hatch) in _OUTCOMES.items():
        high = 100 * row[outcome]
        look = {"color": colour, "hatch": hatch, "edgecolor": "#888888", "lw": 0.5}
        axis.bar(at, high, 0.8, bottom, **look)
        if high >= 6:  # else the text is higher than its bar
            middle = bottom + high / 2
            text = axis.text(at, middle, f"{high:.0f}", ha="center", va="center")
            text.set(fontsize=8, path_effects=halo)
        bottom += high


def reconstructions(
    sets: dict[str, Rebuilt], labels: np.ndarray, names: Sequence[str]
) -> Figure:
    """Images and the nearest reconstructions of them (appendices B to D).

    Args:
      sets: by title, two rows each: the images given, and what a PuVAE makes of them;
        below that the label it was nearest for, framed where it is not the true one.
      labels: `[N]` true ones.
      names: of the K classes.
    """
    count = min([len(labels), *(len(found.given) for found in sets.values())])
    across = min(10, count)
    blocks = -(-count // across)
    side = WIDE / (across + 1)
    high = blocks * (len(sets) * (2 * side + 0.25) + 0.2) + 0.3
    rows = 2 * len(sets)
    figure, axes = start(WIDE, high, blocks * rows, across)
    for axis in axes.flat:
        axis.axis("off")
    for i in range(count):
        own = axes[i // across * rows :, i % across]
        own[0].set_title(names[labels[i]], fontsize=8)
        for s, (title, found) in enumerate(sets.items()):
            label = found.nearest()[i]
            pair = own[2 * s : 2 * s + 2]
            shown = found.given[i], found.images[i, label]
            for axis, image, text in zip(pair, shown, (title, "rebuilt"), strict=True):
                axis.axis("on")
                show(axis, _whole(image))
                if i % across == 0:
                    axis.set_ylabel(text, fontsize=8)
            pair[1].set_xlabel(names[label], fontsize=8)
            if label != labels[i]:
                _frame(pair[1])
    return figure


def fractions(levels: np.ndarray | Sequence[float] | float) -> np.ndarray:
    """Levels in the range 0..1."""
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
    look = {"fontsize": 8, "loc": "outside lower center", "frameon": False}
    columns = max(len(marks), len(below))
    figure.legend(handles=handles, ncols=columns, **look)
