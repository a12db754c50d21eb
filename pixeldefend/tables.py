"""Tables of attacks against defences: from rows, beside what was published."""

import dataclasses
from collections.abc import Callable, Iterable

from pixeldefend import grid, published, report

STRONGEST = "strongest"
WORST = "worst_per_image"
# Presets whose accuracies the paper has; no preset: clean images.
_THEIRS = (None, "paper", "code")
_TITLES = {
    grid.CLEAN: "clean",
    STRONGEST: "strongest",
    WORST: "every attack",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One accuracy of a table, in percent.

    Attributes:
      ours: measured.
      low: end of its 95 % interval.
      high: the other end.
      n: images.
      paper: what was published, or None.
    """

    ours: float
    low: float
    high: float
    n: int
    paper: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, points."""
        return None if self.paper is None else self.ours - self.paper

    @property
    def departs(self) -> bool:
        """Whether the paper's number is outside the interval and 5 points away."""
        if self.paper is None:
            return False
        return not self.low <= self.paper <= self.high and abs(self.difference) > 5

    def __str__(self) -> str:
        text = f"{self.ours:.1f} ± {(self.high - self.low) / 2:.1f}"
        if self.paper is None:
            return text
        return f"{text} ({self.paper:.0f}, {self.difference:+.1f})"


class Table:
    """The cells of a grid, found among rows."""

    def __init__(self, layout: grid.Grid, rows: Iterable[dict], dataset: str):
        """Sorts the rows.

        Args:
          layout: rows, columns and eps to show.
          rows: of `--mode=evaluate`, see `cell_key` for what is read.
          dataset: of the published numbers.
        """
        self.layout, self._dataset = layout, dataset
        self._columns = {str(column): column for column in layout.columns}
        self._rows = {cell_key(row): row for row in rows}

    def columns(self) -> list[str]:
        """What stands above the cells."""
        found = [grid.CLEAN, *self._columns]
        return [*found, STRONGEST, WORST] if self._columns else found

    def cell(
        self, text: str, name: str, eps: float, source: str | None = None
    ) -> Cell | None:
        """A cell, or None where it has not been measured.

        Args:
          text: the row, as the layout has it.
          name: of `columns()`.
          eps: of the table, levels.
          source: of transferred attacks; None for the row's own.
        """
        row = grid.pipeline(text, eps)
        if name == STRONGEST:
            return self._strongest(text, eps, source)
        if name == WORST:
            made = grid.Made(WORST, eps=eps)
        else:
            column = self._columns.get(name, grid.Column(grid.CLEAN))
            made = grid.made_for(row, column, eps, source)
        found = self._rows.get(_key(row, made))
        return None if found is None else self._cell(found, eps)

    def _strongest(self, text: str, eps: float, source: str | None) -> Cell | None:
        """The least accuracy of all attacks."""
        cells = [self.cell(text, name, eps, source) for name in self._columns]
        measured = [cell for cell in cells if cell is not None]
        if not measured:
            return None
        least = min(measured, key=lambda cell: cell.ours)
        clean = self._rows.get(_key(grid.pipeline(text, eps), grid.Made(grid.CLEAN)))
        paper = None
        if clean is not None and source is None:
            paper = self._published(clean, STRONGEST, eps)
        return dataclasses.replace(least, paper=paper)

    def _cell(self, row: dict, eps: float) -> Cell:
        theirs = row["threat"] != "transfer" and row["preset"] in _THEIRS
        paper = self._published(row, row["attack"], eps) if theirs else None
        percent = (100 * row[name] for name in ("accuracy", "low", "high"))
        return Cell(*percent, n=row["n"], paper=paper)

    def _published(self, row: dict, attack: str, eps: float) -> float | None:
        return published.accuracy(
            self._dataset, row["network"], row["training"], row["defence"], attack, eps
        )

    def lines(
        self, eps: float, source: str | None = None
    ) -> tuple[list[str], list[list[str]]]:
        """Header and lines for one eps, as text."""
        columns = self.columns()
        if source:
            columns = [c for c in columns if c not in (grid.CLEAN, WORST)]
        header = [f"eps {eps:g}", *(_TITLES.get(name, name) for name in columns)]
        lines = []
        for text in self.layout.rows:
            cells = [self.cell(text, name, eps, source) for name in columns]
            lines.append(
                [
                    str(grid.pipeline(text, eps)),
                    *("" if cell is None else str(cell) for cell in cells),
                ]
            )
        return header, lines

    def show(self, form: Callable[..., str] = report.table) -> str:
        """All tables, one for each eps, own attacks first.

        Args:
          form: `report.table` for a terminal, `report.markdown_table` for a page.
        """
        found = []
        for eps in self.layout.eps:
            found.append(form(*self.lines(eps)))
            for source in self.layout.sources:
                title = f"Transferred: made on {source}, eps {eps:g}"
                found.append(f"{title}\n\n{form(*self.lines(eps, source))}")
        return "\n\n".join(found)

    def claims(self) -> list[list[str]]:
        """For each eps the best row without and with a purifier, strongest attack.

        Returns:
          Lines of eps, the best baseline, its accuracy, the best purified row, its, and
          what the paper has for its own best ones.
        """
        lines = []
        for eps in self.layout.eps:
            line = [f"{eps:g}"]
            papers = []
            for purified in (False, True):
                best = self._best(eps, purified)
                if best is None:
                    break
                line += [str(grid.pipeline(best, eps)), _plain(self, best, eps)]
                papers.append(self._best_published(eps, purified))
            else:
                known = None not in papers
                line.append(" to ".join(f"{p:.0f}" for p in papers) if known else "")
                lines.append(line)
        return lines

    def _best(self, eps: float, purified: bool) -> str | None:
        """The row that does best under its strongest attack."""
        found = {
            text: cell.ours
            for text in self.layout.rows
            if grid.pipeline(text, eps).purifies is purified
            and (cell := self.cell(text, STRONGEST, eps)) is not None
        }
        return max(found, key=lambda text: found[text]) if found else None

    def _best_published(self, eps: float, purified: bool) -> float | None:
        found = [
            cell.paper
            for text in self.layout.rows
            if grid.pipeline(text, eps).purifies is purified
            and (cell := self.cell(text, STRONGEST, eps)) is not None
            and cell.paper is not None
        ]
        return max(found, default=None)

    def departures(self) -> list[list[str]]:
        """Cells that differ from the paper's by more than their interval and 5 points.

        Returns:
          Lines of row, attack, eps, ours with its interval, the paper's, difference.
        """
        lines = []
        for eps in self.layout.eps:
            for text in self.layout.rows:
                for name in self.columns():
                    cell = self.cell(text, name, eps)
                    if cell is not None and cell.departs:
                        lines.append(
                            [
                                str(grid.pipeline(text, eps)),
                                _TITLES.get(name, name),
                                f"{eps:g}",
                                f"{cell.ours:.1f} ({cell.low:.1f} to {cell.high:.1f})",
                                f"{cell.paper:.0f}",
                                f"{cell.difference:+.1f}",
                            ]
                        )
        return lines


def _plain(table: Table, text: str, eps: float) -> str:
    """A strongest-attack cell without the paper's number."""
    return str(dataclasses.replace(table.cell(text, STRONGEST, eps), paper=None))


def cell_key(row: dict) -> tuple:
    """Which cell a row is: classifier, defence, attack, preset, eps, source."""
    eps = row["eps_attack"]
    return (
        row["classifier"],
        row["defence"],
        row["attack"],
        row["preset"],
        float("inf") if eps is None else eps,
        row["source"] if row["threat"] == "transfer" else None,
    )


def _key(row: grid.Pipeline, made: grid.Made) -> tuple:
    transferred = made.source if grid.threat(row, made) == "transfer" else None
    return (
        row.classifier,
        row.defence,
        made.attack,
        made.preset,
        made.eps,
        transferred,
    )
