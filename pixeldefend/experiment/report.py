"""What a person sees while a mode runs: progress and tables."""

import contextlib
import functools
import itertools
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pixeldefend.experiment import parallel, processes

_BRIEF = 2.0  # seconds; what takes less is not worth a line


class Progress:
    """A bar on a terminal, a plain line now and then in a log."""

    def __init__(
        self, what: str, seconds_between_lines: float = 20.0, start: float = 0.0
    ):
        """`what` is named in front; `start` is the share that was done before."""
        self._what = what
        self._pause = seconds_between_lines
        self._begun = self._printed = time.monotonic()
        self._start = start
        self._bar = None
        if sys.stderr.isatty():
            import tqdm

            form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
            self._bar = tqdm.tqdm(total=1.0, initial=start, desc=what, bar_format=form)

    def update(self, done: float, text: str = "") -> None:
        """Shows that the share `done` of the work is finished."""
        done = min(done, 1.0)
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(text)
            return
        now = time.monotonic()
        elapsed = now - self._begun
        ended = done >= 1 and elapsed >= _BRIEF
        if ended or now - self._printed >= self._pause:
            self._printed = now
            fresh = done - self._start
            left = elapsed * (1 - done) / fresh if fresh > 0 else float("inf")
            times = f"{clock(elapsed)} elapsed, {clock(left)} left"
            print(f"{self._what}: {done:4.0%}  {times}  {text}", flush=True)

    def close(self) -> None:
        """Leaves the bar as it is and ends its line."""
        if self._bar is not None:
            self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as "m:ss" or "h:mm:ss"; "?" for infinitely many."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


WIDTH = 100  # columns of a terminal, which no table is wider than


def interval(low: float, high: float) -> str:
    """The ends of an interval in percent, short: it need not be symmetric."""
    return f"{low:.1f}-{high:.1f}"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    together: int = 1,
    width: int = WIDTH,
) -> str:
    """A plain text table: the first column to the left, the others to the right.

    Cells may have several lines. What is too wide goes on in another block below, which
    begins with the first column again and leaves out rows that have nothing there.

    Args:
      header: what stands above the columns.
      rows: of as many cells each.
      together: how many columns after the first one are never parted.
      width: of a block at most, where one such group of columns fits.
    """
    cells = [[str(cell).split("\n") for cell in row] for row in (header, *rows)]
    widths = [
        max(len(line) for row in cells for line in row[i]) for i in range(len(header))
    ]
    blocks: list[list[int]] = [[]]
    for start in range(1, len(header), together):
        group = list(range(start, min(start + together, len(header))))
        wide = widths[0] + sum(2 + widths[i] for i in (*blocks[-1], *group))
        if blocks[-1] and wide > width:
            blocks.append([])
        blocks[-1] += group
    parts = []
    for columns in blocks:
        filled = [row for row in cells[1:] if any(any(row[i]) for i in columns)]
        body = filled if len(blocks) > 1 else cells[1:]
        parts.append(_block([cells[0], *body], widths, columns))
    return "\n\n".join(parts)


def _block(cells: list[list[list[str]]], widths: list[int], columns: list[int]) -> str:
    """The first column and some others, with a rule below the header."""
    lines = []
    for row in cells:
        shown = [row[0], *(row[i] for i in columns)]
        for parts in itertools.zip_longest(*shown, fillvalue=""):
            line = [parts[0].ljust(widths[0])]
            line += [
                part.rjust(widths[i])
                for part, i in zip(parts[1:], columns, strict=True)
            ]
            lines.append("  ".join(line).rstrip())
        if row is cells[0]:
            lines.append("-" * (widths[0] + sum(2 + widths[i] for i in columns)))
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def latex_text(text: str) -> str:
    """A text as LaTeX has to have it."""
    signs = str.maketrans(
        {"_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$", "#": r"\#"}
    )
    return text.translate(signs)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for LaTeX, with the rules of booktabs."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(latex_text(str(cell)) for cell in cells) + r" \\"

    body = [line(header), r"\midrule", *map(line, rows)]
    columns = "l" + "r" * (len(header) - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", *body, r"\bottomrule", end])


def run_batches(
    mapped: parallel.BatchMap, what: str, variables: Any, *arrays: np.ndarray
) -> tuple[Any, float]:
    """Compiles and runs a batch map with progress shown.

    Args:
      mapped: the map.
      what: named in front of the progress.
      variables: for the mapped function.
      *arrays: `[N, ...]` each.

    Returns:
      The results `[N, ...]`, and the seconds taken after compilation.

    Raises:
      interruption.Interrupted: the run was asked to stop.
    """
    with compiling(what):
        mapped.compile(variables, *arrays)
    begun = time.perf_counter()
    results = list(batches(mapped, what, variables, *arrays))
    whole = processes.whole(results, len(arrays[0]))
    return whole, time.perf_counter() - begun


@contextlib.contextmanager
def compiling(what: str, patience: float = 5.0) -> Iterator[None]:
    """Says so where compiling `what` takes more seconds than `patience`."""
    line = (
        f"{what}: compiling, which can take minutes, or loading what an earlier run "
        "compiled"
    )
    timer = threading.Timer(patience, functools.partial(print, line, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def batches(
    mapped: parallel.BatchMap,
    what: str,
    variables: Any,
    *arrays: np.ndarray,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """What `mapped.batches` yields, with progress shown; arguments as there."""
    count = len(arrays[0])
    left = count if rows is None else len(rows)
    # In the first process's words: the others are as far as it is.
    progress = Progress(what, start=1 - left / count)
    begun = time.perf_counter()
    done = 0
    for own, result in mapped.batches(variables, *arrays, rows=rows):
        yield own, result
        done = min(done + len(own) * processes.count(), left)
        rate = done / (time.perf_counter() - begun)
        progress.update(1 - (left - done) / count, f"{rate:.1f} images/s")
    progress.close()
