"""Results of a long run, kept on disk as they come, so that it can go on."""

import io
import time

import numpy as np
from etils import epath

from pixeldefend.experiment import files, parallel, processes


class Parts:
    """Batches of results in a folder; what a killed run left is found again.

    Each process writes parts of its own, and a part says which rows it has, so a run
    may go on with another number of processes and devices.

    Attributes:
      results: what was found and added, pairs of rows `[n]` and dicts of arrays
        `[n, ...]`.
      seconds: that the parts found had taken.
    """

    def __init__(self, folder: epath.PathLike, identity: str, pause: float = 0.0):
        """Reads the parts of an earlier run, if it was the same.

        Args:
          folder: for the parts; made when the first one is written.
          identity: a name for all that the results depend on.
          pause: seconds between two writings.
        """
        self._folder = epath.Path(folder)
        self._own = self._folder / identity
        self._pause = pause
        self._written = time.monotonic()
        self._waiting: list[tuple[np.ndarray, dict]] = []
        self._spent = 0.0  # seconds that are on disk, of this run
        self.results: list[tuple[np.ndarray, dict]] = []
        self.seconds = 0.0
        self._known: set[str] = set()  # parts by name
        self._rows: set[int] = set()  # that there are results of
        if processes.is_first():
            self._clean()
        # As the first process sees them, once it has cleaned up.
        self._read(processes.agreed(sorted(self._known)))

    @property
    def done(self) -> int:
        """How many rows there are results of, here."""
        return len(self._rows)

    def missing(self, count: int) -> np.ndarray:
        """Which of so many rows there are no results of."""
        return np.array([row for row in range(count) if row not in self._rows], int)

    def add(self, rows: np.ndarray, result: dict, seconds: float) -> None:
        """Takes a batch of results, and writes when it is time.

        Args:
          rows: `[n]`.
          result: arrays `[n, ...]` by name.
          seconds: that this run has taken so far.
        """
        self.results.append((rows, result))
        self._rows.update(rows.tolist())
        self._waiting.append((rows, result))
        if time.monotonic() - self._written >= self._pause:
            self.flush(seconds)

    def flush(self, seconds: float) -> None:
        """Writes what was not yet written; `seconds` as for `add`."""
        if not self._waiting:
            return
        rows = np.concatenate([rows for rows, _ in self._waiting])
        together = parallel.concatenated([result for _, result in self._waiting])
        name = f"{rows[0]:012d}.npz"
        # Processes work at the same time.
        share = (seconds - self._spent) / processes.count()
        files.write_arrays(
            self._own / name,
            every_process=True,
            **together,
            rows=rows,
            seconds=np.float64(share),
        )
        self._known.add(name)
        self._waiting, self._written, self._spent = [], time.monotonic(), seconds

    def collect(self, count: int) -> dict:
        """The results of all processes `[count, ...]`, once each has flushed its own.

        Raises:
          ValueError: a row is missing, or there twice.
        """
        # A shared folder may be slow to list what others wrote.
        own = {"names": np.array(sorted(self._known), str)}
        self._read([str(n) for part in processes.gathered(own) for n in part["names"]])
        return parallel.in_order(self.results, count)

    def remove(self) -> None:
        """Removes the folder, once the results are elsewhere."""
        processes.barrier()
        if processes.is_first() and self._folder.exists():
            self._folder.rmtree()

    def _clean(self) -> None:
        """Reads what is there, and removes what a killed run left half done.

        Also a part with rows that another one has, as of a process that was slow to
        die: every process then reads the same.
        """
        for path in sorted(self._own.glob("[0-9]*.npz")):
            part = _load(path)
            if part is None or not self._rows.isdisjoint(part["rows"].tolist()):
                path.unlink()
            else:
                self._take(path.name, part)
        for path in self._own.glob(".*.partial.npz"):
            path.unlink()

    def _read(self, names: list[str]) -> None:
        """Reads parts, but for those that are known here."""
        for name in names:
            if name not in self._known:
                path = self._own / name
                part = files.patiently(lambda path=path: _load(path), path)
                self._take(name, part)

    def _take(self, name: str, part: dict) -> None:
        """Adds a part's rows, but for those that another part has given."""
        self._known.add(name)
        self.seconds += float(part.pop("seconds"))
        rows = part.pop("rows")
        new = np.array([row not in self._rows for row in rows.tolist()])
        if new.any():
            self._rows.update(rows.tolist())
            self.results.append((rows[new], {k: part[k][new] for k in part}))


def _load(path: epath.Path) -> dict | None:
    """A part, or None where it cannot be read or is not one."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            part = dict(file)
        lengths = {len(part[name]) for name in part if name != "seconds"}
        rows = part["rows"]
        whole = part["seconds"].ndim == 0 and len(lengths) == 1
        whole = whole and rows.dtype == np.int64 and len(np.unique(rows)) == len(rows)
    except Exception:  # a damaged archive raises a dozen kinds
        return None
    return part if whole else None
