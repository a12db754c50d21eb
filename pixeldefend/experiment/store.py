"""Results computed once and kept, each with a fingerprint of all that it depends on.

A result is one file. While it is being computed its batches are kept as they come, as
parts, so that a killed run goes on where it was. What others put beside them stays.
"""

import contextlib
import functools
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pixeldefend import __version__
from pixeldefend.experiment import (
    files,
    foreign,
    interruption,
    parallel,
    processes,
    report,
)

FOLDERS = ("adversarial", "purified", "scores", "predictions", "parts")
_PART = re.compile(r"\d{12}\.npz")  # a part is named by its first row
Arrays = dict[str, np.ndarray]


def fingerprint(words: Any, arrays: Any = ()) -> str:
    """A short name of all that a result depends on.

    Args:
      words: whose `repr` tells them apart: numbers, texts, dataclasses.
      arrays: a pytree.

    Raises:
      ValueError: a word is known by its place in memory only.
    """
    text = repr((__version__, words, jax.tree.structure(arrays)))
    if " at 0x" in text:
        raise ValueError(f"no reproducible name, as it has a memory address: {text}")
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(arrays):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:16]


class Store:
    """Computes results `[N, ...]` once and keeps them in a folder.

    A file with another fingerprint is made anew.
    """

    def __init__(self, folder: epath.PathLike):
        """`folder` is the run's."""
        self._folder = files.expanded(folder)
        self._seconds: dict[epath.Path, float] = {}

    @property
    def seconds(self) -> float:
        """That all files asked for took to make, compilation apart."""
        return sum(self._seconds.values())

    def find(
        self, kind: str, name: str, fingerprint: str, only: Sequence[str] = ()
    ) -> Arrays | None:
        """What a file holds; None if it is missing, damaged or has another fingerprint.

        Args:
          kind, name, fingerprint: as for `once`.
          only: the arrays to read besides the `seconds`; none for all.
        """
        path = self.path(kind, name)

        def read(file: Any) -> Arrays | None:
            if str(file["mark"]) != fingerprint:
                return None
            keys = ("seconds", *only) if only else file.files
            return {key: file[key] for key in keys if key != "mark"}

        found = _load(path, read) if processes.is_first() else None
        if not processes.agreed(found is not None):
            return None
        if found is None:
            found = files.patiently(lambda: _load(path, read), path)
        self._seconds[path] = float(found["seconds"])
        return found

    def once(
        self,
        kind: str,
        name: str,
        fingerprint: str,
        mapped: parallel.BatchMap,
        what: str,
        arguments: Callable[[], tuple],
    ) -> Arrays:
        """What `find` finds; else computes results and keeps them, with the `seconds`
        and `device` they took.

        Args:
          kind: the folder, for `tidy` one of `FOLDERS`.
          name: of the results, readable.
          fingerprint: see the function of that name.
          mapped: what computes them, a dict of arrays.
          what: in front of the progress.
          arguments: gives what `mapped` takes, the variables and arrays `[N, ...]`.
        """
        if (found := self.find(kind, name, fingerprint)) is not None:
            return found
        path = self.path(kind, name)
        # Every batch at once: one is much longer in the making than in the writing.
        unfinished = self.unfinished(fingerprint, f"{kind}/{path.stem}")
        result, seconds = unfinished.run(mapped, what, *arguments())
        self._write(path, fingerprint, result, seconds)
        self._remove_parts(f"{kind}/{path.stem}")
        return result

    def keep(
        self, kind: str, name: str, fingerprint: str, make: Callable[[], dict]
    ) -> Arrays:
        """Makes results in one go and keeps them, with the `seconds` it took.

        Args:
          kind, name, fingerprint: as for `once`.
          make: returns the arrays.
        """
        begun = time.perf_counter()
        result = make()
        seconds = time.perf_counter() - begun
        self._write(self.path(kind, name), fingerprint, result, seconds)
        return result

    def unfinished(
        self, fingerprint: str, inner: str = "", pause: float = 0.0
    ) -> "Unfinished":
        """The batches of a computation, for one whose results go elsewhere: `tidy`
        removes them.

        Args:
          fingerprint: as for `once`.
          inner: the folder of its parts among all parts.
          pause: seconds between two writings.
        """
        return Unfinished(self._folder / "parts" / inner / fingerprint, pause)

    def tidy(self) -> None:
        """Removes what only a killed run would need, once every process is here."""
        self._remove_parts()
        if processes.is_first():
            for kind in FOLDERS:
                files.remove_partial(self._folder / kind)

    def _remove_parts(self, inner: str = "") -> None:
        """Removes parts, once every process has read them."""
        processes.barrier()
        if processes.is_first():
            _clear(self._folder / "parts" / inner)

    def _write(
        self, path: epath.Path, fingerprint: str, result: dict, seconds: float
    ) -> None:
        """Adds to `result` what it took, and writes it."""
        result["seconds"] = np.float64(round(seconds, 3))
        result["device"] = np.array(parallel.devices())
        files.write_arrays(path, **result, mark=np.array(fingerprint))
        self._seconds[path] = seconds

    def path(self, kind: str, name: str) -> epath.Path:
        """Of a file: readable as far as a file's name goes, and no other name's."""
        readable = re.sub(r"[^\w.+-]+", "_", name).strip("_")
        if readable != name or len(readable) > 100:
            digest = hashlib.sha256(name.encode()).hexdigest()[:8]
            readable = f"{readable[:100]}-{digest}"
        return self._folder / kind / f"{readable}.npz"


