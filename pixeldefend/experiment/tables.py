"""Tables of attacks against defences: from rows, beside what was published."""

import dataclasses
from collections.abc import Callable, Iterable

from etils import epath

from pixeldefend import attacks
from pixeldefend.experiment import files, grid, published, report
from pixeldefend.experiment.rows import WORST

STRONGEST = "strongest"  # of the paper's five attacks, where all of them are there
# Presets whose accuracies the paper has; no preset: clean images.
_THEIRS = (None, "paper", "code")
_FIVE = {"rand", "fgsm", "bim", "deepfool", "cw"}
TITLES = {
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
      fewer: whether n is less than that of the table's clean images, so that it is to
        be told.
    """

    ours: float
    low: float
    high: float
    n: int
    paper: float | None = None
    fewer: bool = False

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, points."""
        return None if self.paper is None else self.ours - self.paper

    @property
    def departs(self) -> bool:
        """Whether the paper's number is outside the interval and 5 points away."""
        if self.paper is None:
            return False
        outside = not self.low <= self.paper <= self.high
        return outside and abs(self.ours - self.paper) > 5

    def __str__(self) -> str:
        text = f"{self.ours:.1f} ({self.low:.1f} to {self.high:.1f})"
        if self.fewer:
            text += f", n {self.n}"
        if self.paper is None:
            return text
        return f"{text}, paper {self.paper:.0f} ({self.difference:+.1f})"

    def short(self, told: bool) -> str:
        """In two lines: with the paper's in brackets, and the interval.

        Args:
          told: whether how many images it is of is told elsewhere.
        """
        text = f"{self.ours:.1f}"
        if self.paper is not None:
            text += f" ({self.paper:.0f})"
        text += f"\n{report.interval(self.low, self.high)}"
        return text if told or not self.fewer else f"{text}\nn {self.n}"


class Table:
    """The cells of a grid, found among rows."""

    def __init__(self, layout: grid.Grid, rows: Iterable[dict], dataset: str):
        """Sorts the rows.

        Args:
          layout: rows, columns and eps to show.
          rows: of `--mode=evaluate`.
          dataset: of the published numbers.

        Raises:
          ValueError: two rows for one cell.
        """
        self.layout, self._dataset = layout, dataset
        self._columns = {str(column): column for column in layout.columns}
        self._rows: dict[tuple, dict] = {}
        for row in rows:
            key = _key_of(row)
            if key in self._rows:
                raise ValueError(f"two rows for one cell: {key}")
            self._rows[key] = row

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
          source: of transferred attacks; None for the row's own. Attacks that look at
            nothing are not transferred, and none to the classifier that they come from.
        """
        row = grid.pipeline(text, eps)
        if name == STRONGEST:
            return self._strongest(text, eps, source)
        if name == WORST:
            adversary = grid.Adversary(WORST, eps=eps)
        elif name == grid.CLEAN:
            adversary = grid.Adversary(grid.CLEAN)
        else:
            adversary = grid.adversary_for(row, self._columns[name], eps, source)
        if source and grid.threat(row, adversary) != "transfer":
            return None
        found = self._rows.get(_key(row, adversary))
        if found is None:
            return None
        paper = None if source else self._paper(found, found["attack"], eps)
        return self._cell(found, paper)

    @property
    def published(self) -> bool:
        """Whether the paper has tables of this data set."""
        return self._dataset in published.EPS_DEFEND

    @property
    def five(self) -> bool:
        """Whether only the paper's five are compared, and there are more attacks."""
        return len(self._compared) < len(self._columns)

    def title(self, name: str) -> str:
        """What stands above the cells of a column."""
        if name == STRONGEST and self.five:
            return "strongest of the paper's five"
        return TITLES.get(name, name)

    @property
    def _compared(self) -> dict[str, grid.Column]:
        """The columns of which the strongest is one: the paper's five, or all."""
        five = {
            name: column
            for name, column in self._columns.items()
            if column.attack in _FIVE
            and column.preset in _THEIRS
            and not column.gradient
        }
        whole = {column.attack for column in five.values()} == _FIVE
        return five if whole else self._columns

    def _strongest(self, text: str, eps: float, source: str | None) -> Cell | None:
        """The least accuracy of these attacks, once all are measured."""
        cells = [self.cell(text, name, eps, source) for name in self._compared]
        measured = [cell for cell in cells if cell is not None]
        if not measured or (len(measured) < len(cells) and not source):
            return None
        least = min(measured, key=lambda cell: cell.ours)
        clean = self._rows.get(
            _key(grid.pipeline(text, eps), grid.Adversary(grid.CLEAN))
        )
        known = {column.attack for column in self._compared.values()}
        theirs = clean is not None and source is None and known == _FIVE
        theirs &= {c.preset for c in self._compared.values()} <= set(_THEIRS)
        paper = None
        if clean is not None and theirs:
            paper = self._paper(clean, STRONGEST, eps)
        return dataclasses.replace(least, paper=paper)

    def _cell(self, row: dict, paper: float | None) -> Cell:
        ours, low, high = (100 * row[name] for name in ("accuracy", "low", "high"))
        whole = max(other["n"] for other in self._rows.values())
        fewer = row["n"] < whole
        return Cell(ours, low, high, n=row["n"], paper=paper, fewer=fewer)

    def _paper(self, row: dict, attack: str, eps: float) -> float | None:
        """The published percentage, where the row measures the same thing."""
        same = row["attack"] == grid.CLEAN or row["eps_attack"] == eps
        defended = (0, published.EPS_DEFEND.get(self._dataset))
        if not same or row["preset"] not in _THEIRS:
            return None
        if row["eps_defend"] not in defended or row["own"] or row.get("slope"):
            return None
        return published.accuracy(
            self._dataset, row["network"], row["training"], row["defence"], attack, eps
        )

    def lines(
        self, eps: float, source: str | None = None
    ) -> tuple[list[str], list[list[str]]]:
        """Header and lines for one eps, as text."""
        names, cells = self._cells(eps, source)
        lines = [
            [str(grid.pipeline(text, eps)), *("" if c is None else str(c) for c in own)]
            for text, own in cells.items()
        ]
        return [f"eps {eps:g}", *map(self.title, names)], lines

    def short_lines(
        self, eps: float, source: str | None = None
    ) -> tuple[list[str], list[list[str]]]:
        """Likewise for a terminal: narrow cells of two lines, see `Cell.short`."""
        names, cells = self._cells(eps, source)
        header, columns = [f"eps {eps:g}"], []
        for name, column in zip(names, zip(*cells.values(), strict=True), strict=True):
            found = [cell for cell in column if cell is not None]
            # Said once where it is true of the whole column.
            same = len({cell.n for cell in found}) == 1
            few = f"\nn {found[0].n}" if same and found[0].fewer else ""
            header.append(self.title(name).replace(" of ", "\nof ") + few)
            columns.append(
                ["" if cell is None else cell.short(same) for cell in column]
            )
        rows = [grid.pipeline(text, eps) for text in cells]
        titles = ["\n".join((r.classifier, *_lines_of(r.defences))) for r in rows]
        return header, [list(line) for line in zip(titles, *columns, strict=True)]

    def _cells(
        self, eps: float, source: str | None
    ) -> tuple[list[str], dict[str, list[Cell | None]]]:
        """The columns of a table, and by row its cells."""
        names = self.columns()
        if source:
            blind = [n for n, c in self._columns.items() if not _looks(c)]
            names = [n for n in names if n not in (grid.CLEAN, WORST, *blind)]
        return names, {
            text: [self.cell(text, name, eps, source) for name in names]
            for text in self.layout.rows
        }

    def show(self, form: Callable[..., str] = report.table) -> str:
        """All tables, one for each eps, own attacks first.

        Args:
          form: `report.table`, `report.markdown_table` or `report.latex_table`.
        """
        lines_of = self.short_lines if form is report.table else self.lines
        found = []
        for eps in self.layout.eps:
            found.append(form(*lines_of(eps)))
            for source in self.layout.sources_at(eps):
                header, lines = lines_of(eps, source)
                if any(cell for line in lines for cell in line[1:]):
                    title = f"Transferred: made on {source}, eps {eps:g}"
                    if form is report.latex_table:
                        title = report.latex_text(title)
                    found.append(f"{title}\n\n{form(header, lines)}")
        return "\n\n".join(found)


def _lines_of(defences: tuple[str, ...]) -> list[str]:
    """Below a classifier, what stands in front of it; three to a line."""
    return [
        "  + " + " + ".join(defences[start : start + 3])
        for start in range(0, len(defences), 3)
    ]


def write(folder: epath.Path, show: Callable[[Callable[..., str]], str]) -> None:
    """Writes a table into `folder` for pages (`table.md`) and papers (`table.tex`).

    Args:
      folder: of the run.
      show: as `Table.show`.
    """
    forms = {"md": report.markdown_table, "tex": report.latex_table}
    for ending, form in forms.items():
        with files.whole_file(folder / f"table.{ending}") as temporary:
            temporary.write_text(show(form) + "\n")


def _looks(column: grid.Column) -> bool:
    return attacks.ATTACKS[column.attack].looks


def _key_of(row: dict) -> tuple:
    """Which cell a row is."""
    eps = row["eps_attack"]
    return (
        row["classifier"],
        row["defence"],
        row["attack"],
        row["preset"],
        float("inf") if eps is None else eps,
        row["source"],
        row["through"],
        row.get("slope") or "",
        row.get("levels") == "fractional",
    )


def _key(row: grid.Pipeline, adversary: grid.Adversary) -> tuple:
    return (
        row.classifier,
        row.defence,
        adversary.attack,
        adversary.preset,
        adversary.eps,
        adversary.source,
        adversary.seen,
        adversary.gradient,
        adversary.fractional,
    )
