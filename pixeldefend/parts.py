"""Results of a long run, kept on disk as they come, so that it can go on."""

import io
import time

import numpy as np
from etils import epath

from pixeldefend import checkpoint


class Parts:
    """Batches of results in a folder, in order; what a killed run left is found again.

    Attributes:
      results: what was found and added, dicts of arrays `[n, ...]`.
      done: rows in them.
      seconds: that the parts found had taken.
    """

    def __init__(self, folder: epath.PathLike, identity: str, pause: float = 10.0):
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
        self._waiting: list[dict] = []
        self.results: list[dict] = []
        self.done = 0
        self.seconds = 0.0
        # In order of their first rows; one that is missing makes the others useless.
        for path in sorted(self._own.glob("[0-9]*.npz")):
            part = _load(path) if path.stem == _name(self.done) else None
            if part is None:
                path.unlink()
                continue
            self.seconds = float(part.pop("seconds"))
            self.results.append(part)
            self.done += _rows(part)
        for path in self._own.glob(".*.partial.npz"):  # of a killed run
            path.unlink()
        self._saved = self.done

    def add(self, result: dict, seconds: float, *, last: bool) -> None:
        """Takes a batch of results; writes when it is time, or it is the last.

        Args:
          result: arrays `[n, ...]` by name.
          seconds: taken so far, those of earlier runs included.
          last: whether nothing follows.
        """
        self.results.append(result)
        self._waiting.append(result)
        self.done += _rows(result)
        now = time.monotonic()
        if not last and now - self._written < self._pause:
            return
        together = {
            name: np.concatenate([part[name] for part in self._waiting])
            for name in result
        }
        path = self._own / f"{_name(self._saved)}.npz"
        checkpoint.write_arrays(path, **together, seconds=np.float64(seconds))
        self._waiting, self._saved, self._written = [], self.done, now

    def remove(self) -> None:
        """Removes the folder, once the results are elsewhere."""
        if self._folder.exists():
            self._folder.rmtree()


def _name(first: int) -> str:
    return f"{first:09d}"


def _rows(part: dict) -> int:
    return len(next(iter(part.values())))


def _load(path: epath.Path) -> dict | None:
    """A part, or None where it cannot be read or is not one."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            part = dict(file)
        rows = {len(part[name]) for name in part if name != "seconds"}
        whole = part["seconds"].ndim == 0 and len(rows) == 1
    except Exception:  # a damaged archive raises a dozen kinds
        return None
    return part if whole else None
