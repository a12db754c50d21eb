"""Figures of the thesis that explain an idea (its Figures 2 to 5); no data is shown.

What is drawn is computed all the same: paths of sign steps on a loss over a plane, and
boundaries fitted to points.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Patch, Rectangle

from reproduction.plots import COLOURS, start
from reproduction.thesis_plots import WARM, WIDE, legend, mark

# Of the loss over a plane: place of each hill, its height and its width.
_HILLS = np.array(
    [
        [0.35, 1.35, 1.0, 0.6],
        [-1.15, -0.55, 1.35, 0.55],
        [1.5, -0.3, 0.7, 0.5],
        [-0.9, 1.2, 0.35, 0.5],
    ]
)
_STEP = 0.15  # of BIM and PGD, as a share of eps, which is 1 there
_STEPS = 10
_START = 22  # seed of PGD's first point

# Points of two classes, a curve of the third degree between them.
_POINTS = np.array(
    [
        [[-1.6, 1.3], [-0.7, 1.75], [-1.75, 0.2], [-0.55, 0.55]]
        + [[0.35, 1.3], [-1.2, -0.75], [1.3, 1.85]],
        [[0.25, -0.55], [1.0, 0.3], [1.75, 0.75], [-0.4, -1.6]]
        + [[0.75, -1.4], [1.7, -0.6], [-1.5, -1.9]],
    ]
)
_DEGREE = 3
_RADIUS = 0.38
_MARGIN = 1.0  # of the training points, in what the curve is zero of
# Of the two classes: points, and their sides of a boundary (the other one's first).
_CLASSES = (COLOURS[2], "#8A5A00")
_PALE = ("#FBEFD5", "#DCEBF6")

# Of boxes.
_PAPER = "#FFFFFF"
_GIVEN, _NETWORK, _TEST, _OUT = "#EEEEEE", "#D5E8F5", "#FBEFD5", "#F6D9C4"


def loss(points: np.ndarray) -> np.ndarray:
    """A smooth function of the plane: points `[..., 2]` to `[...]`."""
    return _hills(points)[0].sum(-1)


def gradient(points: np.ndarray) -> np.ndarray:
    """That of `loss`, `[..., 2]`."""
    parts, away = _hills(points)
    return -((parts / _HILLS[:, 3] ** 2)[..., None] * away).sum(-2)


def _hills(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How high each hill is at points `[..., 2]`, and the way from its top to them."""
    away = points[..., None, :] - _HILLS[:, :2]
    squares = (away**2).sum(-1)
    return _HILLS[:, 2] * np.exp(-squares / (2 * _HILLS[:, 3] ** 2)), away


def paths() -> dict[str, np.ndarray]:
    """By attack, the points from start to end `[T + 1, 2]`; eps is 1, around zero."""
    start = np.random.default_rng(_START).uniform(-1, 1, 2)
    centre = np.zeros(2)
    return {
        "fgsm": _climb(centre, 1.0, 1),
        "bim": _climb(centre, _STEP, _STEPS),
        "pgd": _climb(start, _STEP, _STEPS),
    }


def _climb(start: np.ndarray, length: float, steps: int) -> np.ndarray:
    points = [start]
    for _ in range(steps):
        moved = points[-1] + length * np.sign(gradient(points[-1]))
        points.append(np.clip(moved, -1, 1))
    return np.stack(points)