class Unfinished:
    """Batches of a computation, on disk as they come; a killed run's are found again.

    Each process writes parts of its own, and a part says which rows it has, so a run
    may go on with another number of processes and devices.

    Attributes:
      results: what was found and added, pairs of rows `[n]` and dicts of arrays
        `[n, ...]`.
      seconds: that the parts found had taken.
    """

    def __init__(self, folder: epath.Path, pause: float = 0.0):
        """Reads the parts in `folder`, which is made when the first one is written."""
        self._folder, self._pause = folder, pause
        self._written = time.monotonic()
        self._waiting: list[tuple[np.ndarray, dict]] = []
        self._spent = 0.0  # seconds that are on disk, of this run
        self.results: list[tuple[np.ndarray, dict]] = []
        self.seconds = 0.0
        self._names: set[str] = set()  # of the parts
        self._rows: set[int] = set()  # that there are results of
        if processes.is_first():
            for path in filter(_is_part, files.entries(folder)):
                part = _load(path, _part)
                # Also one with rows that another one has, as of a process that was slow
                # to die: every process then reads the same.
                if part is None or not self._rows.isdisjoint(part["rows"].tolist()):
                    path.unlink()
                else:
                    self._take(path.name, part)
            files.remove_partial(folder)
        self._read(processes.agreed(sorted(self._names)))

    @property
    def done(self) -> int:
        """How many rows there are results of, here."""
        return len(self._rows)

    def missing(self, count: int) -> np.ndarray:
        """Which of so many rows there are no results of."""
        return np.array([row for row in range(count) if row not in self._rows], int)

    def run(
        self,
        mapped: parallel.BatchMap,
        what: str,
        variables: Any,
        *arrays: np.ndarray,
        each: Callable[[np.ndarray, dict], None] | None = None,
    ) -> tuple[Arrays, float]:
        """Computes what is missing, with progress shown.

        Args:
          mapped: what computes it.
          what: in front of the progress.
          variables: for the mapped function.
          *arrays: `[N, ...]` each.
          each: called with the rows and the result of every batch, those that were
            found included, before it counts as done; each batch in one process.

        Returns:
          The results `[N, ...]`, and the seconds taken after compilation, those of an
          earlier run included.

        Raises:
          interruption.Interrupted: the run was asked to stop; the parts are on disk.
        """
        count = len(arrays[0])
        if self.done:
            print(f"{what}: resuming after {self.done} of {count} images")
        if each is not None and processes.is_first():
            for found in self.results:
                each(*found)
        with report.compiling(what):
            mapped.compile(variables, *arrays)
        begun = time.perf_counter()
        rows = self.missing(count)
        try:
            for own, result in report.batches(
                mapped, what, variables, *arrays, rows=rows
            ):
                if each is not None:
                    each(own, result)
                self.add(own, result, time.perf_counter() - begun)
        except (interruption.Interrupted, KeyboardInterrupt):
            self.flush(time.perf_counter() - begun)
            raise
        self.flush(time.perf_counter() - begun)
        earlier = self.seconds
        whole = self.collect(count)
        return whole, earlier + time.perf_counter() - begun

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
        name = f"{rows[0]:012d}.npz"
        files.write_arrays(
            self._folder / name,
            every_process=True,
            **processes.concatenated([result for _, result in self._waiting]),
            rows=rows,
            # Processes work at the same time.
            seconds=np.float64((seconds - self._spent) / processes.count()),
        )
        self._names.add(name)
        self._waiting, self._written, self._spent = [], time.monotonic(), seconds

    def collect(self, count: int) -> Arrays:
        """The results of all processes `[count, ...]`, once each has flushed its own.

        Raises:
          ValueError: a row is missing, or there twice.
        """
        # A shared folder may be slow to list what others wrote.
        own = {"names": np.array(sorted(self._names), str)}
        self._read([str(n) for part in processes.gathered(own) for n in part["names"]])
        return processes.in_order(self.results, count)

    def _read(self, names: list[str]) -> None:
        """Reads parts, but for those that are known here."""
        for name in names:
            if name not in self._names:
                path = self._folder / name
                part = files.patiently(functools.partial(_load, path, _part), path)
                self._take(name, part)

    def _take(self, name: str, part: dict) -> None:
        """Adds a part's rows, but for those that another part has given."""
        self._names.add(name)
        self.seconds += float(part.pop("seconds"))
        rows = part.pop("rows")
        new = np.array([row not in self._rows for row in rows.tolist()])
        if new.any():
            self._rows.update(rows.tolist())
            self.results.append((rows[new], {k: part[k][new] for k in part}))


def _is_part(path: epath.Path) -> bool:
    return _PART.fullmatch(path.name) is not None


def _clear(folder: epath.Path) -> None:
    """Removes the parts below a folder, and the folders that are empty without them."""
    for path in files.entries(folder):
        if _is_part(path):
            path.unlink()
        elif path.is_dir():
            _clear(path)
    files.remove_partial(folder)
    if not files.is_remote(folder):
        with contextlib.suppress(OSError):  # something else is in it, or it is not
            os.rmdir(folder)


def _load(path: epath.Path, read: Callable[[Any], Arrays | None]) -> Arrays | None:
    """What `read` makes of a file of arrays; None where it is missing or damaged."""
    try:
        with np.load(io.BytesIO(foreign.read_bytes(path)), allow_pickle=False) as file:
            return read(file)
    except Exception:  # of which there are a dozen kinds
        return None


def _part(file: Any) -> Arrays | None:
    """The arrays of a part; None of another file."""
    part = dict(file)
    rows, lengths = part["rows"], {len(part[k]) for k in part if k != "seconds"}
    whole = part["seconds"].ndim == 0 and len(lengths) == 1
    whole = whole and rows.dtype == np.int64 and len(np.unique(rows)) == len(rows)
    return part if whole else None
