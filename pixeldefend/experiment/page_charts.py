"""Histograms and ROC curves of a page, as SVG."""

from collections.abc import Mapping, Sequence

import numpy as np

from pixeldefend.experiment import page

_WIDE, _HIGH = 300, 170  # units of a drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 6, 8, 30  # of its margins
_BINS = 40
_POINTS = 128  # of a curve
SERIES = {
    "clean": "clean (filled)",
    "attacked": "attacked (solid line)",
    "purified": "attacked and purified (dashed)",
}
# By series: how its line is drawn; neither by colour nor by dashes alone.
_LINES = {
    "clean": "fill:var(--clean);fill-opacity:.35;stroke:var(--clean)",
    "attacked": "fill:none;stroke:var(--attacked);stroke-width:1.8",
    "purified": "fill:none;stroke:var(--purified);stroke-width:1.8;"
    "stroke-dasharray:5 3",
}


def bins_for(values: Sequence[np.ndarray]) -> np.ndarray:
    """Edges `[B + 1]` of bins for several sets `[N]`, the outermost percents cut."""
    whole = np.concatenate([v[np.isfinite(v)] for v in values])
    low, high = np.quantile(whole, (0.001, 0.999)) if len(whole) else (0, 1)
    return np.linspace(low, max(high, low + 1e-6), _BINS + 1)


def round_numbers(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most eleven, for an axis."""
    rough = (high - low) / 4 * (1 + 1e-9)  # of a power of ten, log10 rounds up
    power = 10.0 ** np.floor(np.log10(rough))
    step = max(k * power for k in (1, 2, 5) if k * power <= rough)
    first, last = np.ceil(low / step), np.floor(high / step)
    return [float(f"{i * step:.9g}") for i in np.arange(first, last + 1)]


def histogram(values: Mapping[str, np.ndarray], edges: np.ndarray, unit: str) -> str:
    """Shares of images, by series.

    Args:
      values: `[N]` each, by a key of clean, attacked, purified.
      edges: of the bins, `[B + 1]`; what lies beyond counts for the outermost.
      unit: of the values.
    """
    shares = {}
    for name, found in values.items():
        inside = np.clip(found[np.isfinite(found)], edges[0], edges[-1])
        shares[name] = np.histogram(inside, edges)[0] / max(len(inside), 1)
    most = max((float(s.max()) for s in shares.values()), default=0) or 1.0
    first, last = edges[0], edges[-1]
    places = [_x(edge) for edge in (edges - first) / (last - first)]
    drawn = []
    for name, share in shares.items():
        points = [(places[0], _y(0))]
        for i, height in enumerate(share / most):
            points += [(places[i], _y(height)), (places[i + 1], _y(height))]
        points.append((places[-1], _y(0)))
        drawn.append(_line(points, _LINES[name]))
    ticks = [
        (_x((value - first) / (last - first)), f"{value:g}")
        for value in round_numbers(first, last)
    ]
    levels = [(_y(part), f"{100 * most * part:.0f} %") for part in (0.5, 1.0)]
    medians = ", ".join(
        f"{name} {np.nanmedian(found):.2f}" for name, found in values.items()
    )
    return _drawing(
        drawn, ticks, levels, unit, f"Histogram of {unit}; medians: {medians}"
    )


def roc(negatives: np.ndarray, positives: Mapping[str, np.ndarray]) -> str:
    """ROC curves of "an unlikely image is an attack".

    Args:
      negatives: log-probabilities of training images, `[N]` nats.
      positives: of attacked images, `[M]` each, by a key of attacked, purified.
    """
    chance = [(_x(0), _y(0)), (_x(1), _y(1))]
    drawn = [_line(chance, "fill:none;stroke:var(--line);stroke-width:1.2")]
    for name, scores in positives.items():
        wrong, right = curve(negatives, scores)
        points = [
            (_x(0), _y(0)),
            *((_x(a), _y(b)) for a, b in zip(wrong, right, strict=True)),
        ]
        drawn.append(_line(points, _LINES[name]))
    parts = (0.0, 0.5, 1.0)
    told = [f"{name} {area:.3f}" for name, area in areas(negatives, positives).items()]
    return _drawing(
        drawn,
        [(_x(v), f"{v:g}") for v in parts],
        [(_y(v), f"{v:g}") for v in parts[1:]],
        "false-positive rate (upwards: true-positive rate)",
        f"ROC curve; area under it: {', '.join(told)}",
    )


def areas(
    negatives: np.ndarray, positives: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Areas under ROC curves, by series; arguments as for `roc`."""
    ordered = np.sort(negatives)
    found = {}
    for name, scores in positives.items():
        # The share of negatives above a positive; of those that are level, half.
        sides = [np.searchsorted(ordered, scores, side) for side in ("left", "right")]
        found[name] = 1 - float(np.mean(sides)) / len(ordered)
    return found


def curve(
    negatives: np.ndarray, positives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A ROC curve in few points, in numpy: a program for each shape would take longer.

    Args:
      negatives: scores `[N]`.
      positives: likewise, `[M]`.

    Returns:
      False-positive rates, evenly from 0 to 1, and at each the largest true-positive
      rate of "a score of at most t is an attack".
    """
    rates = np.linspace(0, 1, _POINTS + 1)
    ordered = np.append(np.sort(negatives), np.inf)
    # So many negatives may be at or below t, which thus stays below the next of them.
    allowed = np.floor(rates * len(negatives) + 1e-9).astype(int)
    found = np.searchsorted(np.sort(positives), ordered[allowed], side="left")
    return rates, found / len(positives)


def legend(names: Mapping[str, str]) -> str:
    """What lines of the drawings mean, by series."""
    items = "".join(
        f'<span class="key"><svg viewBox="0 0 28 10" aria-hidden="true">'
        f"{_line([(1, 9), (1, 3), (27, 3), (27, 9)], _LINES[name])}</svg> "
        f"{page.text(told)}</span>"
        for name, told in names.items()
    )
    return f'<p class="facts">{items}</p>'


def _x(share: float) -> float:
    """Where a share of the horizontal axis is, in units of the drawing."""
    return _LEFT + share * _inner_width()


def _y(share: float) -> float:
    """Likewise of the vertical axis, upwards."""
    return _HIGH - _BOTTOM - share * (_HIGH - _TOP - _BOTTOM)


def _inner_width() -> int:
    return _WIDE - _LEFT - _RIGHT


def _line(points: Sequence[tuple[float, float]], style: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" style="{style}"/>'


def _drawing(
    drawn: Sequence[str],
    ticks: Sequence[tuple[float, str]],
    levels: Sequence[tuple[float, str]],
    unit: str,
    told: str,
) -> str:
    """Lines with axes around them; ticks and levels are places with their words."""
    floor = _HIGH - _BOTTOM
    lines = [
        f'<line x1="{_LEFT}" x2="{_WIDE - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        'style="stroke:var(--line);stroke-width:.7"/>'
        for y in (floor, *(y for y, _ in levels))
    ]
    words = [_text(x, floor + 12, "middle", word) for x, word in ticks]
    words += [_text(_LEFT - 4, y + 3, "end", word) for y, word in levels]
    words.append(_text((_LEFT + _WIDE - _RIGHT) / 2, _HIGH - 4, "middle", unit))
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="{page.text(told)}">'
        + "".join((*lines, *drawn, *words))
        + "</svg>"
    )


def _text(x: float, y: float, anchor: str, words: str) -> str:
    told = page.text(words)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{told}</text>'