def climbs() -> Figure:
    """How FGSM, BIM and PGD climb a loss within an L-infinity ball (Figure 2).

    The ball is a square here, as all attacks of these figures move each value by at
    most eps.
    """
    figure, (axes,) = start(WIDE, 3.2, columns=3, sharey=True)
    edge = 1.7
    across = np.linspace(-edge, edge, 201)
    plane = loss(np.stack(np.meshgrid(across, across), -1))
    texts = {
        "fgsm": "FGSM: one step",
        "bim": f"BIM: {_STEPS} steps, clipped",
        "pgd": f"PGD: {_STEPS} steps from a random point",
    }
    for axis, (attack, points) in zip(axes, paths().items(), strict=True):
        drawn = axis.imshow(
            plane, "YlOrRd", origin="lower", extent=(-edge, edge, -edge, edge)
        )
        axis.add_patch(_square((0, 0), 1, edgecolor=COLOURS[2], linewidth=2))
        axis.plot(*points.T, color=COLOURS[0], marker=".", markersize=5, linewidth=1.2)
        axis.plot(0, 0, "P", color="white", markeredgecolor=COLOURS[0], markersize=9)
        axis.plot(*points[-1], "*", color=COLOURS[0], markersize=13)
        axis.set_title(texts[attack], fontsize=9)
        axis.set_xlabel(f"loss at the end {loss(points[-1]):.2f}", fontsize=9)
        axis.set_xticks([-1, 0, 1], ["$-$eps", "0", "eps"], fontsize=8)
        axis.set_yticks([-1, 0, 1], ["$-$eps", "0", "eps"], fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.01)
    bar.set_label("loss", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    marks = [
        mark("P", "the image", markerfacecolor="white", markersize=8),
        mark("*", "the attack's end", markersize=11),
        Patch(fill=False, edgecolor=COLOURS[2], label="the L-infinity ball of eps"),
    ]
    legend(figure, marks)
    return figure


def boundary(radius: float) -> np.ndarray:
    """Weights `[F]` of a perceptron over products of both coordinates.

    Training ends at the first curve with every point well on its side; with a radius,
    also points all over the balls around them, as if trained on attacks.
    """
    spread = np.linspace(-radius, radius, 5) if radius else np.zeros(1)
    ball = np.stack(np.meshgrid(spread, spread), -1).reshape(-1, 2)
    first, second = _powers(_POINTS[:, :, None] + ball)
    inputs = np.concatenate([first, -second]).reshape(-1, first.shape[-1])
    weights = np.zeros(inputs.shape[-1])
    while (sides := inputs @ weights).min() <= _MARGIN:
        weights += inputs[sides.argmin()]
    return weights


def _powers(points: np.ndarray) -> np.ndarray:
    """`[..., 2]` to `[..., F]`: all products of at most `_DEGREE` factors."""
    x, y = points[..., 0], points[..., 1]
    orders = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    return np.stack([x**i * y**j for i, j in orders], -1)


def side(weights: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Above zero where points `[..., 2]` count as of the first class, `[...]`."""
    return _powers(points) @ weights


def margins() -> Figure:
    """Boundaries through the balls around points, and past them (Figure 3)."""
    figure, (axes,) = start(WIDE, 4.8, columns=2)
    edge = 2.45
    across = np.linspace(-edge, edge, 401)
    plane = np.stack(np.meshgrid(across, across), -1)
    centres = _POINTS.reshape(-1, 2)
    distances = np.abs(plane[:, :, None] - centres).max(-1)
    owner = distances.argmin(-1) < len(_POINTS[0])
    inside = distances.min(-1) < _RADIUS
    titles = ("trained on the points", "trained on all of their balls")
    for axis, radius, title in zip(axes, (0.0, _RADIUS), titles, strict=True):
        sides = side(boundary(radius), plane)
        axis.contourf(across, across, sides, [-np.inf, 0, np.inf], colors=_PALE)
        wrong = (inside & (owner != (sides > 0))).astype(float)
        axis.contourf(across, across, wrong, [0.5, 1.5], colors=[WARM])
        axis.contour(across, across, sides, [0], colors=[COLOURS[0]], linewidths=1.8)
        for points, marker, colour in zip(_POINTS, "os", _CLASSES, strict=True):
            for point in points:
                axis.add_patch(_square(point, _RADIUS, edgecolor="#444444"))
            axis.plot(*points.T, marker, color=colour, markersize=6)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_aspect("equal")
    marks = [
        mark("o", "one class", color=_CLASSES[0], markersize=6),
        mark("s", "the other", color=_CLASSES[1], markersize=6),
        Patch(fill=False, edgecolor="#444444", label="L-infinity ball of eps"),
        Patch(color=WARM, label="where an attack succeeds"),
        Line2D([], [], color=COLOURS[0], linewidth=1.8, label="decision boundary"),
    ]
    legend(figure, marks)
    return figure


def puvae(*, detector: bool) -> Figure:
    """How a PuVAE purifies (Figure 4), and with the detector behind it (Figure 5)."""
    wide = 9.0 if detector else WIDE
    figure = Figure(figsize=(wide, 3.3))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, wide), ylim=(0, 3.3))
    axis.axis("off")
    middle = 1.95
    image = _box(axis, 0.5, middle, 0.75, 0.7, "image\n$x$", _GIVEN)
    choice = _box(
        axis, 5.2, middle, 1.0, 2.3, "the one\nnearest\nto $x$:\nleast RMSE", _PAPER
    )
    for at, label in ((2.85, "0"), (2.2, "1"), (1.05, "K-1")):
        encoder = _box(axis, 1.75, at, 0.85, 0.5, f"encoder\n$y={label}$", _NETWORK)
        latent = Circle((2.57, at), 0.17, facecolor=_PAPER, edgecolor=COLOURS[0])
        axis.add_patch(latent)
        _write(axis, 2.57, at, "$z$")
        decoder = _box(axis, 3.39, at, 0.85, 0.5, f"decoder\n$y={label}$", _NETWORK)
        name = rf"$\hat{{x}}_{{{label}}}$"
        rebuilt = _box(axis, 4.25, at, 0.48, 0.4, name, _GIVEN)
        _arrow(axis, (image[1], middle), (encoder[0], at))
        _arrow(axis, (encoder[1], at), (2.4, at))
        _arrow(axis, (2.74, at), (decoder[0], at))
        _arrow(axis, (decoder[1], at), (rebuilt[0], at))
        _arrow(axis, (rebuilt[1], at), (choice[0], at))
    for at in (1.75, 3.39, 4.25):
        _write(axis, at, 1.62, "$\\vdots$", 12)
    # The image itself, around the networks, to be compared with.
    below = 0.4
    axis.plot([0.5, 0.5, 5.2], [middle - 0.35, below, below], color=COLOURS[0], lw=1)
    _arrow(axis, (5.2, below), (5.2, middle - 1.15))
    _write(axis, 2.57, below + 0.06, "$x$ as given", 8, va="bottom")
    last = choice
    if detector:
        test = _box(axis, 6.45, middle, 0.9, 0.7, "RMSE\nabove $t$?", _TEST)
        _arrow(axis, (choice[1], middle), (test[0], middle))
        _box(axis, 6.45, 0.7, 1.0, 0.5, "rejected as\nattacked", _OUT)
        _arrow(axis, (6.45, middle - 0.35), (6.45, 0.95))
        _write(axis, 6.52, 1.27, "yes", 10, ha="left")
        last = test
    start = 7.65 if detector else 6.7
    network = _box(axis, start, middle, 0.85, 0.7, "classifier", _NETWORK)
    end = _box(axis, start + 0.95, middle, 0.5, 0.7, r"label" "\n" r"$\hat{y}$", _GIVEN)
    _arrow(axis, (last[1], middle), (network[0], middle))
    _arrow(axis, (network[1], middle), (end[0], middle))
    passing = "no" if detector else r"$\hat{x}^*$"
    half = (last[1] + network[0]) / 2
    _write(axis, half, middle + 0.07, passing, 10, va="bottom")
    return figure


def _box(
    axis: Axes, x: float, y: float, wide: float, high: float, text: str, fill: str
) -> tuple[float, float]:
    """A box around (x, y) inches with a text; where its left and its right side are."""
    left = x - wide / 2
    look = {"boxstyle": "round,pad=0,rounding_size=0.06", "edgecolor": COLOURS[0]}
    corner = left, y - high / 2
    axis.add_patch(FancyBboxPatch(corner, wide, high, facecolor=fill, **look))
    _write(axis, x, y, text)
    return left, left + wide


def _write(
    axis: Axes, x: float, y: float, text: str, size: int = 9, **where: str
) -> None:
    """A text in the middle of (x, y) inches, unless `where` has it elsewhere."""
    middle = {"ha": "center", "va": "center"}
    axis.text(x, y, text, fontsize=size, **(middle | where))


def _arrow(axis: Axes, start: Sequence[float], end: Sequence[float]) -> None:
    style = {"arrowstyle": "-|>", "color": COLOURS[0], "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style)


def _square(centre: Sequence[float], radius: float, **look: object) -> Rectangle:
    corner = centre[0] - radius, centre[1] - radius
    return Rectangle(corner, 2 * radius, 2 * radius, fill=False, **look)
