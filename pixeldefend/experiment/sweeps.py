"""Accuracy against eps: from rows of `--mode=sweep`, beside what was published."""

import collections
import dataclasses
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np

from pixeldefend import pixels
from pixeldefend.experiment import grid, published, report

# Of a detector in front, the kind of defence that the thesis calls "ours".
OURS = "reject_rmse+puvae"


@dataclasses.dataclass(frozen=True)
class Key:
    """Which curve a row belongs to.

    Attributes:
      classifier: its weights.
      defence: see `grid.Pipeline.defence`.
      attack: its name.
      preset: of its arguments; "" for none.
      slope: how it saw purifiers; "" for not at all.
      levels: "fractional" or "whole".
    """

    classifier: str
    defence: str
    attack: str
    preset: str
    slope: str
    levels: str

    @property
    def column(self) -> tuple[str, str, str, str]:
        """What it has in common with the curves of other defences."""
        return self.attack, self.preset, self.slope, self.levels

    def title(self) -> str:
        """Of its column, for people."""
        words = [self.attack.upper().replace("_", "-")]
        if self.preset not in ("", "thesis"):
            words.append(f"({self.preset})")
        if self.slope:
            words.append(f"through the purifier ({self.slope.replace('_', ' ')})")
        if self.levels == "whole":
            words.append("in whole levels")
        return " ".join(words)


def curves(rows: Iterable[dict]) -> dict[Key, list[dict]]:
    """The rows of each attack on each defence, by rising eps; clean ones have eps 0.

    A curve is of one number of images, the one that most of its rows have, as far as
    may be: points of other images are not to be compared.
    """
    found = {}
    for key, own in _sorted(rows).items():
        usual = collections.Counter(row["n"] for row in own).most_common(1)[0][0]
        points: dict[float, dict] = {}
        for row in own:
            known = points.get(row["eps_attack"])
            if known is None or known["n"] != usual:
                points[row["eps_attack"]] = row
        found[key] = list(points.values())
    return found


def largest(rows: Iterable[dict]) -> dict[Key, dict]:
    """The row of the largest eps of each attack on each defence, of the most images."""
    return {
        key: max(own, key=lambda row: (row["eps_attack"], row["n"]))
        for key, own in _sorted(rows).items()
    }


def _sorted(rows: Iterable[dict]) -> dict[Key, list[dict]]:
    """The rows of each curve, by rising eps, then by the number of images."""
    found: dict[Key, list[dict]] = {}
    for row in rows:
        levels = row.get("levels") or "whole"
        if row["attack"] == grid.CLEAN:
            levels = ""
        key = Key(
            row["classifier"],
            row["defence"],
            row["attack"],
            row["preset"] or "",
            row["slope"] or "",
            levels,
        )
        found.setdefault(key, []).append(row)
    return {
        key: sorted(own, key=lambda row: (row["eps_attack"], row["n"]))
        for key, own in found.items()
    }


def worst(curve: list[dict]) -> dict:
    """The row of a curve with the least accuracy, of several that of the least eps."""
    return min(curve, key=lambda row: row["accuracy"])


def lines(
    rows: list[dict], only: Sequence[str] = (), short: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table as the thesis's Tables 3 to 5, in percent.

    A line for each attack, with the accuracy at the largest eps, of as many images as
    there are, and at the worst one of a curve for each defence; published numbers,
    where the attack does not look at the purifier, as the thesis does not say.

    Args:
      rows: of `--mode=sweep`.
      only: the defences to show; none for all.
      short: whether cells are narrow and of several lines, for a terminal.
    """
    found = {
        key: curve
        for key, curve in curves(rows).items()
        if not only or key.defence in only
    }
    last_rows = largest(rows)
    defences = list(dict.fromkeys((k.classifier, k.defence) for k in found))
    columns = list(dict.fromkeys(k.column for k in found))
    header = [""]
    for _, defence in defences:
        name = defence.replace("_", " ").replace("+", ",\n" if short else ", ")
        header.append("no defence" if defence == "none" else name)
        header.append("worst (eps)")
    table = []
    for column in columns:
        line = []
        for classifier, defence in defences:
            key = Key(classifier, defence, *column)
            curve = found.get(key)
            if curve is None:
                line += ["", ""]
                continue
            last, least = last_rows[key], worst(curve)
            line.append(_cell(last, _published(last, defence, worst=False), short))
            if column[0] == grid.CLEAN or len(curve) == 1:
                line.append("")
                continue
            at = f" at {_fraction(least['eps_attack']):.2f}"
            theirs = _published(least, defence, worst=True)
            line.append(_cell(least, theirs, short, at))
        title = "clean" if column[0] == grid.CLEAN else _title(found, column)
        if short:
            title = textwrap.fill(title, 30, subsequent_indent="  ")
        table.append([title, *line])
    return header, table


def _fraction(levels: float) -> float:
    return float(pixels.to_fractions(np.float32(levels)))


def _title(found: dict[Key, list[dict]], column: tuple[str, ...]) -> str:
    key = next(key for key in found if key.column == column)
    eps = _fraction(found[key][-1]["eps_attack"])
    return f"{key.title()}, eps {eps:.2f}"


def _published(row: dict, defence: str, *, worst: bool) -> float | None:
    """What the thesis has for a row at its largest or its worst eps."""
    kinds = {"none": "none", "puvae": "puvae", OURS: "worst" if worst else "detector"}
    if defence not in kinds or (worst and defence != OURS) or row["slope"]:
        return None
    largest = published.THESIS_EPS.get(row["dataset"])
    if row["attack"] != grid.CLEAN and not worst:
        if largest is None or not np.isclose(_fraction(row["eps_attack"]), largest):
            return None
    return published.thesis(row["dataset"], row["attack"], kinds[defence])


def _cell(row: dict, theirs: float | None, short: bool, after: str = "") -> str:
    """Accuracy, its interval and the published one, and `after`."""
    share, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
    if short:
        text = f"{share:.1f}" if theirs is None else f"{share:.1f} ({theirs:.1f})"
        return f"{text}{after}\n{report.interval(low, high)}"
    text = f"{share:.1f} ({low:.1f} to {high:.1f}){after}"
    return text if theirs is None else f"{text}, thesis {theirs:.1f}"


def show(rows: list[dict]) -> str:
    """The table as text, for a terminal."""
    return report.table(*lines(rows, short=True), together=2)
